"""From logits to a token: greedy, temperature, top-k, top-p and min-p, with settings per row.

Dimension key: `B` rows, `V` vocabulary.
"""

import jax
import jax.numpy as jnp

_COLDEST = 1e-6  # a temperature below this would divide by zero in float32


def filter_logits(
    logits_BV: jax.Array,
    *,
    temperature_B: jax.Array,
    top_k_B: jax.Array,
    top_p_B: jax.Array,
    min_p_B: jax.Array,
) -> jax.Array:
    """Logits of the distribution that is sampled from: scaled, and -inf for every token that is left out.

    Applied in this order: temperature (0 keeps the most likely token alone); top-k keeps the k most likely
    tokens (0 is off); top-p keeps the fewest of those whose renormalised probability reaches p (1 is off);
    min-p keeps tokens at least min_p times as likely as the most likely one (0 is off). Of equals, top-k
    and top-p prefer the lower token id, as argmax does. The most likely token is always kept.
    Returns float32 `[B, V]`.
    """
    temperature_B1 = temperature_B.astype(jnp.float32)[:, None]
    divisor_B1 = jnp.where(temperature_B1 > 0, jnp.maximum(temperature_B1, _COLDEST), 1)
    scaled_BV = logits_BV.astype(jnp.float32) / divisor_B1
    top_k_B = jnp.where(temperature_B > 0, top_k_B, 1)
    filters = jnp.any((top_k_B > 0) | (top_p_B < 1) | (min_p_B > 0))
    return jax.lax.cond(filters, lambda: _cut(scaled_BV, top_k_B, top_p_B, min_p_B), lambda: scaled_BV)


def sample(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    *,
    temperature_B: jax.Array,
    top_k_B: jax.Array,
    top_p_B: jax.Array,
    min_p_B: jax.Array,
) -> jax.Array:
    """One token id per row, int32 `[B]`; the settings are those of `filter_logits`, temperature 0 is greedy.

    Every row has its own PRNG key, so its token does not depend on the rows beside it. A batch that is greedy
    throughout costs one argmax.
    """

    def draw() -> jax.Array:
        kept_BV = filter_logits(
            logits_BV, temperature_B=temperature_B, top_k_B=top_k_B, top_p_B=top_p_B, min_p_B=min_p_B
        )
        return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)

    def greedy() -> jax.Array:
        return jnp.argmax(logits_BV.astype(jnp.float32), axis=-1).astype(jnp.int32)

    return jax.lax.cond(jnp.all(temperature_B <= 0), greedy, draw)


def _cut(scaled_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array, min_p_B: jax.Array) -> jax.Array:
    # Each filter keeps a prefix of the tokens in falling order, so the last kept token says it all
    # and the mask needs no inverse permutation.
    top_k_B1, top_p_B1, min_p_B1 = top_k_B[:, None], top_p_B[:, None], min_p_B[:, None]
    ids_BV = jax.lax.broadcasted_iota(jnp.int32, scaled_BV.shape, 1)
    falling_BV, order_BV = jax.lax.sort((-scaled_BV, ids_BV), num_keys=1, is_stable=True)
    falling_BV = -falling_BV

    keep_BV = (ids_BV < top_k_B1) | (top_k_B1 <= 0)
    probs_BV = jax.nn.softmax(jnp.where(keep_BV, falling_BV, -jnp.inf), axis=-1)
    mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    # Rounding lets the cumulative sum reach 1 before the last token; p = 1 must still keep them all.
    keep_BV &= (mass_before_BV < top_p_B1) | (top_p_B1 >= 1)
    keep_BV &= falling_BV >= falling_BV[:, :1] + jnp.log(min_p_B1)

    last_B1 = jnp.maximum(jnp.sum(keep_BV, axis=-1, keepdims=True) - 1, 0)
    cut_B1 = jnp.take_along_axis(falling_BV, last_B1, axis=-1)
    cut_id_B1 = jnp.take_along_axis(order_BV, last_B1, axis=-1)
    kept_BV = (scaled_BV > cut_B1) | ((scaled_BV == cut_B1) & (ids_BV <= cut_id_B1))
    return jnp.where(kept_BV, scaled_BV, -jnp.inf)
