"""Grouped-query attention over the sequence itself or over a key-value cache."""

from functools import partial
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


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Softmax attention, out_BTNH, probabilities in float32; scores are scaled by `scale`, if any, else by H ** -0.5.

    The queries of a group are one more stretch of the query axis, so all heads are one batched product
    [B*K, G*T, H] @ [B*K, H, S]: twice as fast in the backward pass on CPU as five-index einsums. The backward pass
    computes the probabilities again (Dao et al. 2022, arXiv 2205.14135): none are kept from the forward pass.
    """
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, cap)[0]


def _attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, cap):
    q, k, v = _by_heads(q_BTNH, k_BSKH.shape[2]), _by_heads(k_BSKH), _by_heads(v_BSKH)
    probabilities, _ = _probabilities(q, k, mask_BTS, scale, cap)
    out = jnp.einsum("bts,bsd->btd", probabilities.astype(v.dtype), v)
    out_BTNH = _by_tokens(out, q_BTNH.shape)
    return out_BTNH, (q_BTNH, k_BSKH, v_BSKH, mask_BTS, out_BTNH)


def _attend_backward(scale, cap, kept, gradient_BTNH):
    q_BTNH, k_BSKH, v_BSKH, mask_BTS, out_BTNH = kept
    K = k_BSKH.shape[2]
    q, k, v = _by_heads(q_BTNH, K), _by_heads(k_BSKH), _by_heads(v_BSKH)
    gradient, out = _by_heads(gradient_BTNH, K), _by_heads(out_BTNH, K)
    probabilities, scores = _probabilities(q, k, mask_BTS, scale, cap)
    v_gradient = jnp.einsum("bts,btd->bsd", probabilities.astype(v.dtype), gradient)
    per_probability = jnp.einsum("btd,bsd->bts", gradient, v, preferred_element_type=jnp.float32)
    mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    per_score = probabilities * (per_probability - mean)  # nothing where the mask is, as the probability is 0 there
    if cap is not None:
        per_score = per_score * (1.0 - jnp.square(scores / cap))
    per_score, factor = per_score.astype(q.dtype), _factor(scale, q.shape[-1])
    q_gradient = jnp.einsum("bts,bsd->btd", per_score, k) * factor
    k_gradient = jnp.einsum("bts,btd->bsd", per_score, q * factor)
    return (
        _by_tokens(q_gradient, q_BTNH.shape),
        _by_tokens(k_gradient, k_BSKH.shape),
        _by_tokens(v_gradient, v_BSKH.shape),
        None,
    )


attend.defvjp(_attend, _attend_backward)


def attend_causally(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask_BTT: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """`attend` where no token sees one to its right: in stretches of queries, each with the keys up to its end."""
    T = q_BTNH.shape[1]
    count = stretches(T)
    edges = [T * part // count for part in range(count + 1)]
    parts = [
        attend(q_BTNH[:, low:high], k_BTKH[:, :high], v_BTKH[:, :high], mask_BTT[:, low:high, :high], scale, cap)
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    return jnp.concatenate(parts, 1)


def stretches(length: int) -> int:
    """Of how many stretches the queries of a row are: more compute less of what is masked, in smaller products."""
    return 1 if length < 64 else min(16, max(4, length // 64))


def _factor(scale: float | None, head_dim: int) -> float:
    return head_dim**-0.5 if scale is None else scale


def _probabilities(q, k, mask_BTS, scale, cap):
    """(probabilities, capped scores before the mask), [B*K, G*T, S] and float32."""
    B, T, S = mask_BTS.shape
    scores = jnp.einsum("btd,bsd->bts", q * _factor(scale, q.shape[-1]), k, preferred_element_type=jnp.float32)
    scores = softcap(scores, cap)
    grouped = scores.reshape(B, -1, q.shape[1] // T, T, S)
    probabilities = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], grouped, _MASKED), -1)
    return probabilities.reshape(scores.shape), scores


def _by_heads(x_BTNH: jax.Array, groups_of: int | None = None) -> jax.Array:
    """[B*K, G*T, H]: the rows of each key-value head together."""
    B, T, N, H = x_BTNH.shape
    K = groups_of or N
    return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B * K, N // K * T, H)


def _by_tokens(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, T, N, H] again."""
    B, T, N, H = shape
    K = x.shape[0] // B
    return x.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(shape)


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
            out_BTNH = attend_causally(q_BTNH, k_BTKH, v_BTKH, mask_BTS, c.attention_scale, c.attention_softcap)
        else:
            # A slot is a position; a slot past a row's end is dropped, and one not yet written is never visible.
            row_B1 = jnp.arange(B)[:, None]
            k_LBSKH = cache.k_LBSKH.at[cache.layer, row_B1, positions_BT].set(k_BTKH, mode="drop")
            v_LBSKH = cache.v_LBSKH.at[cache.layer, row_B1, positions_BT].set(v_BTKH, mode="drop")
            cache = LayerCache(k_LBSKH, v_LBSKH, cache.layer)
            slots_BS = jnp.broadcast_to(jnp.arange(k_LBSKH.shape[2]), (B, k_LBSKH.shape[2]))
            mask_BTS = visible(positions_BT, slots_BS, None, None, place.window)
            k_BSKH, v_BSKH = k_LBSKH[cache.layer], v_LBSKH[cache.layer]
            out_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, c.attention_scale, c.attention_softcap)
        out_BTF = out_BTNH.reshape(B, T, c.num_heads * c.head_dim)
        return Linear(c.width, c.output_bias, (2 * c.depth) ** -0.5, name="o")(out_BTF), cache
