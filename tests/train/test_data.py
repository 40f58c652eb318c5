"""Packing loses nothing, and a batch depends on the step alone."""

import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.tasks.task import Task, Template
from limbeck.train.data import Example, batches, chunked, completions, documents, mixture, pack

TOKENIZER = byte_tokenizer()


def unpack(rows) -> list[tuple[list[int], list[int], list[float]]]:
    """(tokens, targets, weights) of every segment."""
    found = []
    for row in range(len(rows["tokens_BT"])):
        for segment in range(1, rows["segments_BT"][row].max() + 1):
            at = np.flatnonzero(rows["segments_BT"][row] == segment)
            assert rows["positions_BT"][row, at].tolist() == list(range(len(at)))
            found.append(tuple(rows[name][row, at].tolist() for name in ("tokens_BT", "targets_BT", "weights_BT")))
    return found


def test_packing_keeps_every_example_once_and_weighs_nothing_else():
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(1, 99, n).tolist(), int(rng.integers(1, n)))
        for n in rng.integers(2, 20, 300)
    ]
    rows = pack(examples, 24)
    got = sorted(unpack(rows))
    expected = sorted(
        (ids[:-1], ids[1:], [0.0] * (context - 1) + [1.0] * (len(ids) - context)) for ids, context in examples
    )
    assert got == expected
    padding = rows["segments_BT"] == 0
    assert not rows["weights_BT"][padding].any() and not rows["tokens_BT"][padding].any()
    assert (rows["segments_BT"] > 0).mean() > 0.9  # first fit leaves little room
    with pytest.raises(UserError, match="nothing|row holds 3"):
        pack(examples, 3)


def test_long_documents_are_cut_into_pieces_that_predict_each_token_once():
    examples = documents(["a long sentence of bytes", "x", ""], TOKENIZER)
    pieces = chunked(examples, 7)
    targets = [token for ids, context in pieces for token in ids[context:]]
    assert targets == [token for ids, context in examples for token in ids[context:]]
    assert max(len(ids) for ids, _ in pieces) == 8
    assert examples[0].ids[0] == TOKENIZER.bos_id and examples[0].ids[-1] == TOKENIZER.eos_id


def test_the_loss_of_a_completion_counts_the_answer_and_what_ends_it():
    record = {"id": "0", "input": "lemon", "output": "hesperidium"}
    task = Task("t", {"train": (record,), "test": ({**record, "id": "1"},)}, Template(), None)
    [(ids, context)] = completions(task, task.splits["train"], TOKENIZER)
    assert TOKENIZER.decode(ids[:context]) == "lemon:"
    assert TOKENIZER.decode(ids[context:]) == " hesperidium\n"
    assert ids.count(TOKENIZER.bos_id) == 1


def test_batches_are_a_function_of_seed_and_step_and_visit_every_row():
    rows = {"tokens_BT": np.arange(10)[:, None]}
    first, again, other = batches(rows, 4, 0), batches(rows, 4, 0), batches(rows, 4, 1)
    seen = [first(step)["tokens_BT"][:, 0].tolist() for step in range(5)]
    assert sorted(sum(seen, [])) == sorted(list(range(10)) * 2)  # two passes, each row once in either
    assert sorted(sum(seen, [])[:10]) == list(range(10))
    assert [again(step)["tokens_BT"][:, 0].tolist() for step in (4, 0)] == [seen[4], seen[0]]
    assert [other(step)["tokens_BT"][:, 0].tolist() for step in range(5)] != seen
    both = mixture(first, other)(3)["tokens_BT"]
    assert both.tolist() == [*first(3)["tokens_BT"].tolist(), *other(3)["tokens_BT"].tolist()]
    with pytest.raises(UserError, match="training split is empty"):
        batches({"tokens_BT": np.zeros((0, 4))}, 4, 0)
