"""Matching a student's inside to its teacher's: hidden states, attention, relations between tokens.

Each is a mean over tokens, and here every real token counts (segments_BT > 0), prompts too: what a model makes of a
prompt is worth learning even where its next token is not. Padding may hold anything, NaN included, and adds exactly
nothing to value or gradient. The teacher receives no gradient. Distances, softmax and sums are float32.

Dimension key: as in `model/config.py`, with `A` relation heads and `P` pairs of layers; the student's and the
teacher's width, heads and head dim may differ.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.distill.match_config import MatchConfig, Plan, planned
from limbeck.model.attention import distributions, stretches, visible
from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.train.loss import Batch, Metrics

Captured = Mapping[str, jax.Array]  # what `transformer.captured` shows of a model


class Matching(NamedTuple):
    """What to capture of both models, and `loss(params, student's, teacher's, batch) -> (scalar, metrics)` of it.

    Metrics, without their weights: `match_hidden`, `match_attention`, `match_relations`, those that there are.
    """

    names: tuple[str, ...]
    loss: Callable[[Params, Captured, Captured, Batch], tuple[jax.Array, Metrics]]


class Heads(NamedTuple):
    """What a layer's distributions over places come from; `scale` and `cap` as in `attention.attend`."""

    q_BTNH: jax.Array
    k_BTKH: jax.Array
    scale: float | None = None
    cap: float | None = None


class Tokens(NamedTuple):
    """Where the tokens of a batch stand, and in which packed document; segment 0 is padding."""

    positions_BT: jax.Array
    segments_BT: jax.Array


def matching(config: MatchConfig, student: ModelConfig, teacher: ModelConfig) -> Matching | None:
    """The weighted sum of the terms that `config` asks for, or None where it asks for none.

    `params` of the loss are those that `add_matchers` gave; of the batch it reads positions and segments, which both
    models had. It is a mean over real tokens, not over targets: of the portions of a batch that `make_step` weighs by
    their targets, the sum is not that of the batch. Raises UserError as `planned` does.
    """
    plan = planned(config, student, teacher)
    needed = {"hidden": plan.hidden, "q": plan.attention, "k": plan.attention}
    names = {name for name, pairs in needed.items() if pairs} | set(config.related if plan.relations else ())
    if not names:
        return None

    def loss(params: Params, seen: Captured, taught: Captured, batch: Batch) -> tuple[jax.Array, Metrics]:
        tokens = Tokens(jnp.asarray(batch["positions_BT"]), jnp.asarray(batch["segments_BT"]))
        taught = {name: jax.lax.stop_gradient(array) for name, array in taught.items()}
        terms = {}
        if plan.hidden:
            terms["hidden"] = _hidden_term(config, plan, params, seen["hidden"], taught["hidden"], tokens)
        if plan.attention:
            terms["attention"] = _attention_term(config, plan, student, teacher, seen, taught, tokens)
        if plan.relations:
            (mine, others), heads = plan.relations[0], config.relation_heads
            each = [
                relation_divergence(seen[name][mine - 1], taught[name][others - 1], tokens, heads)
                for name in config.related
            ]
            terms["relations"] = jnp.stack(each).mean()
        total = jnp.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
        return total, {f"match_{name}": jax.lax.stop_gradient(term) for name, term in terms.items()}

    return Matching(tuple(sorted(names)), loss)


def add_matchers(
    config: MatchConfig,
    student: ModelConfig,
    teacher: ModelConfig,
    params: Mapping[str, jax.Array],
    key: jax.Array,
) -> Params:
    """The parameters with `matcher/hidden_<i>/kernel` [student's D, teacher's D] for pair i where states are projected.

    Equal widths begin with the identity, others at random. Raises UserError as `planned` does.
    """
    plan = planned(config, student, teacher)
    shape = (student.width, teacher.width)
    kernels = {}
    for index in range(len(plan.hidden) if plan.projected else 0):
        noise = student.width**-0.5 * jax.random.normal(jax.random.fold_in(key, index), shape)
        kernels[_matcher(index)] = jnp.eye(student.width) if student.width == teacher.width else noise
    return {**params, **kernels}


def relative_error(student_BTD: jax.Array, teacher_BTD: jax.Array, tokens: Tokens) -> jax.Array:
    """Mean over tokens of |s - t|^2 / |t|^2: 0 for equal states, 1 for a student of zeros, at any scale of the teacher.

    The mean squared error over that of a student of zeros (SquareHead, Kurtic et al. 2023, arXiv 2310.06927), but token
    by token: a text's first token can have a state a thousand times longer than all others (Sun et al. 2024, arXiv
    2402.17762), and would be all that a sum over tokens sees. A token of which the teacher's state is 0 adds nothing.
    """
    s_BTD, t_BTD = (_real(x_BTD, tokens).astype(jnp.float32) for x_BTD in (student_BTD, teacher_BTD))
    length_BT = jnp.square(t_BTD).sum(-1)
    some_BT = length_BT > 0
    error_BT = jnp.square(s_BTD - t_BTD).sum(-1) / jnp.where(some_BT, length_BT, 1.0)
    return _mean(jnp.where(some_BT, error_BT, 0.0), tokens)


def cosine_distance(student_BTD: jax.Array, teacher_BTD: jax.Array, tokens: Tokens) -> jax.Array:
    """Mean over tokens of 1 - cos(s, t), in [0, 2] (DistilBERT, Sanh et al. 2019, arXiv 1910.01108).

    As half the squared distance of the two unit vectors, which is exact near 0. A state of 0 has no direction: it
    stays 0, and adds a half.
    """

    def unit(x_BTD: jax.Array) -> jax.Array:
        x_BTD = _real(x_BTD, tokens).astype(jnp.float32)
        square_BT1 = jnp.square(x_BTD).sum(-1, keepdims=True)
        return x_BTD * jnp.where(square_BT1 > 0, jax.lax.rsqrt(jnp.where(square_BT1 > 0, square_BT1, 1.0)), 0.0)

    return _mean(0.5 * jnp.square(unit(student_BTD) - unit(teacher_BTD)).sum(-1), tokens)


def attention_divergence(
    student: Heads, teacher: Heads, tokens: Tokens, window: jax.Array | int, heads: str = "mean"
) -> jax.Array:
    """Mean over queries of KL(teacher's || student's) distributions over the places that both see.

    Those are earlier ones of the same document, less than `window` back; the share of virtual tokens is left out of
    both. `heads`: "mean", the divergence of the means over all heads, or "each", the mean over heads of their
    divergences, as in MiniLM (Wang et al. 2020, arXiv 2002.10957, section 3.1). Goes over stretches of queries, each
    worked out again in the backward pass: no [B, N, T, T] is there as a whole.
    """
    models = [model._replace(q_BTNH=_real(model.q_BTNH, tokens), k_BTKH=_real(model.k_BTKH, tokens))
              for model in (student, teacher)]  # fmt: skip
    T = tokens.segments_BT.shape[1]
    count = stretches(T)
    edges = [T * part // count for part in range(count + 1)]

    def stretch(arrays, low: int, high: int) -> jax.Array:
        positions_BT, segments_BT = tokens
        mask_BTS = visible(
            positions_BT[:, low:high], positions_BT[:, :high], segments_BT[:, low:high], segments_BT[:, :high], window
        )
        logs = []
        for model, (q_BTNH, k_BTKH) in zip(models, arrays, strict=True):
            k_BKSH = k_BTKH[:, :high].swapaxes(1, 2)
            log_BNTS = distributions(q_BTNH[:, low:high], k_BKSH, mask_BTS, model.scale, model.cap)
            if heads == "mean":
                log_BNTS = jax.nn.logsumexp(log_BNTS, axis=1, keepdims=True) - np.log(log_BNTS.shape[1])
            logs.append(log_BNTS)
        q_BNTS, p_BNTS = logs
        shares_BNTS = jnp.where(mask_BTS[:, None], jnp.exp(p_BNTS) * (p_BNTS - q_BNTS), 0.0)
        return shares_BNTS.sum(-1).mean(1)

    arrays = [model[:2] for model in models]
    parts = [
        jax.checkpoint(functools.partial(stretch, low=low, high=high))(arrays)
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    return _mean(jnp.concatenate(parts, 1), tokens)


def relation_divergence(student_BTKH: jax.Array, teacher_BTKH: jax.Array, tokens: Tokens, heads: int) -> jax.Array:
    """Mean over tokens and relation heads of KL(teacher's || student's) relations (MiniLMv2, Wang et al. 2021, arXiv
    2012.15828, section 3.1).

    All heads' queries (or keys, or values) of a token are laid end to end and cut anew into `heads` vectors; a relation
    is softmax(x_i . x_j / sqrt(size)) over the places j of the same document that are not after i. Here queries and
    keys are turned by their positions, as attention takes them.
    """
    B, T = tokens.segments_BT.shape
    mine, others = (x.reshape(B, T, heads, -1) for x in (student_BTKH, teacher_BTKH))
    return attention_divergence(Heads(mine, mine), Heads(others, others), tokens, T, "each")


def _hidden_term(
    config: MatchConfig, plan: Plan, params: Params, seen_LBTD: jax.Array, taught_LBTD: jax.Array, tokens: Tokens
) -> jax.Array:
    distance = relative_error if config.hidden_distance == "mse" else cosine_distance

    @jax.checkpoint  # or each pair keeps float32 copies of its states
    def of_pair(student_BTD: jax.Array, teacher_BTD: jax.Array, kernel: jax.Array | None) -> jax.Array:
        if kernel is not None:
            flat = _real(student_BTD, tokens).reshape(-1, kernel.shape[0])
            student_BTD = (flat @ kernel.astype(flat.dtype)).reshape(teacher_BTD.shape)
        return distance(student_BTD, teacher_BTD, tokens)

    each = [
        of_pair(seen_LBTD[mine], taught_LBTD[others], params[_matcher(index)] if plan.projected else None)
        for index, (mine, others) in enumerate(plan.hidden)
    ]
    return jnp.stack(each).mean()


def _attention_term(
    config: MatchConfig,
    plan: Plan,
    student: ModelConfig,
    teacher: ModelConfig,
    seen: Captured,
    taught: Captured,
    tokens: Tokens,
) -> jax.Array:
    mine_P, others_P = np.asarray(plan.attention).T - 1
    windows_P = np.minimum(np.asarray(student.layer_windows())[mine_P], np.asarray(teacher.layer_windows())[others_P])

    def of_pair(pair: tuple[jax.Array, ...]) -> jax.Array:
        q, k, teacher_q, teacher_k, window = pair
        return attention_divergence(
            Heads(q, k, student.attention_scale, student.attention_softcap),
            Heads(teacher_q, teacher_k, teacher.attention_scale, teacher.attention_softcap),
            tokens,
            window,
            config.attention_heads,
        )

    arrays = (seen["q"][mine_P], seen["k"][mine_P], taught["q"][others_P], taught["k"][others_P])
    return jax.lax.map(of_pair, (*arrays, jnp.asarray(windows_P, jnp.int32))).mean()


def _matcher(index: int) -> str:
    return f"matcher/hidden_{index}/kernel"


def _real(x: jax.Array, tokens: Tokens) -> jax.Array:
    """[B, T, ...] with zeros where padding is, before anything is computed from it: 0 * NaN would reach all."""
    real = (tokens.segments_BT > 0).reshape(*tokens.segments_BT.shape, *(1,) * (x.ndim - 2))
    return jnp.where(real, x, 0)


def _mean(d_BT: jax.Array, tokens: Tokens) -> jax.Array:
    real_BT = tokens.segments_BT > 0
    return jnp.where(real_BT, d_BT, 0.0).sum() / jnp.maximum(real_BT.sum(), 1)  # of padding alone: 0
