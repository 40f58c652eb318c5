"""Students of a teacher from its folder to the report: on tasks with a head and in text, and on plain text."""

import dataclasses
import json
import re
from functools import partial

import jax
import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.match_config import MatchConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.evaluation.report import load_report
from limbeck.experiments.adaptation_config import AdaptationConfig
from limbeck.experiments.answering import Setting
from limbeck.experiments.cli import main
from limbeck.experiments.distillation_config import DistillationConfig, TeachingConfig, TextDistillationConfig
from limbeck.experiments.origins import lineage_at
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.start import Start
from limbeck.experiments.teaching import task_rows, taught_by, training_records
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.tokenizer import train_bpe
from limbeck.model.transformer import init
from limbeck.tasks.sources import load_task
from limbeck.train.config import FitConfig
from limbeck.train.examples import completions
from limbeck.train.select import Selection

COLOURS = ("red", "blue", "green", "سرخ")
SIZES = ["--fit.batch-size", "4", "--fit.length", "48"]
ROWS = [
    {"text": f"{COLOURS[n % 4]} {n}", "label": "odd" if n % 2 else "even", "why": f"{n // 2} pairs"} for n in range(80)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, rows in (("train", ROWS[:60]), ("test", ROWS[60:])):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


def teacher_in(folder, labels=()):
    """A folder with a small model of random parameters, and a tokenizer: what it says is all the same here."""
    tokenizer = train_bpe([row["text"] for row in ROWS], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 2, 4, 2, 8, 64, 48, labels=labels)
    save_pretrained(folder, config, init(config, jax.random.key(0)), tokenizer)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_in(tmp_path_factory.mktemp("teacher"), ("even", "odd"))


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
        assert 0.4 * whole < row["params_total"] <= 0.5 * whole and row["params_trainable"] == row["params_total"]
        assert row["metrics"]["agreement"]["n"] == 20 and row["per_second"] > 0 and row["latency_ms_p50"] > 0
        saved = load_pretrained(folder / "student_0.5" / name.split("_")[0] / "model")
        assert not any(path.startswith("teacher") for path in saved.params)
        own, *before = saved.lineage
        assert (own.made, own.data[0].records) == ("distilled" if name == "distilled_0.5" else "tuned", 53)
        assert [each.made for each in before] == ["pruned", "found"]  # the teacher's folder tells no lineage
        roles = {parent.role for parent in own.parents}
        assert roles == ({"base", "teacher"} if name == "distilled_0.5" else {"base"})
        card = (folder / "student_0.5" / name.split("_")[0] / "model" / "README.md").read_text(encoding="utf-8")
        assert "accuracy" in card and own.digest in card
    assert rows["distilled_0.5"]["flops_per_step"] > rows["alone_0.5"]["flops_per_step"]  # the teacher reads along
    groups = report["disagreement"]["distilled_0.5"]
    assert {row["group"] for row in groups} == {"odd", "even"} and sum(row["n"] for row in groups) == 20
    assert "Where distilled_0.5 and its teacher differ" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_cached_teacher_is_asked_once_and_a_method_of_tuning_is_one_word(data, teacher, tmp_path, capsys):
    words = ["--shares", "0.5", "--cache", "topk", "--kept", "2", "--control", "False", "--tuning", "bias"]
    folder = tmp_path / "run"
    assert distilled(folder, data, teacher, *words, "--temperature", "1") == 0
    assert re.search(r"the cached teacher takes \d+ bytes a token", capsys.readouterr().err)
    row = next(row for row in load_report(folder)["rows"] if row["method"] == "distilled_0.5")
    assert row["params_trainable"] < 0.02 * row["params_total"] + 600  # the biases and the head


WHY = '{"input": "text", "output": "label", "rationale": "why"}'


@pytest.mark.parametrize(
    "words",
    [["--own", "0.5"], ["--shots", "1"], ["--written", "1"], ["--rationales", "0.5", "--description", WHY]],
    ids=["own answers", "a prompt it does not see", "the teacher's answers", "reasons"],
)
def test_students_of_tasks_that_are_answered_in_text(words, data, tmp_path):
    words = [*words, "--head", "False", "--shares", "0.5", "--control", "False", "--hard-weight", "0"]
    assert distilled(tmp_path / "run", data, teacher_in(tmp_path / "teacher"), *words) == 0
    assert {row["method"] for row in load_report(tmp_path / "run")["rows"]} >= {"teacher", "distilled_0.5"}
    (own, *_) = lineage_at(tmp_path / "run" / "student_0.5" / "distilled" / "model")
    written = words[0] == "--written"  # the records' own reasons are not the teacher's
    assert written == ("as its teacher wrote it" in own.data[0].name)
    assert written == (tmp_path / "run" / "distillation_set" / "README.md").exists()


def test_reasons_and_queries_of_the_teacher_are_rows_to_learn_from(data, tmp_path):
    """The rows are read where they are made: a short run's students say little."""
    teacher = load_pretrained(teacher_in(tmp_path / "teacher"))
    assert teacher.tokenizer is not None
    start = Start(teacher.config, teacher.params, teacher.tokenizer, Selection())
    task = load_task(data, description=json.loads(WHY))
    at = Setting(TuningConfig(task=str(data), model="m", fit=FitConfig(3), head=False), tmp_path, task, False)
    fit = FitConfig(3, length=48)

    def tokens(**fields):
        config = TeachingConfig(**fields)
        rows = task_rows(config, fit, at, start, start, training_records(config, at, start, 0), 0)
        return sum(int((group["weights_BT"] > 0).sum()) for part in rows for group in part.groups)

    answers = completions(task, task.splits["train"], start.tokenizer)
    assert tokens() == 0  # tuning's own rows serve
    right, reasons = sum(int(each.counts.sum()) for each in answers), tokens(rationales=0.5)
    texts = [f" {row['why']}{task.template.separator}" for row in ROWS[:60]]
    assert reasons - right == sum(len(start.tokenizer.encode(text)) for text in texts)
    assert tokens(transfer_tokens=20_000) > right
    written = json.loads((tmp_path / "stages" / "transfer_set.json").read_text(encoding="utf-8"))["result"]
    assert {record["label"] for record in written} <= {"even", "odd"} and written


@pytest.mark.parametrize("asked", [("transfer-tokens", "40"), ("shots", "2"), ("instruction", "Even?")], ids=" ".join)
def test_what_is_only_of_a_model_that_writes_is_refused_under_a_head(asked, data, teacher, tmp_path, capsys):
    name, value = asked
    assert distilled(tmp_path / "run", data, teacher, "--shares", "0.5", f"--{name}", value) == 2
    told = f"{name.replace('-', '_')}={value} is of tasks that are answered in text: set head=False"
    assert told in capsys.readouterr().err


def test_a_student_with_a_shape_of_its_own_is_the_only_one():
    shares = (0.5, 0.25)
    assert list(TeachingConfig(shares=shares).students()) == ["student_0.5", "student_0.25"]
    for own in (StudentConfig(depth=1), StudentConfig(params=0.3), StudentConfig(start="a/folder")):
        assert TeachingConfig(shares=shares, student=own).students() == {"student": own}


def test_a_teacher_that_ends_no_answer_is_one_line(data, tmp_path, capsys):
    words = ["--description", '{"kind": "generation"}', "--head", "False", "--shares", "0.5", "--written", "1"]
    assert distilled(tmp_path / "run", data, teacher_in(tmp_path / "teacher"), *words) == 2
    assert "the teacher wrote no answer that ends to any of" in capsys.readouterr().err


def test_a_language_model_is_distilled_on_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The {COLOURS[n % 4]} house has {n} windows." for n in range(200)), encoding="utf-8")
    words = ["--texts", str(text), "--root", "/", "--fit.batch-size", "4", "--fit.length", "32", "--fit.steps", "3"]
    teacher = teacher_in(tmp_path / "teacher")
    run = ["run", "distil_stories", "--workdir", str(tmp_path / "run"), "--model", str(teacher)]
    assert main([*run, *words, "--shares", "0.5", "--cache", "topk_tail", "--kept", "4"]) == 0
    report = load_report(tmp_path / "run")
    assert [row["method"] for row in report["rows"]] == ["teacher", "distilled_0.5", "alone_0.5"]
    assert all(row["metrics"]["bits_per_byte"]["value"] > 0 for row in report["rows"])
    assert {text["prompt"].split(":")[0] for text in report["texts"]} == {"teacher", "distilled_0.5", "alone_0.5"}


def test_a_teacher_without_the_tasks_head_is_refused(data, tmp_path, capsys):
    assert distilled(tmp_path / "run", data, teacher_in(tmp_path / "teacher")) == 2
    assert "has a head for: none" in (error := capsys.readouterr().err) and "tune it for the task first" in error


@pytest.mark.parametrize("term", ["hidden", "attention", "relations"])
def test_features_are_not_matched_in_portions_of_a_batch(term, tmp_path, capsys):
    """Portions are weighed by their targets and features are of all tokens, so the step is another than the batch's."""
    match, parts = dataclasses.replace(MatchConfig(), **{term: 2.0}), FitConfig(accumulate=2)
    matched = TeachingConfig(match=match, shares=(0.5,))
    of_task, on_text = TuningConfig("x", "m", parts), PretrainingConfig(parts, texts=("x",))
    def adapted(teaching):
        return AdaptationConfig(of_task, teaching=teaching)

    for build in (partial(DistillationConfig, of_task), partial(TextDistillationConfig, on_text), adapted):
        with pytest.raises(UserError, match=rf"^accumulate=2 .* \({term}=2\)[^\n]*: set accumulate=1"):
            build(matched)
        build(TeachingConfig(shares=(0.5,)))
    whole = dataclasses.replace(of_task, fit=FitConfig())
    assert DistillationConfig(whole, matched).teaching.match == matched.match
    with pytest.raises(UserError, match="accumulate=2"):
        taught_by([], matched, parts, tmp_path, 0)  # before anything of the teachers is looked at
    words = ["--fit.accumulate", "2", f"--{term}", "2", "--model", str(tmp_path / "none"), "--workdir", str(tmp_path)]
    assert main(["run", "distil_sst2", *words]) == 2
    assert f"({term}=2) are of all tokens: set accumulate=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"own": 1.5}, "own=1.5"),
        ({"own": 0.5, "distil": DistilConfig(cache="topk")}, "asks a live teacher"),
        ({"others": ("b",), "distil": DistilConfig(cache="topk")}, r"cache=topk .* others=\['b'\] are more"),
        ({"own": 0.5, "shots": 2}, "cannot read the student's answers"),
        ({"student": StudentConfig(start="pruned")}, "is the teacher: give params=0.5"),
        ({"transfer_tokens": -1}, "transfer_tokens=-1"),
        ({"kept": 0}, "kept=0"),
    ],
)
def test_what_cannot_be_is_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        TeachingConfig(**fields)
