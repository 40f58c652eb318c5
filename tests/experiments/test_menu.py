"""Ways of tuning side by side: the best rate by validation, what a name stands for, and what cannot be."""

import json

import jax
import pytest

from limbeck.evaluation.report import load_report
from limbeck.experiments.cli import main
from limbeck.experiments.menu_config import MenuConfig
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import train_bpe
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig, MethodConfig

TUNING = TuningConfig("task", "model", FitConfig(steps=4), method=MethodConfig(rank=2))
EXPERIMENT = """
from limbeck.experiments.menu_config import MenuConfig
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.train.config import FitConfig, MethodConfig, OptimConfig

config = MenuConfig(
    TuningConfig(
        "data", "model", FitConfig(6, 4, 32, OptimConfig(learning_rate=1e-3), evaluate_every=3, keep="best")
    ),
    ("small", r"blocks/0/.*", "entries"),
    (("small", {"tuning": "lora", "rank": 1}),),
    (1.0, 30.0),
)
main = "limbeck.experiments.menu:run"
"""


def test_each_way_is_reported_at_the_rate_that_validation_prefers(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for split, numbers in (("train", range(60)), ("test", range(60, 80))):
        rows = [{"text": f"{n % 7} and {n}", "label": "odd" if n % 2 else "even"} for n in numbers]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    experiment, folder = tmp_path / "menu.py", tmp_path / "run"
    experiment.write_text(EXPERIMENT, encoding="utf-8")
    model = tmp_path / "model"
    tokenizer = train_bpe(["0 and 1"], 300)
    config = ModelConfig(tokenizer.vocab_size, 16, 2, 2, 1, 8, 32, 32)
    save_pretrained(model, config, init(config, jax.random.key(0)), tokenizer)
    words = ["run", str(experiment), "--workdir", str(folder), "--task", str(data), "--model", str(model)]
    assert main(words) == 0
    report = load_report(folder)
    ways = [row for row in report["rows"] if "adapter_bytes" in row]
    assert [row["method"] for row in ways] == ["small", "blocks/0/.*"]
    assert ways[0]["params_trainable"] < ways[1]["params_trainable"]
    for row, tried, name in zip(ways, report["rates"], ("00-small", "01"), strict=True):
        found = {}
        for rate in ("1", "30"):
            stage = json.loads((folder / name / f"rate-{rate}" / "stages" / "tune.json").read_text(encoding="utf-8"))
            evaluations = stage["result"]["evaluations"]
            found[float(rate)] = max(each["validation_accuracy"] for each in evaluations)
        assert dict(tried["tried"]) == found and tried["method"] == row["method"]
        assert found[tried["best"]] == max(found.values())
        assert row["learning_rate"] == pytest.approx(1e-3 * tried["best"] * (10 if name == "00-small" else 1))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Learning rates tried" in page and "| x 1 | x 30 |" in (folder / "report.md").read_text(encoding="utf-8")
    assert ["entries at 1 times its rate: entries is empty" in line for line in report["skipped"]] == [True, False]
    capsys.readouterr()
    assert main(words) == 0  # what is done is not done again
    assert "steps" not in capsys.readouterr().err
    assert load_report(folder)["rows"] == report["rows"]


def test_a_name_stands_for_a_way_with_settings_of_its_own():
    menu = MenuConfig(TUNING, ("full", "lora", "small"), (("small", {"tuning": "dora", "rank": 1}),), (1.0, 3.0))
    assert [menu.of(name, 1.0).tuning for name in menu.methods] == ["full", "lora", "dora"]
    assert [menu.of(name, 1.0).method.rank for name in menu.methods] == [2, 2, 1]
    rate = TUNING.fit.optim.learning_rate
    assert menu.of("small", 3.0).fit.optim.learning_rate == 3 * rate and menu.settings[0][1]["tuning"] == "dora"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"methods": ()}, "name one or more"),
        ({"methods": ("full", "full")}, "each once"),
        ({"rates": (1.0, 0.0)}, "factors above 0"),
        ({"rates": ()}, "factors above 0"),
        ({"settings": (("lora", {"ranks": 1}),)}, "no field 'ranks'"),
    ],
)
def test_what_cannot_be_is_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        MenuConfig(**{"tuning": TUNING, "methods": ("full", "lora"), **fields})
