"""Calibrated answers by hand, and the prompts without content that they are calibrated by."""

import numpy as np
import pytest
from table_engine import FRUITS, KINDS, TOKENIZER, asked, by_hand, log_softmax, sums, task

from limbeck.prompting.calibration import domain_texts
from limbeck.prompting.demonstrations import choose
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template


@pytest.mark.parametrize("name", ["contextual", "domain", "batch"])
@pytest.mark.parametrize("of", ["sum", "per_token"])
def test_calibration_by_hand(name, of):
    table, closed = sums(1), task(KINDS, (*FRUITS, ("apple", "pome"), ("peach", "drupe")), test=3)
    records = closed.splits["test"]
    found = asked(closed, table, records, calibration=name, view=of, shots=1, pick="fixed", examples=("0",))

    def row(query: str) -> list[float]:
        texts = [f" {option}\n" for option in KINDS]
        sums = [by_hand(table, f"plum: drupe\n{query}:", text) for text in texts]
        return sums if of == "sum" else [a / len(text) for a, text in zip(sums, texts, strict=True)]

    logprob_NO = log_softmax([row(record["input"]) for record in records])
    if name == "batch":
        expected = logprob_NO - logprob_NO.mean(axis=0)
    else:
        texts = ("N/A", "[MASK]", "") if name == "contextual" else domain_texts(closed, 20, 0)
        expected = logprob_NO - np.log(np.exp(log_softmax([row(text) for text in texts])).mean(axis=0))
    np.testing.assert_allclose([one.scores["score"] for one in found.asked], log_softmax(expected), atol=1e-9)
    assert found.answers == tuple(KINDS[i] for i in expected.argmax(axis=1))
    assert [one.id for one in found.asked] == [record["id"] for record in records]
    plain = asked(closed, table, records, view=of, shots=1, pick="fixed", examples=("0",))
    assert [one.scores["logprob"] for one in found.asked] == [one.scores["logprob"] for one in plain.asked]


def test_prompts_without_content_have_examples_of_their_own():
    closed, table = task(KINDS, FRUITS * 3, test=4), sums()
    asked(closed, table, closed.splits["test"], calibration="contextual", shots=2, seed=3)
    texts = [TOKENIZER.decode(request.prompt) for request in table.scored]
    assert [text.rsplit("\n", 1)[-1] for text in texts] == ["plum:", "pear:", "lemon:", "fig:", "N/A:", "[MASK]:", ":"]
    for text, content in zip(texts[4:], ("N/A", "[MASK]", ""), strict=True):
        number = ("N/A", "[MASK]", "").index(content)
        blank = {"id": f"without content//{number}", "input": content, "output": ""}
        assert text == closed.prompt(blank, choose(closed, blank, 2, 3))


def test_each_group_has_blanks_of_its_own():
    pairs = [(f"{kind} {i}", KINDS[i % 4], kind) for kind in ("fruit", "tree") for i in range(6)]
    records = [{"id": a, "input": a, "output": b, "kind": c} for a, b, c in pairs]
    splits = {"train": tuple(records[::2]), "test": tuple(records[1::2])}
    grouped = Task("plants", splits, Template("{kind} {input}:"), KINDS, group_field="kind")
    whole = asked(grouped, sums(), grouped.splits["test"], calibration="contextual", shots=1)
    for kind in ("fruit", "tree"):
        own = [record for record in grouped.splits["test"] if record["kind"] == kind]
        alone = asked(grouped, sums(), own, calibration="contextual", shots=1)
        assert list(alone.asked) == [one for one in whole.asked if one.id.startswith(kind)]
