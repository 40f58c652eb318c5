"""Matching relations: a loop over heads that are cut anew, and what they are blind to."""

import jax.numpy as jnp
import numpy as np
import pytest
from matched_pair import TOKENS, B, T, naive, noise

from limbeck.distill.features import Heads, relation_divergence


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_relation_divergence_is_a_loop_over_heads_that_are_cut_anew(heads):
    s, t = noise(0, B, T, 2, 6), noise(1, B, T, 3, 8)
    cut = [x.reshape(B, T, heads, -1) for x in (s, t)]
    expected = naive(Heads(cut[0], cut[0]), Heads(cut[1], cut[1]), TOKENS, 99, "each")
    assert expected > 0.05
    np.testing.assert_allclose(relation_divergence(s, t, TOKENS, heads), expected, rtol=1e-5)


def test_relations_are_blind_to_a_rotation_inside_a_relation_head_alone():
    s, t = noise(0, B, T, 2, 6), noise(1, B, T, 2, 6)
    inside, across = (np.linalg.qr(np.random.default_rng(2).normal(size=(n, n)))[0] for n in (4, 12))
    turned = (s.reshape(B, T, 3, 4) @ jnp.asarray(inside, jnp.float32)).reshape(s.shape)
    mixed = (s.reshape(B, T, 12) @ jnp.asarray(across, jnp.float32)).reshape(s.shape)
    value = relation_divergence(s, t, TOKENS, 3)
    np.testing.assert_allclose(relation_divergence(turned, t, TOKENS, 3), value, rtol=1e-5)
    assert abs(relation_divergence(mixed, t, TOKENS, 3) - value) > 0.01 * value
    np.testing.assert_allclose(relation_divergence(turned, s, TOKENS, 3), 0.0, atol=1e-6)
