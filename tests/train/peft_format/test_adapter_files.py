"""Adapters that PEFT wrote, and our own, through a folder and back."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_cases import BASES, CASES, FIXTURES, base_model, outputs
from safetensors.numpy import load_file

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params, join, merge, split
from limbeck.model.pretrained import load_pretrained
from limbeck.model.quantize import quantize
from limbeck.model.transformer import shapes
from limbeck.train.adapters import add_bottleneck, add_ia3, add_lora, add_vera
from limbeck.train.heads import add_head
from limbeck.train.peft_format import load_adapter, save_adapter
from limbeck.train.peft_format.folder import base_digest
from limbeck.train.soft_prompts import add_p_tuning, add_prefix, add_prompt

TOKENS_BT = np.random.default_rng(0).integers(3, 64, (2, 9))


def same(one: Params, other: Params) -> bool:
    one, other = join(one), join(other)
    return one.keys() == other.keys() and all(
        one[path].dtype == other[path].dtype and np.array_equal(one[path], other[path]) for path in one
    )


def moved(params: Params, paths: set[str], seed: int = 1) -> Params:
    """The parameters with random numbers added to some, as training would."""
    out = dict(params)
    for index, path in enumerate(sorted(paths)):
        noise = 0.2 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), params[path].shape)
        out[path] = params[path] + noise.astype(params[path].dtype)
    return out


@pytest.mark.parametrize("name", CASES)
def test_what_peft_wrote_computes_the_same_here(name: str) -> None:
    model, expected = base_model(CASES[name]), load_file(FIXTURES / name / "expected.safetensors")
    params = load_adapter(FIXTURES / name, model.config, model.params)
    got = outputs(model, params, expected["tokens_BT"])
    assert np.abs(got - expected["logits"]).max() < 2e-5
    assert np.abs(outputs(model, model.params, expected["tokens_BT"]) - expected["logits"]).max() > 0.05


@pytest.mark.parametrize("name", CASES)
def test_what_peft_wrote_comes_back_from_our_folder(name: str, tmp_path: Path) -> None:
    model, expected = base_model(CASES[name]), load_file(FIXTURES / name / "expected.safetensors")
    params = load_adapter(FIXTURES / name, model.config, model.params)
    save_adapter(tmp_path, model.config, model.params, params)
    again = load_adapter(tmp_path, model.config, model.params)
    assert same(params, again) == CASES[name].same
    assert np.abs(outputs(model, again, expected["tokens_BT"]) - expected["logits"]).max() < 2e-5


@pytest.mark.parametrize("name", ["llama_saved_modules", "gpt2_lora", "gpt2_all_biases"])
def test_what_an_adapter_does_not_change_is_the_base_s_own_array(name: str) -> None:
    model = base_model(CASES[name])
    params = load_adapter(FIXTURES / name, model.config, model.params)
    changed = {path for path in model.params if params[path] is not model.params[path]}
    stored = load_file(FIXTURES / name / "adapter_model.safetensors")
    whole = [key for key in stored if ".lora_" not in key]
    assert bool(changed) == bool(whole)
    assert not any("kernel" in path for path in changed - {"head/kernel"})


Added = Callable[[ModelConfig, Params, jax.Array], Params]
OURS: dict[str, tuple[str, Added, bool]] = {
    "lora on part of a fused module": ("gpt2", lambda c, p, k: add_lora(p, k, rank=3, alpha=5), True),
    "lora on all of it": ("gpt2", lambda c, p, k: add_lora(p, k, rank=3, targets="blocks/.*/kernel"), True),
    "dora on part of it": ("gpt2", lambda c, p, k: add_lora(p, k, rank=3, magnitude=True), True),
    "by head": ("gpt_neox", lambda c, p, k: add_lora(p, k, rank=2, magnitude=True), True),
    "rslora": ("llama3", lambda c, p, k: add_lora(p, k, rank=3, alpha=8, stabilized=True), True),
    "other ranks in some layers": (
        "llama3",
        lambda c, p, k: add_lora(
            add_lora(p, k, rank=3, targets="blocks/[01]/attn/(q|v)/kernel"),
            k,
            rank=2,
            alpha=0.3,
            targets="blocks/2/attn/(q|o)/kernel",
        ),
        True,
    ),
    "vera": ("llama3", lambda c, p, k: add_vera(p, k, rank=4), True),
    "vera on a fused module": ("gpt2", lambda c, p, k: add_vera(p, k, rank=4), False),
    "vera on all": ("gpt2", lambda c, p, k: add_vera(p, k, rank=4, targets="blocks/.*/kernel"), False),
    "ia3": ("llama3", lambda c, p, k: add_ia3(p), True),
    "ia3 on part of a fused module": ("gpt2", lambda c, p, k: add_ia3(p), False),
    "ia3 in some layers": (
        "llama3",
        lambda c, p, k: add_ia3(p, outputs="blocks/[12]/attn/v/kernel", inputs="blocks/0/mlp/(up|gate)/kernel"),
        True,
    ),
    "prompt": ("gpt2", lambda c, p, k: add_prompt(c, p, k, length=3), True),
    "p-tuning": ("llama3", lambda c, p, k: add_p_tuning(c, p, k, length=3, hidden=8), False),
    "prefix": ("gpt2", lambda c, p, k: add_prefix(c, p, k, length=3, init="random"), True),
}


def with_random_adapter(name: str) -> tuple[str, Params, bool]:
    """(base, its parameters with added leaves that have moved, whether they come back as they are)."""
    base, add, exact = OURS[name]
    model = load_pretrained(BASES / base)
    params = add(model.config, model.params, jax.random.key(0))
    frozen = {"vera/a", "vera/p"} | {path for path in params if path.endswith("lora_scale")}
    return base, moved(params, params.keys() - model.params.keys() - frozen), exact


@pytest.mark.parametrize("name", OURS)
def test_our_own_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    base, params, exact = with_random_adapter(name)
    model = load_pretrained(BASES / base)
    save_adapter(tmp_path, model.config, model.params, params)
    again = load_adapter(tmp_path, model.config, model.params)
    assert same(params, again) == exact
    if not exact:
        got, wanted = outputs(model, again, TOKENS_BT), outputs(model, params, TOKENS_BT)
        assert np.abs(got - wanted).max() < 2e-5


@pytest.mark.parametrize(
    ("base", "patterns"),
    [
        ("llama3", [r"blocks/2/mlp/.*", r".*norm/scale", r"embed/.*"]),
        ("llama2", [r"blocks/1/attn/o/kernel", r"head/kernel"]),
        ("gpt2", [r"blocks/attn/(q|k)/bias", r"blocks/1/mlp_norm/bias", r"positions/.*", r"norm/.*"]),
    ],
)
def test_what_of_the_base_was_trained_besides_comes_back(base: str, patterns: list[str], tmp_path: Path) -> None:
    model = load_pretrained(BASES / base)
    params = add_lora(model.params, jax.random.key(0), rank=3, targets=r"blocks/attn/(q|v)/kernel")
    trainable, frozen = split(params, [r".*/lora_[ab]", *patterns])
    params = merge(moved(trainable, set(trainable)), frozen)
    save_adapter(tmp_path, model.config, model.params, params)
    again = load_adapter(tmp_path, model.config, model.params)
    assert same(params, again)
    stored = set(load_file(tmp_path / "adapter_model.safetensors"))
    # Nothing but what was trained, and what its modules hold besides.
    assert len(stored) < 30 and not any("mlp.up" in name and ".2." not in name for name in stored)


def test_a_head_for_labels_goes_with_the_adapter(tmp_path: Path) -> None:
    model = load_pretrained(BASES / "llama2")
    config, base = add_head(model.config, model.params, ["no", "yes"], jax.random.key(1))
    params = moved(add_lora(base, jax.random.key(0), rank=2), {"score/kernel", "blocks/attn/q/lora_b"})
    save_adapter(tmp_path, config, base, params)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    other = add_head(model.config, model.params, ["no", "yes"], jax.random.key(2))[1]
    assert same(params, load_adapter(tmp_path, config, other))
    with pytest.raises(UserError, match="answers in 2 labels.*add_head"):
        load_adapter(tmp_path, model.config, model.params)


def test_what_a_fused_module_has_no_adapter_for_keeps_its_norms(tmp_path: Path) -> None:
    model = load_pretrained(BASES / "gpt2")
    save_adapter(
        tmp_path, model.config, model.params, add_lora(model.params, jax.random.key(0), rank=2, magnitude=True)
    )
    magnitudes = load_file(tmp_path / "adapter_model.safetensors")
    kernel_IO = np.asarray(model.params["blocks/attn/k/kernel"][1])
    got = magnitudes["base_model.model.transformer.h.1.attn.c_attn.lora_magnitude_vector"][24:48]
    np.testing.assert_allclose(got, np.sqrt((kernel_IO**2).sum(0)), rtol=1e-6)


@pytest.mark.parametrize("base", ["llama3", "gpt2"])
def test_an_adapter_that_began_as_the_kernel_s_principal_part_comes_back_beside_the_kernel_itself(
    base: str, tmp_path: Path
) -> None:
    model = load_pretrained(BASES / base)
    params = add_lora(model.params, jax.random.key(0), rank=3, alpha=5, start="pissa")
    params = moved(params, {path for path in params if path.endswith(("lora_a", "lora_b"))})
    save_adapter(tmp_path, model.config, model.params, params)
    again = load_adapter(tmp_path, model.config, model.params)
    assert again["blocks/attn/q/lora_a"].shape[-1] == 6
    assert again["blocks/attn/q/kernel"] is model.params["blocks/attn/q/kernel"]
    assert np.abs(outputs(model, again, TOKENS_BT) - outputs(model, params, TOKENS_BT)).max() < 2e-5


def test_an_adapter_over_a_quantised_base_is_written_without_it(tmp_path: Path) -> None:
    model = load_pretrained(BASES / "llama3")
    base = quantize(model.params, "int8")
    lora = add_lora(model.params, jax.random.key(0), rank=2)
    params = moved(quantize(lora, "int8"), {"blocks/attn/v/lora_b"})
    save_adapter(tmp_path, model.config, base, params)
    assert same(params, load_adapter(tmp_path, model.config, base))
    assert all(".lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_a_base_that_is_cut_and_one_that_is_whole_take_the_same_adapter(tmp_path: Path) -> None:
    model = load_pretrained(BASES / "llama3")
    params = add_lora(model.params, jax.random.key(0), rank=3)
    trainable, frozen = split(params, [r"blocks/[12]/attn/q/lora_[ab]", r"blocks/1/mlp/up/kernel"])
    params = merge(moved(trainable, set(trainable)), frozen)
    save_adapter(tmp_path, model.config, model.params, params)
    whole = load_adapter(tmp_path, model.config, model.params)
    pieces = merge(*split(model.params, [r"blocks/0/.*"]))
    assert same(whole, params) and same(load_adapter(tmp_path, model.config, pieces), params)


def test_an_adapter_of_bfloat16_is_read_exactly_into_float32(tmp_path: Path) -> None:
    model = load_pretrained(BASES / "llama3", dtype="bfloat16")
    params = moved(add_lora(model.params, jax.random.key(0), rank=3), {"norm/scale"})
    half = {path: leaf.astype(jnp.bfloat16) if "lora_" in path else leaf for path, leaf in params.items()}
    save_adapter(tmp_path, model.config, model.params, half)
    again = load_adapter(tmp_path, model.config, model.params)
    assert again["blocks/attn/q/lora_a"].dtype == jnp.float32 and again["norm/scale"].dtype == jnp.bfloat16
    assert same(again, {path: leaf.astype(again[path].dtype) for path, leaf in half.items()})


def test_what_peft_cannot_say_is_refused(tmp_path: Path) -> None:
    model = load_pretrained(BASES / "gpt2")
    base, key = model.params, jax.random.key(0)
    lora = add_lora(base, key, rank=2)
    for params, match in (
        (base, "no added leaf that PEFT knows"),
        (add_ia3(lora), "leaves of IA3 and LORA"),
        (add_bottleneck(lora, key, rank=2), "no place for blocks/attn_adapter"),
        (moved(lora, {"blocks/attn/q/kernel"}), "kernel of attn/q in layer 0 was trained beside its adapter"),
        (moved(lora, {"blocks/attn/k/kernel"}), "c_attn was trained beside its adapter"),
        (add_lora(lora, key, rank=2, targets="blocks/mlp/up/kernel", magnitude=True), "some have none"),
        (add_ia3(base, inputs="blocks/attn/q/kernel"), "PEFT has one vector"),
    ):
        with pytest.raises(UserError, match=match):
            save_adapter(tmp_path, model.config, base, params)
    assert not list(tmp_path.iterdir())


def test_a_model_of_no_family_is_told_so(tmp_path: Path) -> None:
    config = ModelConfig(32, 16, 2, 2, 2, 8, 32, 64, norm="layer", positions="none")
    base = {path: jnp.zeros(leaf.shape) for path, leaf in shapes(config).items()}
    with pytest.raises(UserError, match="no published family"):
        save_adapter(tmp_path, config, base, add_lora(base, jax.random.key(1), rank=2))


def test_the_base_s_digest_is_that_of_its_trunk() -> None:
    model = load_pretrained(BASES / "llama2")
    classifier = add_head(model.config, model.params, ["a", "b"], jax.random.key(0))[1]
    assert base_digest(classifier) == base_digest(add_lora(model.params, jax.random.key(0), rank=2))
    assert base_digest(moved(model.params, {"norm/scale"})) != base_digest(model.params)
