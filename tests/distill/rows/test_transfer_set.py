"""The teacher's own queries and its answers, with a scripted teacher."""

from collections import Counter
from types import SimpleNamespace

import pytest

from limbeck.distill.rows import transfer_set
from limbeck.distill.rows.transfer_set import answered, sampled, write_transfer_set
from limbeck.inference.requests import GenerateRequest, Generation
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

TOKENIZER = byte_tokenizer()
DRAFTS = [("fig", True), (" plum ", True), ("fig", True), ("", True), ("unfinished", False), ("mute", True)]
ANSWERS = {"fig": " syconium", "plum": " drupe", "mute": " ", "endless": " and so", "two": " one\ntwo"}


class Scripted:
    """Writes the drafts in turn, and answers what it knows."""

    asked: list[GenerateRequest] = []
    weights_digest, tokenizer_digest, dtype = "w", "t", "float32"

    def __init__(self, config, params, tokenizer, batch_size=64):
        self.config, self.params, self.tokenizer, self.indexes = config, params, tokenizer, {}

    def prefix(self, adapter):
        return 0

    def generate(self, requests):
        Scripted.asked += requests
        if requests[0].sampling.temperature:
            texts = [DRAFTS[request.sample % len(DRAFTS)] for request in requests]
            return [Generation(text, (), 0.0, stopped) for text, stopped in texts]
        keys = [TOKENIZER.decode(request.prompt).removesuffix(":") for request in requests]
        return [Generation(ANSWERS[key], (), 0.0, key != "endless") for key in keys]

    def check(self, request):
        pass

    def answers(self, requests, only):
        for first in range(0, len(only), 100):
            part = only[first : first + 100]
            yield from zip(part, self.generate([requests[i] for i in part]), strict=True)


def task(template: Template) -> Task:
    def record(i: int) -> dict[str, str]:
        return {"id": str(i), "input": f"key{i}", "more": "x", "kind": "fruit", "output": "value"}

    return Task("t", {"train": (record(0), record(1)), "test": (record(2),)}, template, None, group_field="kind")


@pytest.fixture
def teacher(monkeypatch):
    monkeypatch.setattr(transfer_set, "Engine", Scripted)
    Scripted.asked = []
    return Scripted(SimpleNamespace(max_len=64), {}, TOKENIZER)


def test_distinct_finished_queries_with_the_teacher_s_answers(teacher):
    records = write_transfer_set(task(Template()), teacher, tokens=60, seed=3)
    assert [(record["input"], record["output"]) for record in records] == [("fig", "syconium"), ("plum", "drupe")]
    assert len({record["id"] for record in records}) == 2
    assert all(record["kind"] == "" for record in records)
    drafts = [request for request in Scripted.asked if request.sampling.temperature]
    assert len(drafts) == 60 // (len("key0") + 1)
    assert {request.prompt for request in drafts} == {(TOKENIZER.bos_id,)}  # nothing of the task's records
    assert {request.stop for request in drafts} == {(":", "\n")}
    assert [request.sample for request in drafts] == list(range(len(drafts)))
    assert {request.sampling.seed for request in drafts} == {3}


def test_a_text_before_the_field_begins_the_draft(teacher, monkeypatch):
    monkeypatch.setitem(ANSWERS, "Q: fig\nA", " syconium")
    monkeypatch.setitem(ANSWERS, "Q: plum\nA", " drupe")
    monkeypatch.setitem(ANSWERS, "Q: mute\nA", " ")
    write_transfer_set(task(Template("Q: {input}\nA:", separator="\n\n")), teacher, tokens=60, seed=0)
    assert TOKENIZER.decode(Scripted.asked[0].prompt) == "Q: "
    assert Scripted.asked[0].stop == ("\nA:", "\n")


def test_several_fields_are_not_made_up(teacher):
    assert write_transfer_set(task(Template("{input} {more}:")), teacher, tokens=60, seed=0) == []


def records(*names: str) -> list[dict[str, str]]:
    return [{"id": name, "input": name, "more": "x", "kind": "", "output": ""} for name in names]


def test_an_answer_that_is_empty_has_no_end_or_is_none_is_dropped(teacher):
    found = answered(task(Template()), teacher, records("fig", "mute", "endless", "two", "plum"))
    assert [(record["id"], record["output"]) for record in found] == [("fig", "syconium"), ("plum", "drupe")]
    number = Task("n", {"train": (one("1"),), "test": (one("2", "id2"),)}, Template(), None, kind="regression")
    assert answered(number, teacher, records("fig")) == [] and answered(task(Template()), teacher, []) == []


def one(answer: str, name: str = "id1") -> dict[str, str]:
    return {"id": name, "input": "x", "output": answer}


def draw(teacher, folder, names=("fig", "plum"), samples=12, **more):
    return sampled(task(Template()), teacher, records(*names), folder / "drawn.db", samples=samples, **more)


def test_as_many_draws_of_each_as_are_asked_for(teacher, tmp_path):
    found = draw(teacher, tmp_path, temperature=0.7, seed=5)
    assert {(r.sampling.temperature, r.sampling.seed, r.stop) for r in Scripted.asked} == {(0.7, 5, ("\n",))}
    prompts = Counter((TOKENIZER.decode(request.prompt), request.sample) for request in Scripted.asked)
    assert prompts == {(f"{name}:", sample): 1 for name in ("fig", "plum") for sample in range(12)}
    drafts = [text.strip() if stopped else "" for text, stopped in DRAFTS] * 2
    expected = {f"{name}/{n}": (name, text) for name in ("fig", "plum") for n, text in enumerate(drafts) if text}
    assert {record["id"]: (record["input"], record["output"]) for record in found} == expected
    assert list(expected.values()).count(("fig", "fig")) == 4  # as often as it was drawn


def test_a_killed_run_goes_on_and_a_finished_one_asks_nothing(teacher, tmp_path, monkeypatch):
    real = Scripted.generate

    def until_killed(self, requests):
        if Scripted.asked:
            raise KeyboardInterrupt
        return real(self, requests)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Scripted, "generate", until_killed)
        draw(teacher, tmp_path, samples=200)
    before = len(Scripted.asked)
    found = draw(teacher, tmp_path, samples=200)
    assert 0 < before < 400 == len(Scripted.asked) == len(set(Scripted.asked))
    assert draw(teacher, tmp_path, samples=200) == found and len(Scripted.asked) == 400
    (tmp_path / "whole").mkdir()
    assert draw(teacher, tmp_path / "whole", samples=200) == found
    monkeypatch.setattr(Scripted, "weights_digest", "another")
    with pytest.raises(UserError, match="was made with weights w, not another"):
        draw(teacher, tmp_path)


def test_what_the_teacher_refuses_is_said_and_dropped(teacher, tmp_path, monkeypatch, capsys):
    real = Scripted.generate

    def refuse(self, requests):
        if any(request.sample == 1 for request in requests):
            raise UserError("no room")
        return real(self, requests)

    monkeypatch.setattr(Scripted, "generate", refuse)
    assert [record["id"] for record in draw(teacher, tmp_path, samples=3)] == ["fig/0", "fig/2", "plum/0", "plum/2"]
    assert "note: 2 of 6 were refused: no room" in capsys.readouterr().err


def test_what_cannot_be_sampled_is_one_line(teacher, tmp_path):
    closed = Task("c", {"train": (one("a"),), "test": (one("b", "id2"),)}, Template(), ("a", "b"))
    with pytest.raises(UserError, match="task 'c' is a classification, .* scored, not written") as error:
        sampled(closed, teacher, [one("a")], tmp_path / "drawn.db", samples=2)
    assert "\n" not in str(error.value)
    for samples, temperature in ((0, 1.0), (1, 0.0)):
        with pytest.raises(UserError, match="must be at least 1, and more than 0"):
            draw(teacher, tmp_path, samples=samples, temperature=temperature)
