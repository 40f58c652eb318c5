"""Grouped-query attention over the sequence itself or over a key-value cache."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from limbeck.model.config import ModelConfig
from limbeck.model.layers import Linear, Norm, Turn, rotate, softcap

_MASKED = -1e30  # finite: a query that sees nothing gets a uniform row instead of NaN


class Place(NamedTuple):
    """Where a layer's queries stand and what they may see; `turn` is None in a layer without rotary positions."""

    positions_BT: jax.Array
    segments_BT: jax.Array | None
    window: jax.Array
    turn: Turn | None


class LayerCache(NamedTuple):
    """The whole cache and which layer of it to use, so that a loop over layers updates it in place."""

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    layer: jax.Array


def visible(
    query_positions_BT: jax.Array,
    key_positions_BS: jax.Array,
    query_segments_BT: jax.Array | None,
    key_segments_BS: jax.Array | None,
    window: jax.Array | int,
) -> jax.Array:
    """mask_BTS: causal, inside the window, inside one's own packed document."""
    distance_BTS = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    mask_BTS = (distance_BTS >= 0) & (distance_BTS < window)
    if query_segments_BT is not None and key_segments_BS is not None:
        mask_BTS &= query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    return mask_BTS


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Softmax attention, probabilities in float32; the scores are scaled by `scale`, if any, else by H ** -0.5.

    The queries of a group are one more stretch of the query axis, so all heads are one batched product
    [B*K, G*T, H] @ [B*K, H, S]: twice as fast in the backward pass on CPU as five-index einsums.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B * K, G * T, H)
    k = k_BSKH.transpose(0, 2, 1, 3).reshape(B * K, S, H)
    v = v_BSKH.transpose(0, 2, 1, 3).reshape(B * K, S, H)
    factor = H**-0.5 if scale is None else scale
    scores = jnp.einsum("btd,bsd->bts", q * factor, k, preferred_element_type=jnp.float32)
    scores = softcap(scores, cap).reshape(B, K, G, T, S)
    scores = jnp.where(mask_BTS[:, None, None], scores, _MASKED)
    probabilities = jax.nn.softmax(scores, -1).astype(v.dtype).reshape(B * K, G * T, S)
    out = jnp.einsum("bts,bsd->btd", probabilities, v)
    return out.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N * H)


class Attention(nn.Module):
    """The block's attention half; with a cache it writes the new keys and values at their positions and reads all."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, place: Place, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        c = self.config
        B, T, _ = x_BTD.shape
        positions_BT = place.positions_BT

        def heads(name: str, count: int) -> jax.Array:
            x = Linear(count * c.head_dim, c.attention_bias, name=name)(x_BTD)
            norm = Norm(c, name=f"{name}_norm") if name != "v" and c.qk_norm != "none" else None
            if norm and c.qk_norm == "projection":
                x = norm(x)
            x_BTNH = x.reshape(B, T, count, c.head_dim)
            if norm and c.qk_norm == "head":
                x_BTNH = norm(x_BTNH)
            return rotate(x_BTNH, place.turn) if name != "v" and place.turn else x_BTNH

        q_BTNH, k_BTKH, v_BTKH = heads("q", c.num_heads), heads("k", c.num_kv_heads), heads("v", c.num_kv_heads)
        if cache is None:
            mask_BTS = visible(positions_BT, positions_BT, place.segments_BT, place.segments_BT, place.window)
            out = attend(q_BTNH, k_BTKH, v_BTKH, mask_BTS, c.attention_scale, c.attention_softcap)
        else:
            # A slot is a position; a slot past a row's end is dropped, and one not yet written is never visible.
            row_B1 = jnp.arange(B)[:, None]
            k_LBSKH = cache.k_LBSKH.at[cache.layer, row_B1, positions_BT].set(k_BTKH, mode="drop")
            v_LBSKH = cache.v_LBSKH.at[cache.layer, row_B1, positions_BT].set(v_BTKH, mode="drop")
            cache = LayerCache(k_LBSKH, v_LBSKH, cache.layer)
            slots_BS = jnp.broadcast_to(jnp.arange(k_LBSKH.shape[2]), (B, k_LBSKH.shape[2]))
            mask_BTS = visible(positions_BT, slots_BS, None, None, place.window)
            k_BSKH, v_BSKH = k_LBSKH[cache.layer], v_LBSKH[cache.layer]
            out = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, c.attention_scale, c.attention_softcap)
        return Linear(c.width, c.output_bias, (2 * c.depth) ** -0.5, name="o")(out), cache
