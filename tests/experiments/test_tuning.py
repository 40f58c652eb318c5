"""One model tuned for one task, for every kind of task, from its first line to the report."""

import json

import numpy as np
import pytest

from limbeck.evaluation.report import load_report
from limbeck.experiments.cli import main
from limbeck.model.pretrained import load_pretrained

FRUITS = ("lemon", "pear", "plum", "لیمو", "گلابی", "cherry")


def record(number: int) -> dict:
    rng = np.random.default_rng(number)
    fruit, other = rng.choice(FRUITS, 2, replace=False)
    return {"text": f"{fruit} and {other}", "number": number, "fruits": [fruit, other]}


ANSWERS = {
    "classification": lambda row: {**row, "label": "sour" if "lemon" in row["text"] else "sweet"},
    "multi_label": lambda row: {**row, "label": [f for f in row["fruits"] if f in ("lemon", "pear")]},
    "regression": lambda row: {**row, "label": row["text"].count("l") + 0.5},
    "generation": lambda row: {**row, "label": f"{row['fruits'][0]} {row['number']}"},
}
MAIN = {"classification": "accuracy", "multi_label": "micro_f1", "regression": "pearson", "generation": "accuracy"}


@pytest.mark.parametrize("kind", ANSWERS)
def test_every_kind_of_task_is_tuned_for(kind, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for split, numbers in (("train", range(80)), ("test", range(80, 100))):
        lines = [json.dumps(ANSWERS[kind](record(number)), ensure_ascii=False) for number in numbers]
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    description: dict = {"kind": kind, "input": "text", "output": "label"}
    if kind in ("classification", "multi_label"):
        description["options"] = ["sour", "sweet"] if kind == "classification" else ["lemon", "pear"]
    folder = tmp_path / "run"
    settings = {"fit.steps": 12, "fit.batch-size": 4, "fit.length": 64, "fit.evaluate-every": 6, "vocab-size": 300}
    settings |= {"task": data, "model": "tiny", "max-len": 64, "description": json.dumps(description)}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["run", "sst2", "--workdir", str(folder), *words]) == 0
    assert f"parameters train (100.00%), in {12 if kind != 'generation' else 11} leaves" in capsys.readouterr().err
    report = load_report(folder)
    assert report["metric"] == MAIN[kind]
    assert "tuned" in [row["method"] for row in report["rows"]] and len(report["rows"]) >= 2
    for row in report["rows"]:
        found = row["metrics"][report["metric"]]
        assert found["n"] == 20 and found["ci95"][0] <= found["value"] <= found["ci95"][1]
    assert [found["step"] for found in report["evaluations"]["tune"]] == [6, 12]
    assert load_pretrained(folder / "model").config.labels == {
        "classification": ("sour", "sweet"), "multi_label": ("lemon", "pear"), "regression": ("label",),
        "generation": (),
    }[kind]  # fmt: skip


def test_adapters_train_with_the_head_alone(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    lines = [json.dumps(ANSWERS["classification"](record(number))) for number in range(60)]
    data.write_text("\n".join(lines), encoding="utf-8")
    words = ["--task", str(data), "--model", "tiny", "--vocab-size", "300", "--max-len", "64", "--lora-rank", "2"]
    words += ["--fit.steps", "2", "--fit.batch-size", "4", "--fit.length", "64"]
    assert main(["run", "sst2", "--workdir", str(tmp_path / "run"), *words]) == 0
    assert "in 15 leaves" in capsys.readouterr().err  # seven kernels with two each, and the head


@pytest.mark.parametrize(
    "words, message",
    [
        (["--task", ""], "task is not said: give --task, a file or a folder"),
        (["--held-out", "2"], "held_out=2.0"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(words, message, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    lines = [json.dumps(ANSWERS["classification"](record(number))) for number in range(60)]
    data.write_text("\n".join(lines), encoding="utf-8")
    arguments = ["run", "sst2", "--workdir", str(tmp_path / "run"), "--task", str(data), *words]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and error[-1].startswith("limbeck: ")
