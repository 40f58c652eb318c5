"""The whole lesson in miniature: every stage runs, the report is whole, and an interrupted run ends the same."""

import dataclasses
import json
import shutil

import pytest

from limbeck.experiments import lesson, stages
from limbeck.experiments.lesson_config import LessonConfig, tuning
from limbeck.experiments.origins import lineage_at, related
from limbeck.experiments.rundir import open_run
from limbeck.model.config import ModelConfig

pytestmark = pytest.mark.slow

MODEL = ModelConfig(
    vocab_size=400, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=256,
    attention_bias=True, mlp_bias=True,
)
FEW = tuning(steps=4, learning_rate=1e-3, batch_size=4, length=64)
CONFIG = LessonConfig(
    base=MODEL,
    student=dataclasses.replace(MODEL, width=8, depth=1, head_dim=4),
    pretrain=FEW, full=FEW, lora=FEW, bias_norm=FEW, last_block=FEW, distil=FEW,
    documents=300, shots=2, lora_rank=2, transfer_tokens=2_000,
)
LABELS = {"good": "positive", "bad": "negative", "خوب": "positive", "بد": "negative"}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    rows = [{"text": f"{word} film {i}", "label": label} for i in range(20) for word, label in LABELS.items()]
    for name, part in (("train", rows[:60]), ("test", rows[60:])):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def run(folder, config) -> tuple[int, dict]:
    with open_run(folder, config, ["limbeck", "run", "quickstart"]) as rundir:
        status = lesson.run(config, rundir)
    return status, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def quality(report: dict) -> dict:
    return {row["method"]: (row["metrics"], row["params_total"]) for row in report["rows"]}


def test_every_stage_runs_and_a_resumed_run_ends_the_same(tmp_path, task, monkeypatch):
    config = dataclasses.replace(CONFIG, task=str(task))
    status, report = run(tmp_path / "a", config)
    methods = [row["method"] for row in report["rows"]]
    assert methods == [*lesson.PROMPTED, *lesson.TRAINED, "tfidf_logistic", "commonest"]
    assert status == (0 if all(claim["holds"] for claim in report["claims"]) else 1)
    assert {"tuned_beats_base", "prompting_moves_nothing"} <= {claim["name"] for claim in report["claims"]}
    by_name = {claim["name"]: claim["holds"] for claim in report["claims"]}
    for name in ("every_parameter_moved", "peft_moves_a_subset", "prompting_moves_nothing", "bias_is_measured"):
        assert by_name[name], name
    assert report["offline"]["coverage"] == 1.0 and report["offline"]["same_answers"]
    assert report["metric"] == "accuracy"
    assert all(set(row["metrics"]) == {"accuracy", "macro_f1", "matthews"} for row in report["rows"])
    kin = ("base", "full", "distilled", "student_alone")
    family = {name: lineage_at(tmp_path / "a" / "models" / name) for name in kin}
    assert [each.name for each in family["distilled"]] == ["distilled", "full", "base"]
    assert [family[name][0].made for name in family] == ["pretrained", "tuned", "distilled", "pretrained"]
    assert set(related(family)) == {("base", "full"), ("full", "distilled"), ("student_alone", "distilled")}
    for name in lesson.TRAINED:
        told = json.loads((tmp_path / "a" / "models" / name / "card.json").read_text(encoding="utf-8"))["sections"]
        probed = name in lesson.PROBED.values()
        assert [bool(told[part]) for part in ("data", "evaluation", "bias", "energy")] == [True, True, probed, True]
    probed = {row["method"] for row in report["rows"] if row.get("stereotyped")}
    assert probed == {*lesson.PROMPTED, "full", "distilled", "student_alone"}
    assert all(row["train_joules"] >= 0 for row in report["rows"] if row["method"] in lesson.TRAINED)
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "tfidf_logistic" in page and "خوب" in page

    # Killed after two of LoRA's steps, then started again.
    class Killed(Exception):
        pass

    fit, calls = stages.fit, []

    def fit_until_killed(loss_fn, params, batch_at, *rest, name, **more):
        def until_killed(step):
            if name == "lora" and step == 2 and not calls:
                calls.append(step)
                raise Killed
            return batch_at(step)

        return fit(loss_fn, params, until_killed, *rest, name=name, **more)

    monkeypatch.setattr(stages, "fit", fit_until_killed)
    with pytest.raises(Killed):
        run(tmp_path / "b", config)
    _, resumed = run(tmp_path / "b", config)
    assert quality(resumed) == quality(report)

    # A stage whose file is lost is computed again, to the same numbers.
    shutil.rmtree(tmp_path / "a" / "models" / "distilled")
    for name in ("train_distilled", "distilled", "bias"):
        (tmp_path / "a" / "stages" / f"{name}.json").unlink()
    _, again = run(tmp_path / "a", config)
    assert quality(again) == quality(report)


def test_the_world_s_ambiguous_names_are_reported(tmp_path):
    _, report = run(tmp_path / "world", CONFIG)
    assert "zero_shot_is_ambiguous" in {claim["name"] for claim in report["claims"]}
    assert abs(sum(share for _, share in report["ambiguity"]["zero_shot"]) - 1) < 1e-6
