"""One model tuned for one task, for every kind of task, from its first line to the report."""

import gc
import json

import jax
import numpy as np
import pytest

from limbeck.evaluation.report import load_report
from limbeck.experiments import training
from limbeck.experiments.cli import main
from limbeck.model.params import nbytes
from limbeck.model.pretrained import load_pretrained
from limbeck.train.loop import fit
from limbeck.train.select import apply_selection

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
    model = load_pretrained(folder / "model")
    (own,) = model.lineage  # from random parameters
    assert (own.made, own.method, own.data[0].records) == ("pretrained", "full", 70)
    assert own.config["fit.steps"] == 12 and own.cost["seconds"] > 0 and own.cost["flops"] > 0
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert report["metric"].replace("_", "") in card.replace("_", "") and own.digest in card
    assert model.config.labels == {
        "classification": ("sour", "sweet"), "multi_label": ("lemon", "pear"), "regression": ("label",),
        "generation": (),
    }[kind]  # fmt: skip


def test_adapters_train_with_the_head_alone(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    lines = [json.dumps(ANSWERS["classification"](record(number))) for number in range(60)]
    data.write_text("\n".join(lines), encoding="utf-8")
    words = ["--task", str(data), "--model", "tiny", "--vocab-size", "300", "--max-len", "64"]
    words += ["--tuning", "lora", "--method.rank", "2"]
    words += ["--fit.steps", "2", "--fit.batch-size", "4", "--fit.length", "64"]
    assert main(["run", "sst2", "--workdir", str(tmp_path / "run"), *words]) == 0
    assert "in 15 leaves" in capsys.readouterr().err  # seven kernels with two each, and the head


@pytest.mark.parametrize("tuning", ["full", "last_blocks"])
def test_what_trains_is_held_once_beside_its_moments_and_what_is_frozen_once(tuning, tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(ANSWERS["generation"](record(n))) for n in range(60)))
    words = ["--task", str(tmp_path / "data.jsonl"), "--model", "tiny", "--vocab-size", "301", "--max-len", "64"]
    words += ["--fit.steps", "3", "--fit.batch-size", "4", "--fit.length", "64", "--fit.optim.name", "adamw"]
    held, due = [], []

    def watched(loss_fn, params, batch_at, *rest, **more):
        trainable, frozen = apply_selection(more["selection"], params)
        due.append(3 * nbytes(trainable) + nbytes(frozen))
        del trainable, frozen

        def counted(step):
            gc.collect()
            own = [leaf for leaf in jax.live_arrays() if id(leaf) not in known]
            held.append(sum(size for _, size in {(leaf.unsafe_buffer_pointer(), leaf.nbytes) for leaf in own}))
            return batch_at(step)

        return fit(loss_fn, params, counted, *rest, **more)

    monkeypatch.setattr(training, "fit", watched)
    others = jax.live_arrays()  # of other tests; held, so that none of them goes meanwhile
    known = set(map(id, others))
    assert main(["run", "sst2", "--workdir", str(tmp_path / "run"), "--tuning", tuning, *words]) == 0
    assert due[0] <= held[-1] < 1.05 * due[0]


def test_a_few_records_have_a_validation_record_and_a_new_head_always_trains(tmp_path, capsys):
    """Three distinct queries, of which a share of 0.1 by chance is none; the last block alone is asked to train."""
    rows = [ANSWERS["classification"]({**record(0), "text": fruit}) for fruit in ("lemon", "pear", "plum")] * 4
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = ["--task", str(tmp_path / "data"), "--model", "tiny", "--vocab-size", "300", "--max-len", "64"]
    words += ["--fit.steps", "2", "--fit.batch-size", "2", "--fit.length", "32", "--tuning", "blocks/3/.*"]
    words += ["--description", '{"options": ["sour", "sweet"]}']
    assert main(["run", "sst2", "--workdir", str(tmp_path / "run"), *words]) == 0
    assert "in 10 leaves" in capsys.readouterr().err  # seven kernels, two norms, and the head
    assert load_report(tmp_path / "run")["task"]["train"] == 8


def test_test_records_that_are_too_long_are_an_error_or_left_out_and_listed(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for split, numbers in (("train", range(60)), ("test", range(60, 80))):
        rows = [ANSWERS["classification"](record(number)) for number in numbers]
        if split == "test":
            rows[7]["text"] = "long " * 99
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    words = ["--task", str(tmp_path / "data"), "--model", "tiny", "--vocab-size", "300", "--max-len", "64"]
    words += ["--fit.steps", "1", "--fit.batch-size", "4", "--fit.length", "64", "--workdir"]
    assert main(["run", "sst2", *words, str(tmp_path / "strict")]) == 2
    assert "test.jsonl, row 8: " in (error := capsys.readouterr().err) and 'on_bad_row="skip"' in error
    assert main(["run", "sst2", *words, str(tmp_path / "run"), "--on-bad-row", "skip"]) == 0
    report = load_report(tmp_path / "run")
    assert ["test.jsonl, row 8: " in line for line in report["skipped"]] == [True]
    assert {row["metrics"]["accuracy"]["n"] for row in report["rows"]} == {19}  # the baselines', too


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
