"""The teacher's own queries, with a scripted teacher."""

from types import SimpleNamespace

import pytest

from limbeck.distill import transfer_set
from limbeck.distill.transfer_set import write_transfer_set
from limbeck.inference.requests import GenerateRequest, Generation
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.tasks.task import Task, Template

TOKENIZER = byte_tokenizer()
DRAFTS = [("fig", True), (" plum ", True), ("fig", True), ("", True), ("unfinished", False), ("mute", True)]
ANSWERS = {"fig": " syconium", "plum": " drupe", "mute": " "}


class Scripted:
    """Writes the drafts in turn, and answers what it knows."""

    asked: list[GenerateRequest] = []

    def __init__(self, config, params, tokenizer, batch_size=64):
        self.config, self.params, self.tokenizer = config, params, tokenizer

    def prefix(self, adapter):
        return 0

    def generate(self, requests):
        Scripted.asked += requests
        if requests[0].sampling.temperature:
            texts = [DRAFTS[request.sample % len(DRAFTS)] for request in requests]
            return [Generation(text, (), 0.0, stopped) for text, stopped in texts]
        keys = [TOKENIZER.decode(request.prompt).removesuffix(":") for request in requests]
        return [Generation(ANSWERS[key], (), 0.0, True) for key in keys]


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
