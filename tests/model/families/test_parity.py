"""Limbeck computes what transformers computes, for every family; the fixtures are made by `make_fixtures.py`."""

from pathlib import Path

import comparison
import numpy as np
import pytest
from variants import VARIANTS

FIXTURES = Path(__file__).parent / "fixtures"
WRITES = [name for name, variant in VARIANTS.items() if variant.problem is None]
JUDGES = [name for name, variant in VARIANTS.items() if variant.problem is not None]
PUBLISHED = [name for name, variant in VARIANTS.items() if variant.published]


def case(name: str) -> comparison.Case:
    return comparison.load(FIXTURES / name)


def test_every_variant_has_its_fixture_and_they_stay_small() -> None:
    assert {folder.name for folder in FIXTURES.iterdir()} == set(VARIANTS)
    assert sum(file.stat().st_size for file in FIXTURES.rglob("*")) < 8_000_000


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_hidden_states(name: str) -> None:
    comparison.check_right_padded(case(name))


@pytest.mark.parametrize("name", VARIANTS)
def test_left_padding_changes_nothing(name: str) -> None:
    comparison.check_left_padded(case(name))


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_of_all_parameters(name: str) -> None:
    comparison.check_gradients(case(name))


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_of_three_steps_of_adamw(name: str) -> None:
    comparison.check_training(case(name))


@pytest.mark.parametrize("name", WRITES)
def test_cached_greedy_tokens_are_identical(name: str) -> None:
    comparison.check_greedy(case(name))


def test_longrope_serves_short_texts_with_its_short_factors() -> None:
    comparison.check_short_batch(case("phi3_longrope"))


@pytest.mark.parametrize("name", JUDGES)
def test_scores_are_read_off_the_last_token(name: str) -> None:
    comparison.check_scores(case(name))


def test_labels_have_their_names() -> None:
    assert case("llama_classify").config.labels == ("negative", "neutral", "positive")
    assert len(case("qwen2_regression").config.labels) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_spelling_of_published_configs_means_the_same(name: str, tmp_path: Path) -> None:
    comparison.check_published_config(case(name), tmp_path / "published")


@pytest.mark.parametrize("name", VARIANTS)
def test_load_save_load_changes_no_bit(name: str, tmp_path: Path) -> None:
    comparison.check_round_trip(case(name), tmp_path / "saved")


def test_one_wrong_bit_in_a_gradient_is_seen() -> None:
    good = case("llama2")
    name = "grad/model.layers.1.self_attn.q_proj.weight"
    wrong = good.expected[name].copy()
    wrong[3, 2] += 2e-4 * np.abs(wrong).max()
    with pytest.raises(AssertionError, match="layers.1.self_attn.q_proj"):
        comparison.check_gradients(good._replace(expected=good.expected | {name: wrong}))
