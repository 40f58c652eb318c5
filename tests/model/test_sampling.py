"""Sampling against its definition, written a second time in plain numpy float64, one row at a time."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from limbeck.model.sampling import filter_logits, sample

V = 6


def kept_by_definition(logits, temperature, top_k, top_p, min_p):
    """The tokens that may be sampled, one filter after the other."""
    falling = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
    if temperature == 0:
        return {falling[0]}
    weight = np.exp((np.asarray(logits, np.float64) - max(logits)) / temperature)
    survivors = falling[:top_k] if top_k else falling
    total, mass, nucleus = sum(weight[v] for v in survivors), 0.0, []
    for v in survivors:
        if top_p < 1 and mass / total >= top_p:
            break
        nucleus.append(v)
        mass += weight[v]
    return {v for v in nucleus or falling[:1] if weight[v] >= min_p * weight[falling[0]]}


def arrays(rows):
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    return {
        "temperature_B": jnp.asarray(temperature, jnp.float32),
        "top_k_B": jnp.asarray(top_k, jnp.int32),
        "top_p_B": jnp.asarray(top_p, jnp.float32),
        "min_p_B": jnp.asarray(min_p, jnp.float32),
    }


filtered = jax.jit(filter_logits)
drawn = jax.jit(sample)

TABLE = [
    # probabilities, temperature, top_k, top_p, min_p, tokens kept
    ([0.4, 0.3, 0.2, 0.1], 1.0, 0, 1.0, 0.0, {0, 1, 2, 3}),
    ([0.1, 0.2, 0.3, 0.4], 1.0, 2, 1.0, 0.0, {2, 3}),
    ([0.1, 0.2, 0.3, 0.4], 1.0, 9, 1.0, 0.0, {0, 1, 2, 3}),
    ([0.4, 0.3, 0.2, 0.1], 1.0, 0, 0.6, 0.0, {0, 1}),
    ([0.4, 0.3, 0.2, 0.1], 1.0, 0, 0.0, 0.0, {0}),
    ([0.4, 0.3, 0.2, 0.1], 1.0, 0, 1.0, 0.45, {0, 1, 2}),
    ([0.4, 0.3, 0.2, 0.1], 1.0, 0, 1.0, 1.0, {0}),
    ([0.4, 0.3, 0.2, 0.1], 1.0, 0, 1.0, 2.0, {0}),
    # top-p counts the probability left by top-k: 0.4 / 0.7 is not yet 0.6, but 0.4 / 0.7 is above 0.55
    ([0.4, 0.3, 0.2, 0.1], 1.0, 2, 0.6, 0.0, {0, 1}),
    ([0.4, 0.3, 0.2, 0.1], 1.0, 2, 0.55, 0.0, {0}),
    # temperature comes first: at 0.5 the probabilities are squared, 0.16 of 0.30 is above one half
    ([0.4, 0.3, 0.2, 0.1], 0.5, 0, 0.5, 0.0, {0}),
    ([0.4, 0.3, 0.2, 0.1], 1.0, 0, 0.5, 0.0, {0, 1}),
    # of equals the lower id wins, except for min-p, which treats equals alike
    ([0.25, 0.25, 0.25, 0.25], 1.0, 2, 1.0, 0.0, {0, 1}),
    ([0.25, 0.25, 0.25, 0.25], 1.0, 0, 0.5, 0.0, {0, 1}),
    ([0.25, 0.25, 0.25, 0.25], 1.0, 0, 1.0, 1.0, {0, 1, 2, 3}),
    ([0.1, 0.4, 0.1, 0.4], 0.0, 0, 1.0, 0.0, {1}),
]


@pytest.mark.parametrize(("probabilities", "temperature", "top_k", "top_p", "min_p", "kept"), TABLE)
def test_table(probabilities, temperature, top_k, top_p, min_p, kept):
    logits = jnp.log(jnp.asarray([probabilities]))
    out = filtered(logits, **arrays([(temperature, top_k, top_p, min_p)]))
    assert set(np.flatnonzero(np.isfinite(out[0])).tolist()) == kept


rows = st.tuples(
    # Steps of 1/8 make ties common and are exact in float32.
    st.lists(st.integers(-24, 24).map(lambda n: n / 8), min_size=V, max_size=V),
    st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    st.integers(0, V + 1),
    # No sum of a few exponentials lands on these, so rounding cannot decide.
    st.sampled_from([0.0, 0.123457, 0.512347, 0.891231, 1.0]),
    st.sampled_from([0.0, 0.0512347, 0.312341, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=4, max_size=4))
def test_filter_is_its_definition(batch):
    logits = [row[0] for row in batch]
    out = np.asarray(filtered(jnp.asarray(logits, jnp.float32), **arrays([row[1:] for row in batch])))
    for got, (row, temperature, *filters) in zip(out, batch, strict=True):
        kept = sorted(kept_by_definition(row, temperature, *filters))
        assert np.flatnonzero(np.isfinite(got)).tolist() == kept
        np.testing.assert_allclose(got[kept], np.asarray(row)[kept] / (temperature or 1), rtol=1e-6)


def test_nothing_filtered_changes_no_bit():
    logits = jax.random.normal(jax.random.key(0), (3, 5000)) * 20
    same = filtered(logits, **arrays([(1.0, 0, 1.0, 0.0)] * 3))
    beside_a_filtered_row = filtered(logits, **arrays([(1.0, 0, 1.0, 0.0)] * 2 + [(1.0, 5, 1.0, 0.0)]))
    np.testing.assert_array_equal(same, logits)
    np.testing.assert_array_equal(beside_a_filtered_row[:2], logits[:2])


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0, 0.0), (0.7, 4, 0.9, 0.05), (2.0, 0, 0.8, 0.0)])
def test_frequencies(setting):
    """A chi-square test whose seed is fixed: at 1e-4 a right sampler passes, a wrong probability fails."""
    logits = np.asarray([1.0, 0.3, -0.5, 0.9, -2.0, 0.0])
    n = 4000
    tokens = drawn(
        jnp.tile(jnp.asarray(logits, jnp.float32), (n, 1)),
        jax.random.split(jax.random.key(7), n),
        **arrays([setting] * n),
    )
    counts = np.bincount(tokens, minlength=V)
    kept = sorted(kept_by_definition(logits.tolist(), *setting))
    expected = np.exp(logits[kept] / setting[0])
    assert counts[kept].sum() == n
    assert stats.chisquare(counts[kept], n * expected / expected.sum()).pvalue > 1e-4


def test_a_row_does_not_depend_on_its_batch():
    logits = jax.random.normal(jax.random.key(1), (8, 40)) * 3
    keys = jax.random.split(jax.random.key(2), 8)
    row_settings = [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.8, 5, 0.9, 0.0), (1.5, 0, 0.7, 0.1)] * 2
    together = drawn(logits, keys, **arrays(row_settings))
    backwards = drawn(logits[::-1], keys[::-1], **arrays(row_settings[::-1]))
    np.testing.assert_array_equal(together, backwards[::-1])
    for i, setting in enumerate(row_settings):
        assert drawn(logits[i : i + 1], keys[i : i + 1], **arrays([setting]))[0] == together[i]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_greedy_is_argmax_alone_and_in_a_mixed_batch(dtype):
    logits = jax.random.normal(jax.random.key(3), (5, 30)).astype(dtype)
    logits = logits.at[0].set(0.0)  # all equal: the lowest id
    keys = jax.random.split(jax.random.key(4), 5)
    best = np.argmax(np.asarray(logits, np.float32), axis=-1)
    np.testing.assert_array_equal(drawn(logits, keys, **arrays([(0.0, 3, 0.5, 0.0)] * 5)), best)
    mixed = drawn(logits, keys, **arrays([(0.0, 0, 1.0, 0.0)] * 4 + [(1.0, 0, 1.0, 0.0)]))
    np.testing.assert_array_equal(mixed[:4], best[:4])
    # the coldest temperatures are greedy too, and neither overflow nor divide by zero
    cold = drawn(logits[1:], keys[1:], **arrays([(1e-30, 0, 0.9, 0.1)] * 4))
    np.testing.assert_array_equal(cold, best[1:])


def test_tokens_ruled_out_before_stay_out():
    logits = jnp.asarray([[-jnp.inf, 0.0, -jnp.inf, 1.0]])
    for setting in [(1.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (2.0, 0, 0.999, 0.001)]:
        out = filtered(logits, **arrays([setting]))
        assert np.isfinite(out[0]).tolist() == [False, True, False, True]
