"""Students of a teacher from its folder to the report: on tasks with a head and in text, and on plain text."""

import json

import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.evaluation.report import load_report
from limbeck.experiments.cli import main
from limbeck.experiments.distillation_config import TeachingConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained

COLOURS = ("red", "blue", "green", "سرخ")
SIZES = ["--fit.batch-size", "4", "--fit.length", "48", "--vocab-size", "300", "--max-len", "48"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, numbers in (("train", range(60)), ("test", range(60, 80))):
        rows = [{"text": f"{COLOURS[n % 4]} {n}", "label": "odd" if n % 2 else "even"} for n in numbers]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


def tuned(folder, data, *words):
    """The folder of a teacher: a tiny model after two steps."""
    run = ["run", "sst2", "--workdir", str(folder), "--task", str(data), "--model", "tiny", "--fit.steps", "2", *SIZES]
    assert main([*run, *words]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    return tuned(tmp_path_factory.mktemp("teacher"), data)


def distilled(folder, data, teacher, *words):
    run = ["run", "distil_sst2", "--workdir", str(folder), "--task", str(data), "--model", str(teacher), *SIZES]
    return main([*run, "--fit.steps", "3", "--evaluate-every", "3", *words])


def test_a_student_stands_beside_its_teacher_and_the_same_student_without_one(data, teacher, tmp_path, capsys):
    folder = tmp_path / "run"
    assert distilled(folder, data, teacher, "--shares", "0.5") == 0
    said = capsys.readouterr().err
    assert 0 <= said.index("the teacher: accuracy") < said.index("steps")  # before a student is trained
    report = load_report(folder)
    rows = {row["method"]: row for row in report["rows"]}
    whole = rows["teacher"]["params_total"]
    for name in ("distilled_0.5", "alone_0.5"):
        row = rows[name]
        assert 0.4 * whole < row["params_total"] <= 0.51 * whole and row["params_trainable"] == row["params_total"]
        assert row["metrics"]["agreement"]["n"] == 20 and row["per_second"] > 0 and row["latency_ms_p50"] > 0
        saved = load_pretrained(folder / "student_0.5" / name.split("_")[0] / "model")
        assert not any(path.startswith("teacher") for path in saved.params)
    assert rows["distilled_0.5"]["flops_per_step"] > rows["alone_0.5"]["flops_per_step"]  # the teacher reads along
    groups = report["disagreement"]["distilled_0.5"]
    assert {row["group"] for row in groups} == {"odd", "even"} and sum(row["n"] for row in groups) == 20
    assert "Where distilled_0.5 and its teacher differ" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_cached_teacher_is_asked_once_and_a_method_of_tuning_is_one_word(data, teacher, tmp_path, capsys):
    words = ["--shares", "0.5", "--cache", "topk", "--kept", "2", "--control", "False", "--tuning", "bias"]
    folder = tmp_path / "run"
    assert distilled(folder, data, teacher, *words, "--temperature", "1") == 0
    row = next(row for row in load_report(folder)["rows"] if row["method"] == "distilled_0.5")
    assert row["params_trainable"] < 0.02 * row["params_total"] + 600  # the biases and the head


def test_tasks_in_text_have_own_answers_and_prompts_that_the_student_does_not_see(data, tmp_path):
    teacher = tuned(tmp_path / "teacher", data, "--head", "False")
    for name, words in {
        "own": ["--own", "0.5"],
        "prompt": ["--shots", "1"],
        "written": ["--description", '{"kind": "generation"}', "--written", "1"],
    }.items():
        words = [*words, "--head", "False", "--shares", "0.5", "--control", "False", "--hard-weight", "0"]
        assert distilled(tmp_path / name, data, teacher, *words) == 0
        assert {row["method"] for row in load_report(tmp_path / name)["rows"]} >= {"teacher", "distilled_0.5"}


def test_a_language_model_is_distilled_on_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The {COLOURS[n % 4]} house has {n} windows." for n in range(200)), encoding="utf-8")
    words = ["--texts", str(text), "--root", "/", "--fit.batch-size", "4", "--fit.length", "32", "--fit.steps", "3"]
    first = ["run", "shakespeare", "--workdir", str(tmp_path / "teacher"), "--model", "tiny", "--vocab-size", "300"]
    assert main([*first, *words, "--max-len", "64"]) == 0
    run = ["run", "distil_stories", "--workdir", str(tmp_path / "run"), "--model", str(tmp_path / "teacher" / "model")]
    assert main([*run, *words, "--shares", "0.5", "--cache", "topk_tail", "--kept", "4"]) == 0
    report = load_report(tmp_path / "run")
    assert [row["method"] for row in report["rows"]] == ["teacher", "distilled_0.5", "alone_0.5"]
    assert all(row["metrics"]["bits_per_byte"]["value"] > 0 for row in report["rows"])
    assert {text["prompt"].split(":")[0] for text in report["texts"]} == {"teacher", "distilled_0.5", "alone_0.5"}


def test_a_teacher_without_the_tasks_head_is_refused(data, tmp_path, capsys):
    teacher = tuned(tmp_path / "teacher", data, "--head", "False")
    assert distilled(tmp_path / "run", data, teacher) == 2
    assert "has a head for: none" in (error := capsys.readouterr().err) and "tune it for the task first" in error


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"own": 1.5}, "own=1.5"),
        ({"own": 0.5, "distil": DistilConfig(cache="topk")}, "asks a live teacher"),
        ({"own": 0.5, "shots": 2}, "cannot read the student's answers"),
        ({"shares": (0.5,), "student": StudentConfig(depth=1)}, "leave out"),
        ({"kept": 0}, "kept=0"),
    ],
)
def test_what_cannot_be_is_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        TeachingConfig(**fields)
