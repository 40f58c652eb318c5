"""The same comparison with fresh models in random shapes; and what Limbeck saves, loaded by transformers."""

import shutil
from pathlib import Path
from typing import Any

import comparison
import numpy as np
import pytest
from variants import VARIANTS, random_shape

from limbeck.model.pretrained import load_pretrained, save_pretrained

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module", autouse=True)
def torch_and_transformers() -> None:
    torch = pytest.importorskip("torch", reason="the [bench] extra")
    transformers = pytest.importorskip("transformers", reason="the [bench] extra")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


def make(name: str, seed: int, folder: Path) -> comparison.Case:
    from make_fixtures import make

    make(name, seed, folder, random_shape(seed))
    return comparison.load(folder)


def transformers_logits(name: str, folder: Path, expected: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What transformers computes for each row of the expected batch with the model in a folder."""
    import torch  # type: ignore[reportMissingImports]
    import transformers  # type: ignore[reportMissingImports]

    auto: Any = transformers.AutoModelForCausalLM
    if VARIANTS[name].problem is not None:
        auto = transformers.AutoModelForSequenceClassification
    model, loading = auto.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert type(model).__name__ == VARIANTS[name].architecture
    rows = zip(expected["tokens_BT"], expected["mask_BT"].sum(1), strict=True)
    with torch.no_grad():  # row by row, without padding: a model without a tokenizer knows no padding token
        return [model(torch.from_numpy(row[None, :length])).logits[0].numpy() for row, length in rows]


@pytest.mark.parametrize("seed", [200, 300])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_fresh_model_in_a_random_shape(name: str, seed: int, tmp_path: Path) -> None:
    case = make(name, seed, tmp_path / "made")
    comparison.check_right_padded(case)
    comparison.check_left_padded(case)
    comparison.check_gradients(case)
    comparison.check_training(case)
    comparison.check_greedy(case)
    if VARIANTS[name].original is not None:
        comparison.check_short_batch(case)
    if VARIANTS[name].problem is not None:
        comparison.check_scores(case)
    if VARIANTS[name].published:
        comparison.check_published_config(case, tmp_path / "published")
    comparison.check_round_trip(case, tmp_path / "saved")


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_loads_what_we_save_to_equal_logits(name: str, tmp_path: Path) -> None:
    case = comparison.load(Path(__file__).parent / "fixtures" / name)
    save_pretrained(tmp_path, case.config, case.params)
    rows = transformers_logits(name, tmp_path, case.expected)
    key = "logits_BTV" if VARIANTS[name].problem is None else "scores_BC"
    for row, expected in zip(rows, case.expected[key], strict=True):
        real = expected[: len(row)] if row.ndim == 2 else expected
        np.testing.assert_allclose(row, real, rtol=0, atol=1e-5)


def test_transformers_saves_again_what_we_can_load(tmp_path: Path) -> None:
    """Once round: transformers to us, to transformers, to us, and no bit has changed."""
    import transformers  # type: ignore[reportMissingImports]

    case = comparison.load(Path(__file__).parent / "fixtures" / "gemma3")
    save_pretrained(tmp_path / "ours", case.config, case.params)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "ours")
    again = load_pretrained(tmp_path / "theirs")
    assert again.config == case.config
    for path, leaf in case.params.items():
        np.testing.assert_array_equal(again.params[path], leaf)
