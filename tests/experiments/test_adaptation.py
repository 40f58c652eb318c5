"""One command adapts a model in every way, on the same records, into one table with an advice."""

import json
import re
from pathlib import Path

import jax
import pytest

from limbeck.evaluation.asked import read_asked
from limbeck.evaluation.report import load_report
from limbeck.experiments.adaptation import about_dropped
from limbeck.experiments.adaptation_config import AdaptationConfig
from limbeck.experiments.cli import main
from limbeck.experiments.rundir import stage, stage_seconds
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.tokenizer import train_bpe
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.train.config import FitConfig

COLOURS = ("red", "blue", "green", "سرخ")
ROWS = [{"text": f"{COLOURS[n % 4]} {n}", "label": "odd" if n % 2 else "even"} for n in range(80)]


TOKENIZER = train_bpe([row["text"] for row in ROWS], 300)
BRIEF = ["--fit.steps", "2", "--fit.batch-size", "4", "--fit.length", "48", "--tuning.fit.evaluate-every", "2"]


def written(folder: Path, train: list[dict], test: list[dict]) -> str:
    for split, rows in (("train", train), ("test", test)):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig(TOKENIZER.vocab_size, 32, 2, 4, 2, 8, 64, 128)
    save_pretrained(folder, config, init(config, jax.random.key(0)), TOKENIZER)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """The folder of a run with very little of everything."""
    data, folder = (tmp_path_factory.mktemp(name) for name in ("data", "run"))
    words = ["run", "adapt", "--workdir", str(folder), "--task", written(data, ROWS[:60], ROWS[60:]), "--model", model]
    words += ["--ways", "lora", "full", "--shots", "0", "2", "--variants", "2", "--candidates", "3", "--passes", "2"]
    words += ["--shares", "0.5", *BRIEF, "--student-fit.steps", "8", "--student-fit.evaluate-every", "2"]
    words += ["--student-fit.patience", "1", "--student-fit.optim.learning-rate", "1e-12"]  # it gets no better
    assert main([*words, "--transfer-tokens", "0"]) == 0
    return folder


def test_every_way_is_a_row_measured_on_the_same_records(run):
    report = load_report(run)
    rows = {row["method"]: row for row in report["rows"]}
    prompts = {"zero_shot", "zero_shot_calibrated", "few_shot", "few_shot_calibrated", "searched_prompt"}
    ways = prompts | {"lora", "full", "distilled_0.5"}
    assert ways | {"ensemble"} <= rows.keys()
    best = max(rows[name]["metrics"]["accuracy"]["value"] for name in ways | {"ensemble"})
    for name in ways:
        row = rows[name]
        assert row["metrics"]["accuracy"]["n"] == 20 and row["latency_ms_p50"] > 0 and row["flops_per_request"] > 0
        assert (row["train_flops"] > 0) == (name not in prompts or name == "searched_prompt")
        assert row["stereotyped"]["n"] > 20
        if "difference" in row:  # from the best, on the same records
            expected = row["metrics"]["accuracy"]["value"] - best
            assert row["difference"]["value"] == pytest.approx(expected) and row["difference"]["n"] == 20
    assert sum("difference" not in rows[name] for name in ways | {"ensemble"}) == 1
    assert rows["few_shot"]["prompt_tokens"] > rows["zero_shot"]["prompt_tokens"]
    assert rows["zero_shot"]["spread"]["n"] == len(rows["zero_shot"]["variants"]) == 2
    together = rows["ensemble"]
    assert together["prompt_tokens"] == pytest.approx(sum(rows[name]["prompt_tokens"] for name in prompts))
    assert together["metrics"]["accuracy"]["n"] == 20 and together["stereotyped"] == rows["few_shot"]["stereotyped"]
    assert rows["distilled_0.5"]["train_flops"] > rows["full"]["train_flops"]  # it began with its teacher's
    spent = sum(rows[name]["train_seconds"] for name in ways) - rows["full"]["train_seconds"]  # once, not twice
    assert report["seconds"] == pytest.approx(spent)
    assert rows["distilled_0.5"]["params_total"] <= 0.5 * rows["full"]["params_total"]


def test_a_prompt_says_how_it_was_asked_and_what_else_its_scores_say(run):
    rows = {row["method"]: row for row in load_report(run)["rows"]}
    assert rows["zero_shot"]["prompt"] == {"pick": "fixed", "seed": 0}
    assert rows["few_shot_calibrated"]["prompt"]["calibration"] == "contextual"
    kept = read_asked(run, "test/3")["few_shot"]
    assert rows["few_shot"]["prompt"]["examples"] == kept["shown"] and kept["prompt"] == rows["few_shot"]["prompt"]
    assert rows["few_shot"]["views"]["sum"] == rows["few_shot"]["metrics"]["accuracy"]
    assert "views" not in rows["few_shot_calibrated"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Accuracy by view" in page and "members zero_shot, zero_shot_calibrated, few_shot" in page


def test_the_page_says_what_to_take_and_what_the_search_found(run):
    facts = dict(load_report(run)["facts"])
    assert "20 test records cannot tell from the best" in facts["advice"] or facts["advice"].startswith("Take ")
    assert "on validation" in facts["search"] and "flattered" in facts["search"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert facts["advice"] in page and "prefix kept" in page
    units = {(row["to"], row["unit"]) for row in load_report(run)["break_even"]}
    assert {(to, unit) for to in ("full", "distilled_0.5") for unit in ("seconds", "FLOPs")} <= units


def test_any_record_of_any_row_can_be_looked_at(run, capsys):
    found = read_asked(run, "test/3")
    assert found.keys() >= {"few_shot", "searched_prompt", "full", "distilled_0.5"}
    assert len(found["few_shot"]["shown"]) == 2 and "test/3" not in found["few_shot"]["shown"]
    assert main(["report", str(run), "--record", "3"]) == 0
    said = capsys.readouterr().out
    assert found["few_shot"]["shown"][0] in said and "asked with" in said and "calibration 'contextual'" in said
    assert found["ensemble"]["answer"] in ("odd", "even") and found["ensemble"]["metric"] == "accuracy"


def test_training_costs_the_steps_that_were_run_and_a_students_start(run):
    report = load_report(run)
    rows = {row["method"]: row for row in report["rows"]}
    student, teacher = rows["distilled_0.5"], rows["full"]
    assert report["curves"]["distilled_0.5"][-1][0] == 4 and teacher["train_flops"] == 2 * teacher["flops_per_step"]
    shapes = load_pretrained(run / "full" / "model")
    pruning = forward_flops(shapes.config, shapes.params, 16 * 64, 32)  # a batch of 16 rows of 64 tokens
    assert student["train_flops"] == pytest.approx(teacher["train_flops"] + pruning + 4 * student["flops_per_step"])
    made = stage_seconds(run / "students" / "student_0.5", "start")
    own = json.loads((run / "students" / "student_0.5" / "distilled" / "stages" / "tune.json").read_text())
    expected = teacher["train_seconds"] + made + own["result"]["train_seconds"]
    assert made > 0 and student["train_seconds"] == pytest.approx(expected)


def test_a_search_that_was_killed_asks_nothing_twice(run, monkeypatch):
    from limbeck.experiments import searching

    before = load_report(run)["rows"]
    (run / "stages" / "search.json").rename(run / "stages" / "found.json")  # as if it had died on the last instant
    monkeypatch.setattr(searching, "predict", lambda *_: pytest.fail("asked again"))
    assert main((run / "command.txt").read_text(encoding="utf-8").splitlines()[0].split()[1:]) == 0
    assert stage(run, "search", dict) == stage(run, "found", dict)
    assert load_report(run)["rows"] == before


def test_what_was_done_is_not_done_again(run, monkeypatch):
    """An interrupted run goes on: all stages are there, so nothing is asked and nothing trained."""
    from limbeck.experiments import adaptation, training

    before = load_report(run)["rows"]
    for name in ("prompted", "searched", "together"):
        monkeypatch.setattr(adaptation, name, lambda *_, **__: pytest.fail("asked again"))
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert main((run / "command.txt").read_text(encoding="utf-8").splitlines()[0].split()[1:]) == 0
    assert load_report(run)["rows"] == before


def test_numbers_are_asked_for_by_prompts_alone_and_fewer_errors_are_more(tmp_path, model):
    rows = [{"text": row["text"], "score": n / 2 - 5 if n < 30 else 0.0} for n, row in enumerate(ROWS)]
    words = ["run", "adapt", "--workdir", str(tmp_path / "run"), "--task", written(tmp_path, rows[:30], rows[30:33])]
    words += ["--model", model, "--shots", "0", "--ways", "--students", "False", "--variants", "1"]
    assert main([*words, "--candidates", "2", "--passes", "2"]) == 0
    report = load_report(tmp_path / "run")
    table = {row["method"]: row for row in report["rows"]}
    assert {"zero_shot", "searched_prompt", "ensemble"} <= table.keys() and "few_shot" not in table
    found, facts = stage(tmp_path / "run", "search", dict), dict(report["facts"])["search"]
    told = re.search(r"on validation (\S+) .* on test (\S+): validation flattered it by (\S+)", facts)
    assert told is not None
    validation, test, by = map(float, told.groups())
    assert validation == pytest.approx(found["validation"], abs=1e-3)
    assert by == pytest.approx(validation - test, abs=2e-3)
    assert validation < 0 and -(10**2) < test < -(8**2)  # no numbers were written: as far off as train has answers


def test_a_record_without_room_for_virtual_tokens_is_asked_of_nobody(tmp_path, model):
    room = 128 - len(TOKENIZER.prompt("\nlabel:"))
    long = {"text": "q" * (room - 12), "label": "odd"}  # 12 tokens hold an answer, not a prompt besides
    words = ["run", "adapt", "--workdir", str(tmp_path / "run"), "--model", model, "--shots", "0", "--variants", "1"]
    words += ["--task", written(tmp_path, ROWS[:60], [*ROWS[60:70], long]), "--on-bad-row", "skip"]
    words += ["--students", "False"]
    assert main([*words, "--head", "True", "--ways", "prompt", "--candidates", "0", *BRIEF]) == 0
    report = load_report(tmp_path / "run")
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["zero_shot"]["metrics"]["accuracy"]["n"] == rows["prompt"]["metrics"]["accuracy"]["n"] == 10
    assert any("test.jsonl, row 11" in line for line in report["skipped"])
    assert rows["zero_shot"]["stereotyped"]["n"] > 20 and rows["prompt"]["stereotyped"] is None  # a head writes nothing


@pytest.mark.parametrize(
    "words, message",
    [
        (["--ways", "lorra"], "unknown way of tuning 'lorra'.*did you mean 'lora'"),
        (["--ways", "../lora"], "unknown way of tuning"),
        (["--head", "True"], "transfer_tokens=120000 is of tasks that are answered in text"),
        (["--tuning.fit.length", "6"], "where a row holds 6.*raise `length`"),
        (["--shots", "0", "61"], "61 shots: [0-9]+ training records have queries of their own"),
        (["--student-fit.length", "6"], "where a row holds 6.*raise `length`"),
    ],
)
def test_what_would_end_it_late_ends_it_at_once(words, message, tmp_path, model, monkeypatch, capsys):
    from limbeck.experiments import adaptation

    monkeypatch.setattr(adaptation, "stage", lambda *_: pytest.fail("began"))
    task = written(tmp_path, ROWS[:60], ROWS[60:])
    assert main(["run", "adapt", "--workdir", str(tmp_path / "run"), "--task", task, "--model", model, *words]) == 2
    assert re.search(message, capsys.readouterr().err)


TUNING = TuningConfig(task="t", model="m", fit=FitConfig(3))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"shots": ()}, "shots"),
        ({"shots": (1, 1)}, "each once"),
        ({"ways": ()}, "a student's teacher"),
        ({"variants": 0}, "variants=0"),
    ],
)
def test_what_cannot_be_is_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        AdaptationConfig(TUNING, **fields)


def test_prompts_have_names_and_only_compared_options_are_calibrated():
    config = AdaptationConfig(TUNING, shots=(0, 1, 4, 8), prompt=PromptConfig(pick="fixed", instruction="Say."))
    assert list(config.prompts(scored=False)) == ["zero_shot", "one_shot", "4_shot", "few_shot"]
    calibrated = config.prompts(scored=True)["few_shot_calibrated"]
    for shots, names in (((0,), ["zero_shot"]), ((0, 1), ["zero_shot", "one_shot"]), ((3,), ["few_shot"])):
        assert list(AdaptationConfig(TUNING, shots=shots).prompts(scored=False)) == names
    assert (calibrated.shots, calibrated.calibration, calibrated.instruction) == (8, "contextual", "Say.")


def test_examples_that_did_not_fit_are_said_and_only_those():
    rows = {"few_shot": {"dropped_examples": 1200}, "zero_shot": {"dropped_examples": 0}, "full": {}}
    assert about_dropped(rows) == [["examples that did not fit", "few_shot 1,200"]]
    assert about_dropped({"full": {}}) == []
