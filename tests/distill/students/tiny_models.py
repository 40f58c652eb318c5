"""Tiny models of noise, in every architecture that pruning must know, and what they compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import transformer
from limbeck.model.config import ModelConfig
from limbeck.model.rope import Rope

TINY = ModelConfig(vocab_size=29, width=12, depth=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=10, max_len=16)
VARIANTS = {
    "plain": {},
    "gpt2": {
        "norm": "layer", "positions": "learned", "gated_mlp": False, "activation": "gelu",
        "attention_bias": True, "output_bias": True, "mlp_bias": True, "embedding_scale": 12**0.5,
    },
    "gemma": {
        "norm_plus_one": True, "norm_placement": "both", "window": 4, "global_layers": (1,), "qk_norm": "head",
        "local_rope": Rope(100.0), "embedding_scale": 12**0.5,
    },
    "olmo": {
        "norm_placement": "post", "qk_norm": "projection", "unrotated_layers": (1,), "tied_embedding": False,
        "norm_eps": 1e-12,  # too small to tell how many heads a norm is over
    },
    "neox": {"norm": "layer", "parallel_residual": True, "rope": Rope(share=0.5), "tied_embedding": False},
    "classifier": {"labels": ("a", "b", "c"), "window": 3},
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)
apply = jax.jit(transformer.apply, static_argnums=0)
classify = jax.jit(transformer.classify, static_argnums=0)
TOKENS_BT = jax.random.randint(jax.random.key(3), (3, 12), 0, 29)


def built(variant: str = "plain", **more):
    """A model of noise, its norms and biases too, so that nothing hides behind ones and zeros."""
    config = dataclasses.replace(TINY, **(VARIANTS[variant] | more))
    rng = np.random.RandomState(0)

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = 0.3 * rng.normal(size=shape)
        return noise + (1.0 if path.endswith("scale") and not config.norm_plus_one else 0.0)

    return config, {
        path: jnp.asarray(leaf(path, each.shape), jnp.float32) for path, each in transformer.shapes(config).items()
    }


def outputs(config, params):
    """What the model's head says."""
    if config.labels:
        return classify(config, params, TOKENS_BT, jnp.full(3, 12))
    return apply(config, params, TOKENS_BT).logits_BTV
