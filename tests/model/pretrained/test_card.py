"""A model's card: written with every model that has a past, told more as it is measured, never over a reader's own."""

import json

import jax
import pytest
from huggingface_hub import ModelCard

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.files import write_atomic
from limbeck.model.pretrained import add_to_card, card, load_pretrained, save_pretrained
from limbeck.model.pretrained.card import SECTIONS, Result, Table
from limbeck.model.pretrained.lineage import Origin, data_of, descended
from limbeck.model.transformer import init
from limbeck.train.heads import add_head

CONFIG = ModelConfig(vocab_size=32, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=16)
FOUND = (Origin("karpathy/stories260k", "found", 260_032, "ab" * 32),)
COST = {"seconds": 12.0, "flops": 1e12, "joules": 90.0, "joules_source": "rapl", "grams_co2e": 0.01}
BIAS = Table("Pairs | all", ["probe", "value"], [["pairs_preference", "0.61 [0.58, 0.63]"]], "No more than *these*.")
RESULT = Result("sst2", "text-classification", "accuracy", 0.81)
# The sections of https://github.com/huggingface/huggingface_hub, templates/modelcard_template.md, that we fill.
HEADINGS = (
    "Model Details", "Model Description", "Uses", "Direct Use", "Out-of-Scope Use", "Bias, Risks, and Limitations",
    "Recommendations", "How to Get Started with the Model", "Training Details", "Training Data", "Training Procedure",
    "Training Hyperparameters", "Evaluation", "Model Examination", "Environmental Impact", "Technical Specifications",
    "Model Card Contact",
)


@pytest.fixture
def folder(tmp_path):
    origin = Origin(
        "tuned", "tuned", 260_100, method="lora", trained=68, data=(data_of("sst2", ["good"]),), cost=COST,
        config={"fit.steps": 60, "task": "a|b\nc"}, commit="c0ffee",
    )  # fmt: skip
    lineage = descended(origin, [("base", FOUND)])
    save_pretrained(tmp_path / "tuned", CONFIG, init(CONFIG, jax.random.key(0)), lineage=lineage)
    return tmp_path / "tuned"


def unmeasured(text):
    return text.splitlines().count("not measured")


def text_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_saved_model_has_a_card_that_says_what_was_not_measured(folder):
    text = text_of(folder)
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("##")]
    assert [each for each in headings if each in HEADINGS] == list(HEADINGS)
    assert unmeasured(text) == len(SECTIONS)
    assert load_pretrained(folder).lineage[0].digest in text
    for words in ("stories260k", "lora", "260,100", "c0ffee", "sst2", r"a\|b\\nc"):
        assert words in text, words


def test_its_metadata_is_what_the_hub_reads(folder):
    add_to_card(folder, {"bias": [BIAS]}, [RESULT])
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("limbeck", "text-generation")
    assert (data["base_model"], data["metrics"]) == (["karpathy/stories260k"], ["accuracy"])
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert result["dataset"]["name"] == "sst2"
    assert [(each["type"], each["value"]) for each in result["metrics"]] == [("accuracy", 0.81)]
    assert data["co2_eq_emissions"]["emissions"] == 0.01


def test_what_is_measured_later_joins_what_was_before(folder):
    assert add_to_card(folder, {"bias": [BIAS]}) == folder / "README.md"
    add_to_card(folder, {"evaluation": [Table("sst2", ["metric", "value"], [["accuracy", "0.81"]])]}, [RESULT])
    text = text_of(folder)
    assert r"**Pairs \| all**" in text and "| accuracy | 0.81 |" in text and r"No more than \*these\*." in text
    assert unmeasured(text) == len(SECTIONS) - 2
    told = json.loads((folder / "card.json").read_text())
    assert told["sections"]["bias"][0]["rows"] == BIAS.rows and told["results"][0]["value"] == 0.81
    before = text
    add_to_card(folder, {})
    assert text_of(folder) == before


def test_a_card_does_not_make_the_model_another(folder):
    add_to_card(folder, {"bias": [BIAS]})
    load_pretrained(folder)


def test_a_readme_that_somebody_changed_stays(folder):
    (folder / "README.md").write_text("mine")
    assert add_to_card(folder, {"bias": [BIAS]}) == folder / "card.md"
    assert text_of(folder) == "mine" and "pairs" in (folder / "card.md").read_text()
    assert add_to_card(folder, {}) == folder / "card.md"
    save_pretrained(folder, CONFIG, init(CONFIG, jax.random.key(1)))
    assert add_to_card(folder, {"bias": [BIAS]}) is None  # it tells no lineage
    assert text_of(folder) == "mine" and not (folder / "card.json").exists()


def test_a_students_teacher_is_no_model_that_it_was_finetuned_from(tmp_path):
    origin = Origin("student", "distilled", 100)
    params = init(CONFIG, jax.random.key(0))
    save_pretrained(tmp_path / "m", CONFIG, params, lineage=descended(origin, [("teacher", FOUND)]))
    text = text_of(tmp_path / "m")
    assert "base_model" not in text and "**Finetuned from model:** none" in text and "- teacher: karpathy" in text


def test_a_folders_name_is_no_name_on_the_hub(tmp_path):
    origin, local = Origin("m", "tuned", 100), (Origin("gpt2", "found", 1, "ab"),)
    params = init(CONFIG, jax.random.key(0))
    save_pretrained(tmp_path / "m", CONFIG, params, lineage=descended(origin, [("base", local)]))
    assert "base_model" not in text_of(tmp_path / "m") and "**Finetuned from model:** gpt2" in text_of(tmp_path / "m")


def test_a_table_takes_the_place_of_that_of_its_title_alone(folder):
    other = Table("Others", ["probe", "value"], [["x", "1"]])
    add_to_card(folder, {"bias": [BIAS, other]})
    add_to_card(folder, {"bias": [BIAS._replace(rows=[["pairs_preference", "0.99"]])]})
    text = text_of(folder)
    assert "0.99" in text and "0.61" not in text and "**Others**" in text


def test_a_kill_between_its_two_files_leaves_a_card_that_is_still_ours(folder, monkeypatch):
    def killed(path, data):
        if path.name == "README.md":
            raise KeyboardInterrupt
        write_atomic(path, data)

    for sections in ({"bias": [BIAS]}, {"memorisation": [BIAS]}):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(card, "write_atomic", killed)
            add_to_card(folder, sections)
        assert add_to_card(folder, sections) == folder / "README.md"
        assert not (folder / "card.md").exists()
    assert unmeasured(text_of(folder)) == len(SECTIONS) - 2


def test_a_damaged_card_does_not_stand_in_the_way_of_another_model(folder):
    (folder / "card.json").write_text("{")
    (folder / "card.md").write_text("an old one")
    save_pretrained(folder, CONFIG, init(CONFIG, jax.random.key(1)))
    load_pretrained(folder)
    assert not (folder / "card.json").exists() and not (folder / "card.md").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"sections": 3}',
        '{"sections": {"bias": [{}]}, "results": [], "readme": []}',
        '{"sections": {"bias": [{"title": 5, "note": 7, "header": [], "rows": []}]}, "results": [], "readme": []}',
        '{"sections": {}, "results": [], "readme": [1]}',
    ],
)
def test_a_card_that_is_none_is_one_line(folder, text):
    (folder / "card.json").write_text(text)
    with pytest.raises(UserError, match=r"card\.json is no model card"):
        add_to_card(folder, {})


def test_a_head_is_told_by_its_labels(tmp_path):
    config, params = add_head(CONFIG, init(CONFIG, jax.random.key(0)), ("bad", "good"), jax.random.key(1))
    origin = Origin("head", "tuned", 1)
    save_pretrained(tmp_path / "m", config, params, lineage=descended(origin, [("base", FOUND)]))
    text = text_of(tmp_path / "m")
    assert "one of 2 labels: bad, good" in text and '"text-classification"' in text
