"""Log-likelihoods on the device: of the last tokens of whole rows, and of options after a prompt that runs once.

Letters besides the usual ones: `O` options of a request, `U` tokens of an option. No array holds the logits of a
prompt: only those of its last position and of the options' tokens exist, a few rows at a time.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.inference.batches import batches, bucket, padded
from limbeck.model.cache import Cache, empty_cache
from limbeck.model.config import ModelConfig
from limbeck.model.decode import prefill
from limbeck.model.hosts import on_host
from limbeck.model.params import Params
from limbeck.model.prefix import prefix_length
from limbeck.model.transformer import hidden, hidden_of_padded, logits, with_prefix

_LOGITS = 128  # tokens whose logits exist at once


class Row(NamedTuple):
    """Token ids, of which the last `count`, not the first of all, are scored."""

    ids: tuple[int, ...]
    count: int


class Scored(NamedTuple):
    """The sum of the tokens' log-likelihoods, and whether each is the likeliest at its place."""

    logprob: float
    greedy: bool


def score_rows(config: ModelConfig, params: Params, rows: Sequence[Row], batch_size: int, fill: int) -> list[Scored]:
    """Each row's last tokens after all before them, each row run by itself."""
    room = config.max_len - prefix_length(params)
    scored: dict[int, Scored] = {}
    lengths = [bucket(len(row.ids) - 1, room) for row in rows]
    shapes = [(T, bucket(row.count, T, smallest=4)) for T, row in zip(lengths, rows, strict=True)]
    for (T, U), members in batches(shapes, batch_size):
        own = [rows[i] for i in members]
        tokens_BT, lengths_B = padded([row.ids[:-1] for row in own], T, batch_size, fill)
        targets_BU, counts_B = padded([row.ids[-row.count :] for row in own], U, batch_size, fill)
        out = on_host(_last(config, params, tokens_BT, lengths_B, targets_BU, counts_B))
        scored |= {i: Scored(float(out[0][row]), bool(out[1][row])) for row, i in enumerate(members)}
    return [scored[i] for i in range(len(rows))]


def score_options(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[tuple[int, ...]],
    options: Sequence[tuple[tuple[int, ...], ...]],
    batch_size: int,
    fill: int,
) -> list[list[Scored]]:
    """Each prompt's options: the prompt runs once, then its options one after another behind what it left.

    An option's first token is read off the prompt's last logits. With longrope, all texts that a prompt makes with its
    options must turn alike.
    """
    scored: dict[int, list[Scored]] = {}
    shapes = []
    for prompt, own in zip(prompts, options, strict=True):
        more = max(map(len, own)) - 1  # what is run of the longest option: all but its last token
        longest = 1 + (bucket(more, smallest=1) if more else 0)
        shapes.append((bucket(len(prompt)), bucket(len(own), smallest=1), longest))
    for (T, most, U), members in batches(shapes, batch_size):
        tokens_BT, lengths_B = padded([prompts[i] for i in members], T, batch_size, fill)
        options_OBU = np.full((most, batch_size, U), fill, np.int32)
        sizes_OB = np.zeros((most, batch_size), np.int32)
        for row, i in enumerate(members):
            for place, option in enumerate(options[i]):
                options_OBU[place, row, : len(option)] = option
                sizes_OB[place, row] = len(option)
        count = np.int32(max(len(options[i]) for i in members))
        out = on_host(_after(config, params, tokens_BT, lengths_B, options_OBU, sizes_OB, count))
        for row, i in enumerate(members):
            each = range(len(options[i]))
            scored[i] = [Scored(float(out[0][place, row]), bool(out[1][place, row])) for place in each]
    return [scored[i] for i in range(len(prompts))]


def mean_hidden(
    config: ModelConfig, params: Params, texts: Sequence[Sequence[int]], batch_size: int, fill: int
) -> np.ndarray:
    """mean_ND, float32: the mean over each text's tokens of what leaves the final norm."""
    room = config.max_len - prefix_length(params)
    mean_ND = np.zeros((len(texts), config.width), np.float32)
    for T, members in batches([bucket(len(text), room) for text in texts], batch_size):
        tokens_BT, lengths_B = padded([texts[i] for i in members], T, batch_size, fill)
        mean_ND[members] = on_host(_mean(config, params, tokens_BT, lengths_B))[: len(members)]
    return mean_ND


@partial(jax.jit, static_argnums=0)
def _last(config, params, tokens_BT, lengths_B, targets_BU, counts_B) -> tuple[jax.Array, jax.Array]:
    """(logprob_B, greedy_B)"""
    hidden_BTD = hidden_of_padded(config, params, tokens_BT, lengths_B)
    U = targets_BU.shape[1]
    at_BU = jnp.minimum((lengths_B - counts_B)[:, None] + jnp.arange(U), tokens_BT.shape[1] - 1)
    found_BU = _found(config, params, jnp.take_along_axis(hidden_BTD, at_BU[:, :, None], 1), targets_BU)
    return _summed(*found_BU, counts_B)


@partial(jax.jit, static_argnums=0)
def _after(config, params, tokens_BT, lengths_B, options_OBU, sizes_OB, count) -> tuple[jax.Array, jax.Array]:
    """(logprob_OB, greedy_OB) of the first `count` options."""
    params = with_prefix(config, params)
    (B, T), U = tokens_BT.shape, options_OBU.shape[2]
    total_B = lengths_B + sizes_OB.max(0) - 1
    cache = empty_cache(config, B, T + U - 1)._replace(total_B=total_B)
    logits_BV, cache = prefill(config, params, tokens_BT, lengths_B, cache)
    first_BO = options_OBU[:, :, 0].T
    logprob_OB = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), first_BO, 1).T
    greedy_OB = (first_BO == logits_BV.argmax(-1)[:, None]).T
    if U == 1:
        return logprob_OB, greedy_OB

    def option(at, state):
        cache, logprob_OB, greedy_OB = state
        tokens_BU = options_OBU[at]
        hidden_BUD, after = cast(tuple[jax.Array, Cache], hidden(config, params, tokens_BU[:, :-1], cache=cache))
        found_BU = _found(config, params, hidden_BUD, tokens_BU[:, 1:])
        logprob_B, greedy_B = _summed(*found_BU, sizes_OB[at] - 1)
        # The next option takes this one's slots: each of its queries sees only what it has written over by then.
        cache = after._replace(length_B=cache.length_B)
        return cache, logprob_OB.at[at].add(logprob_B), greedy_OB.at[at].set(greedy_OB[at] & greedy_B)

    return jax.lax.fori_loop(0, count, option, (cache, logprob_OB, greedy_OB))[1:]


@partial(jax.jit, static_argnums=0)
def _mean(config, params, tokens_BT, lengths_B) -> jax.Array:
    hidden_BTD = hidden_of_padded(config, params, tokens_BT, lengths_B).astype(jnp.float32)
    real_BT1 = (jnp.arange(tokens_BT.shape[1]) < lengths_B[:, None])[:, :, None]
    return jnp.where(real_BT1, hidden_BTD, 0).sum(1) / lengths_B[:, None]


def _found(config, params, hidden_BUD, targets_BU) -> tuple[jax.Array, jax.Array]:
    """(logprob_BU of the targets, whether each is the likeliest): the logits of a few rows at a time."""

    def row(xs):
        hidden_UD, targets_U = xs
        logits_UV = logits(config, params, hidden_UD)
        logprobs_U = jnp.take_along_axis(jax.nn.log_softmax(logits_UV), targets_U[:, None], 1)[:, 0]
        return logprobs_U, logits_UV.argmax(-1) == targets_U

    rows = max(1, _LOGITS // targets_BU.shape[1])
    return jax.lax.map(row, (hidden_BUD, jnp.asarray(targets_BU)), batch_size=rows)


def _summed(logprob_BU, greedy_BU, counts_B) -> tuple[jax.Array, jax.Array]:
    """Over the first `counts_B` of each row."""
    real_BU = jnp.arange(logprob_BU.shape[1]) < counts_B[:, None]
    return jnp.where(real_BU, logprob_BU, 0.0).sum(1), (greedy_BU | ~real_BU).all(1)
