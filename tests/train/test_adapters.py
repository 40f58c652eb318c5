"""Folding what was added: of any adapters that share their modules the plain model computes the same."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import transformer
from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.transformer import init
from limbeck.train.adapters import add_ia3, add_lora, add_vera, fold_lora

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=3, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16,
    attention_bias=True, mlp_bias=True,
)  # fmt: skip
BASE = init(CONFIG, jax.random.key(0))
TOKENS_BT = jax.random.randint(jax.random.key(1), (2, 9), 0, 31)
SHARED = r"blocks/(attn/(q|k)|mlp/down)/kernel"  # modules of three shapes
KEY = jax.random.key(2)
ADAPTERS = {
    "ia3_in": lambda params, on: add_ia3(params, outputs=on, inputs=on),
    "ia3_out": lambda params, on: add_ia3(params, outputs=on, inputs=None),
    "lora": lambda params, on: add_lora(params, KEY, rank=3, alpha=6, targets=on),
    "lora_bias": lambda params, on: with_biases(add_lora(params, KEY, rank=3, alpha=6, targets=on)),
    "dora": lambda params, on: add_lora(params, KEY, rank=3, alpha=6, targets=on, magnitude=True),
    "dora_bias": lambda params, on: with_biases(add_lora(params, KEY, rank=3, alpha=6, targets=on, magnitude=True)),
    "vera": lambda params, on: add_vera(params, KEY, rank=3, targets=on),
}
LOW_RANK = {"lora", "lora_bias", "dora", "dora_bias"}  # of which a module has one
PAIRS = [pair for pair in itertools.combinations(ADAPTERS, 2) if not {*pair} <= LOW_RANK]
apply = jax.jit(transformer.apply, static_argnums=0)


def with_biases(params: Params) -> Params:
    ends = {path: leaf for path, leaf in params.items() if path.endswith("/lora_b")}
    return params | {path.removesuffix("_b") + "_bias": leaf[:, 0] for path, leaf in ends.items()}


def bent(params: Params) -> Params:
    """Other values of all that was added, far from where it began."""
    rng = np.random.default_rng(0)
    return {
        path: leaf if path in BASE else leaf + jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), jnp.float32)
        for path, leaf in sorted(params.items())
    }


def logits(params: Params) -> np.ndarray:
    return np.asarray(apply(CONFIG, params, TOKENS_BT).logits_BTV)




@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_pair_of_adapters_on_the_same_modules_is_folded_into_what_they_compute(pair):
    params = BASE
    for name in pair:
        params = ADAPTERS[name](params, SHARED)
    tuned = bent(params)
    folded = fold_lora(tuned)
    assert folded.keys() == BASE.keys()
    assert np.abs(logits(tuned) - logits(BASE)).max() > 0.1
    np.testing.assert_allclose(logits(folded), logits(tuned), atol=2e-5)


@pytest.mark.parametrize("pair", [("ia3_in", "dora"), ("ia3_in", "vera")], ids="+".join)
def test_some_layers_have_the_one_and_some_the_other(pair):
    layers = iter((r"blocks/(0|1)/mlp/down/kernel", r"blocks/(1|2)/mlp/down/kernel"))
    params = BASE
    for name in pair:
        params = ADAPTERS[name](params, next(layers))
    tuned = bent(params)
    np.testing.assert_allclose(logits(fold_lora(tuned)), logits(tuned), atol=2e-5)
