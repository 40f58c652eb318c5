"""The cache's pieces: what is written is read, in eight bits nearly so, and at a quarter of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model.cache import Coded, empty_cache, first_rows, read, write
from limbeck.model.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=8, width=128, depth=2, num_heads=2, num_kv_heads=2, head_dim=64, mlp_dim=8, max_len=32
)


@pytest.mark.parametrize("coded", [False, True])
def test_what_is_written_is_read(coded):
    piece = empty_cache(CONFIG, 3, 5, coded).k[0]
    x_BTKH = jax.random.normal(jax.random.key(0), (3, 2, 2, 64)).at[0, 0, 1].set(0.0)
    positions_BT = jnp.array([[0, 1], [3, 4], [4, 5]])  # the last slot is not there: dropped
    found_BKSH = read(write(piece, 1, positions_BT, x_BTKH), 1, jnp.float32)
    expected_BKSH = np.zeros((3, 2, 5, 64), np.float32)
    for row, places in enumerate(positions_BT.tolist()):
        for at, slot in enumerate(places):
            if slot < 5:
                expected_BKSH[row, :, slot] = x_BTKH[row, at]
    largest = np.abs(expected_BKSH).max(-1, keepdims=True)
    assert (np.abs(found_BKSH - expected_BKSH) <= (largest / 254 + 1e-6 if coded else 0)).all()
    assert not read(write(piece, 1, positions_BT, x_BTKH), 0, jnp.float32).any()
    np.testing.assert_array_equal(
        first_rows([write(piece, 1, positions_BT, x_BTKH)], jnp.float32)[1].swapaxes(0, 1), found_BKSH[0]
    )


def test_eight_bits_take_about_a_quarter():
    plain, coded = (empty_cache(CONFIG, 3, 5, coded) for coded in (False, True))
    assert isinstance(coded.v[0], Coded)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves((cache.k, cache.v))) for cache in (plain, coded)]
    assert sizes[1] / sizes[0] == (64 + 4) / (4 * 64)
