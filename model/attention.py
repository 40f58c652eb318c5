"""Grouped-query attention over the sequence itself or over a key-value cache."""

from functools import partial
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from limbeck.model.cache import LayerCache, read, write
from limbeck.model.config import ModelConfig
from limbeck.model.layers import Linear, Norm, Turn, rotate, softcap
from limbeck.model.sharding import ROWS, constrain
from limbeck.model.splash import ATTENDED, fits, splash

SEEN = "intermediates"  # the collection, mutable where it is asked for, that queries, keys and values are put into
_MASKED = -1e30  # finite: a query that sees nothing gets a uniform row instead of NaN


class Place(NamedTuple):
    """Where a layer's queries stand and what they may see; `turn` is None in a layer without rotary positions.

    `positions_BT` count a document's own tokens; `turn` counts a prefix before them too. `before` is how many of the
    prefix's keys stand there, None where all do.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array | None
    window: jax.Array
    turn: Turn | None
    before: jax.Array | None = None


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
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Softmax attention, out_BTNH, probabilities in float32; scores are scaled by `scale`, if any, else by H ** -0.5.

    The queries of a group are one more stretch of the query axis, so all heads are one batched product
    [B, K, G*T, H] @ [B, K, H, S]: twice as fast in the backward pass on CPU as five-index einsums. Rows and heads stay
    two axes, which a mesh splits apart. The backward pass computes the probabilities again (Dao et al. 2022, arXiv
    2205.14135): none are kept from the forward pass.
    """
    out = _attend(*_by_heads(q_BTNH, k_BKSH, v_BKSH, scale), mask_BTS, cap)
    return _by_tokens(cast(jax.Array, out), q_BTNH.shape)


def attend_causally(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
    prefix: int = 0,
) -> jax.Array:
    """`attend` where no token sees one to its right: in stretches of queries, each with the keys up to its end.

    The first `prefix` keys, values and columns of the mask are of no query's own: they come before the tokens'.
    """
    T = q_BTNH.shape[1]
    count = stretches(T)
    edges = [T * part // count for part in range(count + 1)]
    q, k, v = _by_heads(q_BTNH, k_BKSH, v_BKSH, scale)
    parts = [
        _attend(q[:, :, :, low:high], k[:, :, :end], v[:, :, :end], mask_BTS[:, low:high, :end], cap)
        for low, high in zip(edges, edges[1:], strict=False)
        for end in (prefix + high,)
    ]
    return _by_tokens(jnp.concatenate(cast(list[jax.Array], parts), 3), q_BTNH.shape)


def attend_behind(
    q_BTNH: jax.Array,
    prefix_k_PKH: jax.Array,
    prefix_v_PKH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTX: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """`attend` over the one prefix of all rows and each row's own keys, with nothing copied for each row.

    The mask's first P columns are the prefix's. One softmax over both: what Hydragen (Juravsky et al. 2024, arXiv
    2402.05099) merges by the sums of exponentials.
    """
    B, T, N, H = q_BTNH.shape
    P, K, _ = prefix_k_PKH.shape
    q, k, v = _by_heads(q_BTNH, k_BKSH, v_BKSH, scale)
    near = _scores(q, k, mask_BTX[:, :, P:], cap)
    # Heads before rows: the queries of all rows are one matrix, more than twice as fast on CPU as a product for each.
    q_KRH = _rows(q).swapaxes(0, 1).reshape(K, -1, H)
    far = jnp.einsum("krh,kph->krp", q_KRH, prefix_k_PKH.swapaxes(0, 1), preferred_element_type=jnp.float32)
    grouped = softcap(far, cap).reshape(K, B, N // K, T, P)
    far = jnp.where(mask_BTX[None, :, None, :, :P], grouped, _MASKED).reshape(far.shape)

    def by_row(x_KRX):
        return x_KRX.reshape(K, B, -1, x_KRX.shape[-1]).swapaxes(0, 1)

    top = jnp.maximum(by_row(far.max(-1, keepdims=True)), near.max(-1, keepdims=True))
    near = jnp.exp(near - top)
    far = jnp.exp(far - top.swapaxes(0, 1).reshape(K, -1, 1))
    total = by_row(far.sum(-1, keepdims=True)) + near.sum(-1, keepdims=True)
    prefix_v_KPH, float32 = prefix_v_PKH.swapaxes(0, 1), {"preferred_element_type": jnp.float32}
    out = by_row(jnp.einsum("krp,kph->krh", far.astype(v.dtype), prefix_v_KPH, **float32))
    out = (out + jnp.einsum("bkqs,bksh->bkqh", near.astype(v.dtype), v, **float32)) / total
    return _by_tokens(out.astype(v.dtype).reshape(q.shape), q_BTNH.shape)


def distributions(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    mask_BTS: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Log-probabilities [B, N, T, S], float32, of what `attend` takes the mean of the values by."""
    q, k, _ = _by_heads(q_BTNH, k_BKSH, k_BKSH, scale)
    B, T, N, _ = q_BTNH.shape
    return jax.nn.log_softmax(_scores(q, k, mask_BTS, cap)).reshape(B, N, T, -1)


def stretches(length: int) -> int:
    """Of how many stretches the queries of a row are: more compute less of what is masked, in smaller products."""
    return 1 if length < 64 else min(16, max(4, length // 64))


# In what follows q is q_BKGTH, k and v are k_BKSH and v_BKSH; Q is G*T.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, mask_BTS, cap):
    return _attend_forward(q, k, v, mask_BTS, cap)[0]


def _attend_forward(q, k, v, mask_BTS, cap):
    scores = _scores(q, k, mask_BTS, cap)
    top = scores.max(-1, keepdims=True)
    shares = jnp.exp(scores - top)
    total = shares.sum(-1, keepdims=True)
    # Divided after the product: H numbers a query instead of S.
    out = jnp.einsum("bkqs,bksh->bkqh", shares.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    out = checkpoint_name(out.astype(v.dtype), ATTENDED)
    log_total = checkpoint_name(jnp.log(total) + top, ATTENDED)
    return out.reshape(q.shape), (q, k, v, mask_BTS, out, log_total)


def _attend_backward(cap, kept, gradient):
    q, k, v, mask_BTS, out, log_total = kept
    scores = _scores(q, k, mask_BTS, cap)
    probabilities = jnp.exp(scores - log_total)
    gradient = gradient.reshape(out.shape)
    v_gradient = jnp.einsum("bkqs,bkqh->bksh", probabilities.astype(v.dtype), gradient)
    per_probability = jnp.einsum("bkqh,bksh->bkqs", gradient, v, preferred_element_type=jnp.float32)
    mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    per_score = probabilities * (per_probability - mean)  # nothing where the mask is, as the probability is 0 there
    if cap is not None:
        per_score = per_score * (1.0 - jnp.square(jnp.maximum(scores, -cap) / cap))
    per_score = per_score.astype(q.dtype)
    q_gradient = jnp.einsum("bkqs,bksh->bkqh", per_score, k).reshape(q.shape)
    k_gradient = jnp.einsum("bkqs,bkqh->bksh", per_score, _rows(q))
    return q_gradient, k_gradient, v_gradient, None


_attend.defvjp(_attend_forward, _attend_backward)


def _scores(q, k, mask_BTS, cap):
    """scores_BKQS, float32, capped and then masked."""
    scores = jnp.einsum("bkqh,bksh->bkqs", _rows(q), k, preferred_element_type=jnp.float32)
    return _masked(softcap(scores, cap), q, mask_BTS)


def _masked(scores, q, mask_BTS):
    grouped = scores.reshape(*q.shape[:-1], mask_BTS.shape[2])
    return jnp.where(mask_BTS[:, None, None], grouped, _MASKED).reshape(scores.shape)


def _rows(q):
    """q_BKQH"""
    B, K, G, T, H = q.shape
    return q.reshape(B, K, G * T, H)


def _by_heads(
    q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, scale: float | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(q_BKGTH, scaled, k_BKSH, v_BKSH)."""
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q = (q_BTNH * (H**-0.5 if scale is None else scale)).reshape(B, T, K, N // K, H)
    return q.transpose(0, 2, 3, 1, 4), k_BKSH, v_BKSH


def _by_tokens(out: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """out_BKGTH as out_BTNH."""
    return out.transpose(0, 3, 1, 2, 4).reshape(shape)


class Attention(nn.Module):
    """The block's attention half; with a cache it writes the new keys and values at their positions and reads all.

    Where there are `prefix_k` and `prefix_v` [P, K, H], all queries see them besides, whatever their document, as
    far as the window goes: they stand at the P positions before each document's first (see `prefix.py`).
    """

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
            x_BTNH = constrain(x.reshape(B, T, count, c.head_dim), ROWS, None, "tensor", None)
            if norm and c.qk_norm == "head":
                x_BTNH = norm(x_BTNH)
            return rotate(x_BTNH, place.turn) if name != "v" and place.turn else x_BTNH

        q_BTNH, k_BTKH, v_BTKH = heads("q", c.num_heads), heads("k", c.num_kv_heads), heads("v", c.num_kv_heads)
        self.sow(SEEN, "qkv", {"q": q_BTNH, "k": k_BTKH, "v": v_BTKH})
        if cache is None:
            mask_BTS = visible(positions_BT, positions_BT, place.segments_BT, place.segments_BT, place.window)
            k_BKSH, v_BKSH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        else:
            # A slot is a position; one not yet written is never visible.
            layer = cache.layer
            cache = LayerCache(
                write(cache.k, layer, positions_BT, k_BTKH), write(cache.v, layer, positions_BT, v_BTKH), layer
            )
            k_BKSH, v_BKSH = read(cache.k, layer, x_BTD.dtype), read(cache.v, layer, x_BTD.dtype)
            slots_BS = jnp.broadcast_to(jnp.arange(k_BKSH.shape[2]), (B, k_BKSH.shape[2]))
            mask_BTS = visible(positions_BT, slots_BS, None, None, place.window)
        settings = (c.attention_scale, c.attention_softcap)
        if not self.has_variable("params", "prefix_k"):
            if cache is None and fits(q_BTNH):
                reach = (place.segments_BT, place.window, c.layer_windows())
                out_BTNH = splash(q_BTNH, k_BKSH, v_BKSH, *reach, *settings)
            else:
                attend_own = attend_causally if cache is None else attend
                out_BTNH = attend_own(q_BTNH, k_BKSH, v_BKSH, mask_BTS, *settings)
        else:
            k_PKH, v_PKH = (self.get_variable("params", f"prefix_{part}").astype(k_BKSH.dtype) for part in "kv")
            prefix = k_PKH.shape[0]
            slots_P, used = jnp.arange(prefix), prefix if place.before is None else place.before
            near_BTP = positions_BT[:, :, None] + used - slots_P < place.window
            near_BTP = near_BTP if place.before is None else near_BTP & (slots_P < used)
            mask_BTX = jnp.concatenate([near_BTP, mask_BTS], -1)
            if cache is None:
                k_BKXH, v_BKXH = _put_before(k_PKH, k_BKSH), _put_before(v_PKH, v_BKSH)
                out_BTNH = attend_causally(q_BTNH, k_BKXH, v_BKXH, mask_BTX, *settings, prefix)
            else:
                out_BTNH = attend_behind(q_BTNH, k_PKH, v_PKH, k_BKSH, v_BKSH, mask_BTX, *settings)
        out_BTF = out_BTNH.reshape(B, T, c.num_heads * c.head_dim)
        return Linear(c.width, c.output_bias, (2 * c.depth) ** -0.5, name="o")(out_BTF), cache


def _put_before(prefix_PKH: jax.Array, x_BKSH: jax.Array) -> jax.Array:
    """The same prefix before the keys, or values, of every row."""
    prefix_KPH = prefix_PKH.swapaxes(0, 1)
    return jnp.concatenate([jnp.broadcast_to(prefix_KPH, (x_BKSH.shape[0], *prefix_KPH.shape)), x_BKSH], 2)
