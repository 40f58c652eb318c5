"""Examples say of every token whether it is to be learned."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer
from limbeck.model.tokenizer.files import Parts
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template
from limbeck.train import examples as module
from limbeck.train.examples import Example, chunked, completions, conversations, documents, labelled

TOKENIZER = byte_tokenizer()
CHAT = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str | None = CHAT) -> Tokenizer:
    plain = byte_tokenizer()
    plain._fast.add_special_tokens(["<|start|>", "<|end|>"])
    return Tokenizer(Parts(plain._fast, dict(plain.tokens), plain.bos_id, plain.stop_ids, template))


def spelled(tokenizer: Tokenizer, ids) -> str:
    return tokenizer._fast.decode([int(index) for index in ids], skip_special_tokens=False)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=5))
@settings(deadline=None)
def test_documents_count_all_but_the_bos(texts):
    made = documents(texts, TOKENIZER)
    assert [TOKENIZER.decode(ids) for ids, _, _ in made] == texts
    for number, (ids, counts, name) in enumerate(made, 1):
        assert ids.dtype == np.int32 and counts.dtype == bool and name == f"text {number}"
        assert ids[0] == TOKENIZER.bos_id and ids[-1] == TOKENIZER.eos_id
        assert counts.tolist() == [False, *[True] * (len(ids) - 1)]


def test_many_texts_are_those_of_few_and_show_their_progress(monkeypatch, capsys):
    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module, "_MANY", 10)
    texts = [f"میوه {number}" for number in range(11)]
    for count in (9, 11):
        assert [TOKENIZER.decode(example.ids) for example in documents(texts[:count], TOKENIZER)] == texts[:count]
        said = capsys.readouterr().err
        assert said == ("" if count < 10 else "tokenising: 11/11 texts, 0 s left\n")


@pytest.mark.parametrize(("asked", "answer"), [("lemon", "hesperidium"), ("لیمو", "مرکبات")])
def test_of_a_completion_the_answer_and_what_ends_it_count(asked, answer):
    record = {"id": "0", "input": asked, "output": answer}
    task = Task("t", {"train": (record,), "test": ({**record, "id": "1"},)}, Template(), None)
    [(ids, counts, name)] = completions(task, task.splits["train"], TOKENIZER)
    assert TOKENIZER.decode(ids[~counts]) == f"{asked}:" and not counts[: (~counts).sum()].any()
    assert TOKENIZER.decode(ids[counts]) == f" {answer}\n"
    assert ids.tolist().count(TOKENIZER.bos_id) == 1
    assert name == "task 't', record '0'"


def test_of_a_conversation_all_that_the_assistant_says_counts():
    tokenizer = chat_tokenizer()
    chat = [
        {"role": "user", "content": "سلام، یک میوه؟"},
        {"role": "assistant", "content": "گلابی"},
        {"role": "user", "content": "another one"},
        {"role": "assistant", "content": "plum 🙂"},
    ]
    first, second = conversations([chat, chat[:2]], tokenizer)
    runs = np.flatnonzero(np.diff(first.counts.astype(int)))  # before each change
    assert len(runs) == 4
    assert spelled(tokenizer, first.ids[runs[0] + 1 : runs[1] + 1]) == "گلابی<|end|>"
    assert spelled(tokenizer, first.ids[runs[2] + 1 : runs[3] + 1]) == "plum 🙂<|end|>"
    assert first.ids[0] == tokenizer.bos_id and (first.name, second.name) == ("conversation 1", "conversation 2")
    assert second.ids.tolist() == first.ids[: len(second.ids)].tolist()


@pytest.mark.parametrize(
    ("chat", "template", "said"),
    [
        ([{"role": "user", "content": "سلام"}], CHAT, "conversation 2: the conversation has no message of the role"),
        ([{"role": "assistant"}], CHAT, "conversation 2: message 0 is"),
        ([{"role": "assistant", "content": "a<|end|>b"}], CHAT, "spells the special token"),
    ],
)
def test_a_bad_conversation_is_named(chat, template, said):
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match=said) as error:
        conversations([good, chat], chat_tokenizer(template))
    assert "\n" not in str(error.value)
    skipped: list[str] = []
    kept = conversations([chat, good], chat_tokenizer(template), ["چت.jsonl, row 1", "چت.jsonl, row 2"], skipped)
    assert [example.name for example in kept] == ["چت.jsonl, row 2"]
    assert len(skipped) == 1 and skipped[0].startswith("چت.jsonl, row 1: ")


def test_conversations_need_a_template():
    chat = [{"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match="no chat template"):
        conversations([chat], chat_tokenizer(None))


def task_of(kind: Any, answer: str, options=None) -> Task:
    records = tuple({"id": str(i), "text": "چه روزی", "mood": answer} for i in (7, 8))
    return Task(
        "t",
        {"train": records[:1], "test": records[1:]},
        Template("{text}", " {mood}"),
        options,
        answer_field="mood",
        kind=kind,
        places={"7": "moods.csv, row 8"},
    )


@pytest.mark.parametrize(
    ("kind", "answer", "option", "values"),
    [
        ("classification", "خشم", 1, []),
        ("multi_label", "joy, fear", 0, [1, 0, 1]),
        ("multi_label", "none", 0, [0, 0, 0]),
        ("regression", "3.25", 0, [3.25]),
    ],
)
def test_what_a_head_is_to_answer(kind, answer, option, values):
    task = task_of(kind, answer, None if kind == "regression" else ("joy", "خشم", "fear"))
    [made] = labelled(task, task.splits["train"], TOKENIZER)
    assert made.ids.tolist() == TOKENIZER.prompt("چه روزی")
    assert made.option == option and made.values.tolist() == values and made.values.dtype == np.float32
    assert made.name == "moods.csv, row 8"


def test_a_head_does_not_answer_in_words():
    with pytest.raises(UserError, match="'t' is of the kind 'generation', which a head does not"):
        task = task_of("generation", "glad")
        labelled(task, task.splits["train"], TOKENIZER)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=40), max_size=6), st.integers(1, 12))
def test_pieces_predict_each_target_once(masks, length):
    whole = [Example(np.arange(len(mask)) + 100 * i, np.array(mask), str(i)) for i, mask in enumerate(masks)]
    pieces = chunked(whole, length)

    def targets(examples):
        return [(name, int(index)) for ids, counts, name in examples for index in ids[1:][counts[1:]]]

    assert targets(pieces) == targets(whole)
    for ids, counts, _ in pieces:
        assert 2 <= len(ids) <= length + 1 and counts[1:].any()
        assert (np.diff(ids) == 1).all()  # consecutive in the document


def test_a_document_that_fits_is_one_piece():
    [example] = documents(["گل"], TOKENIZER)
    [piece] = chunked([example], len(example.ids) - 1)
    assert piece.ids.tolist() == example.ids.tolist() and piece.counts.tolist() == example.counts.tolist()
