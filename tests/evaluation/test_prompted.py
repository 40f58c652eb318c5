"""A prompt's row: its settings, every variant, every view of the stored scores, votes of fewer samples; ensembles."""

import dataclasses
import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.evaluation import prompted as room
from limbeck.evaluation.asked import load_asked
from limbeck.evaluation.measure import all_metrics
from limbeck.evaluation.prompted import prompted, together, views
from limbeck.inference.requests import Generation, Scores
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import Asked, predict
from limbeck.tasks.label_metrics import macro_f1
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

OPTIONS = ("sour", "سرخ و شیرین")
ROWS = tuple({"id": f"{n}", "input": f"میوه {n}", "output": OPTIONS[n % 3 == 0]} for n in range(24))
SPLITS = {"train": ROWS[:12], "test": ROWS[12:]}
CHOICE = Task("fruit", SPLITS, Template(), OPTIONS, metric="macro_f1")
TEST = SPLITS["test"]


class Scripted:
    """An engine that draws what it says, by what it is asked."""

    tokenizer, config, indexes = byte_tokenizer(), SimpleNamespace(max_len=256), {}

    def prefix(self, adapter: str = "") -> int:
        return 0

    def score(self, requests) -> list[Scores]:
        drawn = [[-random.Random(f"{r.prompt}{each}").uniform(0, 9) for each in r.options] for r in requests]
        return [Scores(tuple(row), tuple(map(len, r.options))) for row, r in zip(drawn, requests, strict=True)]

    def generate(self, requests) -> list[Generation]:
        said = [random.Random(f"{r.prompt}{r.sample}").choice(["a", "b", "7"]) for r in requests]
        return [Generation(text, (1,), 0.0, True) for text in said]


ENGINE: Any = Scripted()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What a request costs is measured of real engines, in test_measure.py."""

    def measure(task, engine, records, prompt):
        said = predict(task, engine, records, prompt)
        metrics = all_metrics(task, said.answers, [task.answer(record) for record in records])
        asked = float(np.mean(said.prompt_tokens))
        row = {"metrics": metrics, "prompt": {**room.changes(prompt), "seed": prompt.seed}, "prompt_tokens": asked}
        return {**row, "latency_ms_p50": asked / 2, "flops_per_request": 9.0, "params_total": 5, "bytes": 20}, said

    monkeypatch.setattr(room, "measure", measure)


def asked_of(run, name) -> list[Asked]:
    return [Asked(**{key: row[key] for key in Asked._fields}) for row in load_asked(run, name)]


def test_a_row_says_how_it_was_asked_and_what_each_variant_scored(tmp_path, monkeypatch, capsys):
    prompt = PromptConfig(shots=2, pick="fixed", examples=("3", "1"), seed=4)
    refused = []

    def fewer(task, engine, records, other):
        if other != prompt and not refused:
            refused.append(other)
            raise UserError("no room for it")
        return predict(task, engine, records, other)

    monkeypatch.setattr(room, "predict", fewer)
    done = prompted(tmp_path, CHOICE, ENGINE, "few_shot", prompt, count=4, records=7, seed=1)
    row = json.loads(json.dumps(done["row"]))
    settings = {"shots": 2, "pick": "fixed", "examples": ["3", "1"], "seed": 4}
    assert row["prompt"] == settings and load_asked(tmp_path, "few_shot")[0]["prompt"] == settings
    first, other, *rest = row["variants"]
    part = sorted(np.random.default_rng(1).permutation(12)[:7])
    alone = macro_f1([done["answers"][i] for i in part], [TEST[i]["output"] for i in part])
    assert first == {"changes": {}, "value": alone.value, "ci95": list(alone.ci95), "n": 7}
    changed = {name: getattr(refused[0], name) for name in other["changes"]}
    assert changed and dataclasses.replace(prompt, **changed) == refused[0]
    assert other["error"] == "no room for it" and "value" not in other and "left out" in capsys.readouterr().err
    assert len(rest) == 2 and all(each["changes"] and each["n"] == 7 for each in rest)
    values = [each["value"] for each in (first, *rest)]
    assert row["spread"] == {"minimum": min(values), "median": sorted(values)[1], "maximum": max(values), "n": 3}


def test_a_prompt_alone_has_no_spread_and_a_calibrated_one_no_views(tmp_path):
    prompt = PromptConfig(calibration="contextual")
    done = prompted(tmp_path, CHOICE, ENGINE, "zero_shot", prompt, count=1, records=7, seed=1)
    assert done["row"]["prompt"] == {"calibration": "contextual", "seed": 0}
    assert not {"spread", "variants", "views", "by_samples"} & done["row"].keys()
    assert tuple(done["answers"]) == predict(CHOICE, ENGINE, TEST, prompt).answers


def test_every_view_that_was_stored_has_its_quality(tmp_path):
    done = prompted(tmp_path, CHOICE, ENGINE, "zero_shot", PromptConfig(view="pmi"), count=1, records=7, seed=1)
    found = done["row"]["views"]
    assert list(found) == ["sum", "per_token", "per_character", "per_byte", "pmi", "domain_pmi"]
    said = asked_of(tmp_path, "zero_shot")
    by_hand = {
        "sum": lambda one: one.scores["logprob"],
        "per_token": lambda one: np.divide(one.scores["logprob"], one.scores["tokens"]),
        "per_character": lambda one: np.divide(one.scores["logprob"], [len(text) for text in one.option_texts]),
        "per_byte": lambda one: np.divide(one.scores["logprob"], [len(text.encode()) for text in one.option_texts]),
        "pmi": lambda one: np.subtract(one.scores["logprob"], one.scores["alone"]),
        "domain_pmi": lambda one: np.subtract(one.scores["logprob"], one.scores["domain"]),
    }
    for name, score in by_hand.items():
        expected = macro_f1([OPTIONS[int(np.argmax(score(one)))] for one in said], [one.right for one in said])
        assert found[name] == {"value": expected.value, "ci95": list(expected.ci95), "n": 12}, name
    assert found["pmi"] == done["row"]["metrics"]["macro_f1"] and len({each["value"] for each in found.values()}) > 1
    plain = predict(CHOICE, ENGINE, TEST[:3], PromptConfig()).asked
    assert list(views(CHOICE, plain)) == ["sum", "per_token", "per_character", "per_byte"]


def test_samples_have_an_accuracy_by_their_number_and_numbers_none(tmp_path):
    prompt = PromptConfig(samples=3, temperature=5.0, max_new_tokens=2)
    letters = [{**row, "output": "ab"[n % 2]} for n, row in enumerate(ROWS)]
    spoken = Task("letters", {"train": tuple(letters[:12]), "test": tuple(letters[12:])}, Template(), None)
    done = prompted(tmp_path, spoken, ENGINE, "few_shot", prompt, count=1, records=7, seed=1)
    said = asked_of(tmp_path, "few_shot")
    first, _, last = done["row"]["by_samples"]
    assert (first["samples"], last["samples"], last["n"]) == (1, 3, 12)
    assert first["value"] == pytest.approx(np.mean([[text == one.right for text in one.read] for one in said]))
    assert "views" not in done["row"]
    numbers = tuple({**row, "output": str(n)} for n, row in enumerate(ROWS))
    counted = Task("count", {"train": numbers[:12], "test": numbers[12:]}, Template(), None, kind="regression")
    assert "by_samples" not in prompted(tmp_path, counted, ENGINE, "n", prompt, count=1, records=1, seed=1)["row"]


def test_an_ensemble_costs_the_sum_of_its_prompts_and_the_last_decides_a_tie(tmp_path):
    rows = {}
    for name, shots in (("zero_shot", 0), ("few_shot", 2)):
        done = prompted(tmp_path, CHOICE, ENGINE, name, PromptConfig(shots=shots), count=1, records=1, seed=0)
        spent = {"train_seconds": 3.0 * shots, "train_flops": 0.0, "params_trainable": 0}
        rows[name] = {**done["row"], **spent, "joules_per_prediction": None if shots else 1.0}
    done = together(tmp_path, CHOICE, rows)
    row = done["row"]
    for key in ("prompt_tokens", "latency_ms_p50", "flops_per_request", "train_seconds"):
        assert row[key] == pytest.approx(rows["zero_shot"][key] + rows["few_shot"][key]), key
    assert row["joules_per_prediction"] is None and row["params_total"] == rows["few_shot"]["params_total"]
    assert row["prompt"] == {"members": ["zero_shot", "few_shot"]}
    logits = [np.array([one.scores["score"] for one in asked_of(tmp_path, name)]) for name in rows]
    chances = sum(np.exp(one - np.logaddexp.reduce(one, axis=1, keepdims=True)) for one in logits)
    expected = [OPTIONS[i] for i in np.argmax(chances, axis=1)]
    assert done["answers"] == expected
    assert row["metrics"]["macro_f1"]["value"] == macro_f1(expected, [r["output"] for r in TEST]).value
    for name, answer in (("zero_shot", "a"), ("few_shot", "b")):
        lines = [json.dumps({**one, "scores": {}, "answer": answer}) for one in load_asked(tmp_path, name)]
        (tmp_path / "asked" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert together(tmp_path, CHOICE, rows)["answers"] == ["b"] * 12
