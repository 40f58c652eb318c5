"""One command adapts a model in every way, on the same records, into one table with an advice."""

import json

import jax
import pytest

from limbeck.evaluation.asked import read_asked
from limbeck.evaluation.report import load_report
from limbeck.experiments.adaptation_config import AdaptationConfig
from limbeck.experiments.cli import main
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import train_bpe
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.train.config import FitConfig

COLOURS = ("red", "blue", "green", "سرخ")
ROWS = [{"text": f"{COLOURS[n % 4]} {n}", "label": "odd" if n % 2 else "even"} for n in range(80)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with very little of everything."""
    data, model, folder = (tmp_path_factory.mktemp(name) for name in ("data", "model", "run"))
    for split, rows in (("train", ROWS[:60]), ("test", ROWS[60:])):
        (data / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    tokenizer = train_bpe([row["text"] for row in ROWS], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 2, 4, 2, 8, 64, 128)
    save_pretrained(model, config, init(config, jax.random.key(0)), tokenizer)
    words = ["run", "adapt", "--workdir", str(folder), "--task", str(data), "--model", str(model), "--ways", "lora"]
    words += ["full", "--shots", "0", "2", "--variants", "2", "--candidates", "3", "--passes", "2", "--shares", "0.5"]
    words += ["--fit.steps", "2", "--fit.batch-size", "4", "--fit.length", "48", "--evaluate-every", "2"]
    assert main([*words, "--transfer-tokens", "0"]) == 0
    return folder


def test_every_way_is_a_row_measured_on_the_same_records(run):
    report = load_report(run)
    rows = {row["method"]: row for row in report["rows"]}
    prompts = {"zero_shot", "zero_shot_calibrated", "few_shot", "few_shot_calibrated", "searched_prompt"}
    ways = prompts | {"lora", "full", "distilled_0.5"}
    assert ways <= rows.keys()
    best = max(rows[name]["metrics"]["accuracy"]["value"] for name in ways)
    for name in ways:
        row = rows[name]
        assert row["metrics"]["accuracy"]["n"] == 20 and row["latency_ms_p50"] > 0 and row["flops_per_request"] > 0
        assert (row["train_flops"] > 0) == (name not in prompts or name == "searched_prompt")
        assert row["stereotyped"]["n"] > 20
        if "difference" in row:  # from the best, on the same records
            expected = row["metrics"]["accuracy"]["value"] - best
            assert row["difference"]["value"] == pytest.approx(expected) and row["difference"]["n"] == 20
    assert sum("difference" not in rows[name] for name in ways) == 1
    assert rows["few_shot"]["prompt_tokens"] > rows["zero_shot"]["prompt_tokens"]
    assert rows["zero_shot"]["spread"]["n"] == 2
    assert rows["distilled_0.5"]["train_flops"] > rows["full"]["train_flops"]  # it began with its teacher's
    assert rows["distilled_0.5"]["params_total"] <= 0.5 * rows["full"]["params_total"]


def test_the_page_says_what_to_take_and_what_the_search_found(run):
    facts = dict(load_report(run)["facts"])
    assert "20 test records cannot tell from the best" in facts["advice"] or "as good as the best" in facts["advice"]
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
    assert found["few_shot"]["shown"][0] in capsys.readouterr().out


def test_what_was_done_is_not_done_again(run, monkeypatch):
    """An interrupted run goes on: all stages are there, so nothing is asked and nothing trained."""
    from limbeck.experiments import adaptation

    before = load_report(run)["rows"]
    for name in ("measure", "predict", "search"):
        monkeypatch.setattr(adaptation, name, lambda *_, **__: pytest.fail("asked again"))
    command = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert command  # the run's own settings; the same words give the same run
    words = (run / "command.txt").read_text(encoding="utf-8").split()[1:]
    assert main(words) == 0
    assert load_report(run)["rows"] == before


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
    assert (calibrated.shots, calibrated.calibration, calibrated.instruction) == (8, "contextual", "Say.")
