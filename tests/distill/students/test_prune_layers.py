"""A student of some of its teacher's layers: which ones, and that they compute what they did."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import built, outputs, variants

from limbeck.distill.students.prune import from_layers, picked
from limbeck.model.params import block_path, cut


@variants
def test_chosen_layers_compute_what_they_did(variant):
    """Against the whole model in which the other layers add nothing."""
    config, params = built(variant, depth=4)
    layers = [1, 3]
    silent = dict(params)
    for path, leaf in params.items():
        parsed = block_path(path)
        if parsed and parsed[1].startswith(("attn/o/", "mlp/down/", "attn_post_norm", "mlp_post_norm")):
            # A norm's scale may be kept as its difference from one.
            off = -1.0 if path.endswith("scale") and config.norm_plus_one else 0.0
            silent[path] = leaf.at[jnp.asarray([i for i in range(4) if i not in layers])].set(off)
    small, own = from_layers(config, cut(params, [2]), layers)
    assert small.depth == len(layers)
    np.testing.assert_allclose(outputs(small, own), outputs(config, silent), rtol=1e-5, atol=1e-5)
    if variant == "gemma":
        assert (small.window, small.global_layers) == (4, (0,))
        assert from_layers(config, params, [1])[0].window is None  # it alone sees everything


@pytest.mark.parametrize(
    "pick, depth, of, layers",
    [
        ("first", 2, 5, (0, 1)), ("last", 2, 5, (3, 4)), ("spread", 2, 5, (0, 4)), ("spread", 3, 5, (0, 2, 4)),
        ("spread", 6, 12, (0, 2, 4, 7, 9, 11)), ("spread", 1, 5, (0,)), ("spread", 5, 5, (0, 1, 2, 3, 4)),
    ],
)  # fmt: skip
def test_layers_by_name(pick, depth, of, layers):
    assert picked(pick, depth, of) == layers


@pytest.mark.parametrize("of", [1, 2, 7, 13, 32])
def test_spread_layers_are_always_different(of):
    for depth in range(1, of + 1):
        layers = picked("spread", depth, of)
        assert len(set(layers)) == depth and layers == tuple(sorted(layers))
        assert layers[0] == 0 and (depth == 1 or layers[-1] == of - 1)
