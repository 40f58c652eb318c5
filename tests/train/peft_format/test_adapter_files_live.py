"""Against PEFT itself: it loads what we write, and we load what it writes, with fresh random adapters."""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from adapter_cases import BASES, CASES, Case, base_model, outputs
from safetensors.numpy import load_file
from test_adapter_files import OURS, TOKENS_BT, moved, with_random_adapter

from limbeck.model.params import Params, join, merge, split
from limbeck.model.pretrained import load_pretrained
from limbeck.train.adapters import add_lora
from limbeck.train.peft_format import load_adapter, save_adapter
from limbeck.train.peft_format.vera import drawn_projections

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module", autouse=True)
def torch_and_peft() -> None:
    torch = pytest.importorskip("torch", reason="the [bench] extra")
    transformers = pytest.importorskip("transformers", reason="the [bench] extra")
    pytest.importorskip("peft", reason="the [bench] extra")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


def with_peft(case: Case, folder: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """What PEFT computes with the adapter in a folder, of which it must know every tensor and miss none."""
    import peft  # type: ignore[reportMissingImports]
    import torch  # type: ignore[reportMissingImports]
    from make_adapters import base, compute

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = peft.PeftModel.from_pretrained(base(case), folder)
        stored = peft.load_peft_weights(str(folder))
        result = peft.set_peft_model_state_dict(model, stored)
    assert set(result.unexpected_keys) <= {"prompt_embeddings"}  # which PEFT gives to its prompt encoder
    shared = ("vera_A.default", "vera_B.default", "prompt_encoder.default.embedding.weight")
    assert not [name for name in result.missing_keys if "default" in name and not name.endswith(shared)]
    return compute(model.eval(), torch.from_numpy(tokens_BT)).numpy()


@pytest.mark.parametrize("seed", [100])
@pytest.mark.parametrize("name", CASES)
def test_both_ways_with_a_fresh_adapter(name: str, seed: int, tmp_path: Path) -> None:
    from make_adapters import make

    make(name, seed, tmp_path / "theirs")
    model, expected = base_model(CASES[name]), load_file(tmp_path / "theirs" / "expected.safetensors")
    params = load_adapter(tmp_path / "theirs", model.config, model.params)
    assert np.abs(outputs(model, params, expected["tokens_BT"]) - expected["logits"]).max() < 2e-5
    save_adapter(tmp_path / "ours", model.config, model.params, params)
    again = with_peft(CASES[name], tmp_path / "ours", expected["tokens_BT"])
    assert np.abs(again - expected["logits"]).max() < 2e-5


def check(base: str, before: Params, params: Params, folder: Path) -> None:
    """PEFT computes with what is written what the model here computes."""
    model = load_pretrained(BASES / base)
    save_adapter(folder, model.config, before, params)
    got = with_peft(Case(base, "", {}), folder, TOKENS_BT)
    assert np.abs(got - outputs(model, params, TOKENS_BT)).max() < 2e-5


@pytest.mark.parametrize("name", OURS)
def test_peft_loads_our_own(name: str, tmp_path: Path) -> None:
    base, params, _ = with_random_adapter(name)
    check(base, load_pretrained(BASES / base).params, params, tmp_path)


@pytest.mark.parametrize("base", ["llama3", "gpt2"])
def test_peft_loads_an_adapter_that_began_as_the_kernel_s_principal_part(base: str, tmp_path: Path) -> None:
    before = load_pretrained(BASES / base).params
    params = add_lora(before, jax.random.key(0), rank=3, alpha=5, start="pissa")
    trained = {path for path in params if path.endswith(("lora_a", "lora_b"))}
    check(base, before, moved(params, trained), tmp_path)


@pytest.mark.parametrize(
    ("base", "patterns"),
    [
        ("llama3", [r"blocks/2/mlp/.*", r".*norm/scale", r"embed/.*"]),
        ("llama2", [r"blocks/1/attn/o/kernel", r"head/kernel"]),
        ("gpt2", [r"blocks/.*/bias"]),
        ("gpt2", [r"blocks/attn/(q|k)/bias", r"blocks/1/mlp_norm/bias", r"positions/.*", r"norm/.*"]),
        ("gpt2_classify", [r"score/kernel"]),
    ],
)
def test_peft_loads_what_of_the_base_was_trained_besides(base: str, patterns: list[str], tmp_path: Path) -> None:
    before = load_pretrained(BASES / base).params
    params = add_lora(before, jax.random.key(0), rank=3, targets=r"blocks/attn/(q|v)/kernel")
    trainable, frozen = split(params, [r".*/lora_[ab]", *patterns])
    check(base, before, merge(moved(trainable, set(trainable)), frozen), tmp_path)
    assert join(params).keys() == join(merge(trainable, frozen)).keys()


@pytest.mark.parametrize("key", [0, 7, 2**32 - 1])
def test_the_projections_that_are_not_saved_are_those_that_pytorch_draws(key: int) -> None:
    import torch  # type: ignore[reportMissingImports]
    from peft.tuners.vera.model import _kaiming_init  # type: ignore[reportMissingImports]

    generator = torch.Generator(device="cpu").manual_seed(key)
    theirs = [_kaiming_init(shape, generator).numpy() for shape in ((5, 24), (33, 5))]
    for one, other in zip(drawn_projections(key, (5, 24), (33, 5), ""), theirs, strict=True):
        np.testing.assert_array_equal(one, other)
