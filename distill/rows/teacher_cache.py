"""A teacher asked once: what it says of every token of the training rows, on disk, to be read any number of times.

Dimension key: `B` rows, `T` length, `S` length of the teacher's own rows, `N` tokens that are asked for, `C` of them at
a time, `K` entries kept of a distribution, `V` vocabulary.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.distill.config import Cache
from limbeck.distill.rows.spans import Sheet, bytes_of, kept
from limbeck.model.chosen import filled_outside
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.hosts import on_host
from limbeck.model.params import Params, digest
from limbeck.model.transformer import head_kernel, hidden, logits
from limbeck.train.data import Arrays, Rows
from limbeck.train.loss import chunk_rows

IDS, LOGPROBS = "teacher_ids_BTK", "teacher_logprobs_BTK"
_PAIRED = ("teacher_tokens_BS", "teacher_positions_BS", "teacher_segments_BS", "teacher_at_BT")
_SCHEMA = 1  # goes up with every change of what is kept, or of how


class _Kept(NamedTuple):
    """What is kept of each distribution: over how many tokens it is, how many entries, how often it is drawn from."""

    vocab_size: int
    entries: int
    draws: int | None  # None: the likeliest tokens are kept


def cached_teacher(
    folder: str | os.PathLike[str],
    rows: Rows,
    teacher_config: ModelConfig,
    teacher_params: Params,
    tokenizer_digest: str,
    *,
    kind: Cache,
    k: int,
    batch_size: int,
    weights_digest: str | None = None,
    seed: int = 0,
    vocab_size: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> Rows:
    """The same rows with `teacher_ids_BTK` and `teacher_logprobs_BTK` in each group, memory-mapped from `folder`.

    Of the kinds "topk" and "topk_tail", which share what is kept, an entry is one of the k likeliest tokens, the
    likeliest first, with its log-probability over the whole vocabulary at temperature 1. Of the kind "sampled"
    (arXiv 2503.16870) it is one of the distinct tokens of k draws with replacement, and log(times drawn / k); entries
    that are left are -inf, and token 0. Draws hang on `seed` and the token's place alone, and their probabilities are
    true to 1e-7. K is k, or the whole vocabulary where that is smaller. Ids have the smallest integer type that holds
    them. The vocabulary is the teacher's, or its first `vocab_size` tokens, as many as the student has: what lies
    beyond is left out of the softmax. Of a classifier it is the labels.

    The teacher is asked only about tokens of weight above 0; the entries of others are 0. Rows that pair the student's
    with the teacher's own (`teacher_tokens_BS`, ...) are asked about those, and carry the answer in their place; where
    `teacher_at_BT` is -1, all entries are -inf.

    The numbers are made once (see `spans.py`) for weights, config, tokenizer, rows, kind, k, seed, vocabulary and type,
    whatever the batch size. float16 moves the loss by less than 1e-4 of itself, and a tail by up to 2e-4.
    `weights_digest` is that of the parameters where it is known, `tokenizer_digest` that of the tokenizer. Raises
    UserError for settings that cannot be, a teacher that does not fit the rows or whose output is no number, and where
    the disk does not take it.
    """
    config = teacher_config
    one_of("kind of cached teacher", kind, get_args(Cache))
    one_of("dtype of a cached teacher", dtype, ("float32", "float16"))
    for name, value in (("k", k), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    if len(config.labels) == 1:
        raise UserError(f"the teacher's head gives a number ({config.labels[0]}), which needs no cache: use it live")
    _check_tokens(rows, config)
    outputs = len(config.labels) or config.vocab_size
    V = min(vocab_size or outputs, outputs)
    keep = _Kept(V, min(k, V), k if kind == "sampled" else None)
    drawn = [k, seed] if kind == "sampled" else []
    asked = [weights_digest or digest(teacher_params), tokenizer_digest, _arithmetic(config), dtype, *keep[:2], *drawn]
    entry = Path(folder) / f"{'sampled' if drawn else 'topk'}-{_key(asked, rows)}"
    small = np.min_scalar_type(V)
    dtypes = {IDS: small if small.itemsize < 4 else np.dtype(np.int32), LOGPROBS: np.dtype(dtype)}
    shapes = [(group["tokens_BT"].shape[1], keep.entries) for group in rows.groups]
    sheets = [
        Sheet(len(group["tokens_BT"]), {name: (shape, dtypes[name]) for name in dtypes})
        for group, shape in zip(rows.groups, shapes, strict=True)
    ]

    def make(number: int, start: int, stop: int, advance: Callable[[int], None]) -> Arrays:
        span = {name: np.zeros((stop - start, *shapes[number]), dtypes[name]) for name in dtypes}
        key = jax.random.fold_in(jax.random.key(seed), number)
        for low in range(start, stop, batch_size):
            high = min(low + batch_size, stop)
            part = {name: array[low:high] for name, array in rows.groups[number].items()}
            row_N, place_N, ids_NK, logprobs_NK = _answers(config, teacher_params, part, low, key, keep, batch_size)
            span[IDS][row_N + low - start, place_N] = ids_NK
            span[LOGPROBS][row_N + low - start, place_N] = logprobs_NK
            advance(high - low)
        return span

    arrays = kept(entry, sheets, make, batch_size, "teacher cache")
    groups = [
        {name: array for name, array in group.items() if name not in _PAIRED} | own
        for group, own in zip(rows.groups, arrays, strict=True)
    ]
    return rows._replace(groups=tuple(groups))


def bytes_per_token(rows: Rows) -> float:
    """Bytes on disk of the cached teacher for each token that is learned (weight above 0); 0 where there is none."""
    taken = sum(group[name].nbytes for group in rows.groups for name in (IDS, LOGPROBS) if name in group)
    learned = sum(int(np.count_nonzero(group["weights_BT"] > 0)) for group in rows.groups)
    return taken / learned if learned else 0.0


def _check_tokens(rows: Rows, config: ModelConfig) -> None:
    for group in rows.groups:
        most = int(group.get("teacher_tokens_BS", group["tokens_BT"]).max())
        if most >= config.vocab_size:
            raise UserError(
                f"the rows hold token {most}, and the teacher's vocabulary ends at {config.vocab_size - 1}: "
                "make them with its own tokenizer"
            )


def _arithmetic(config: ModelConfig) -> str:
    """What of a config changes the numbers that the same weights give."""
    return repr(dataclasses.replace(config, scan=True, remat="none", family=""))


def _key(asked: list[str | int], rows: Rows) -> str:
    """A digest of everything that the numbers hang on."""
    sha = hashlib.sha256(json.dumps([_SCHEMA, *asked]).encode())
    for group in rows.groups:
        read = [name for name in ("tokens_BT", "positions_BT", "segments_BT", *_PAIRED) if name in group]
        for name, array in {**{name: group[name] for name in read}, "asked": group["weights_BT"] > 0}.items():
            header = json.dumps([name, array.dtype.str, array.shape]).encode()
            sha.update(len(header).to_bytes(8, "little") + header)
            sha.update(bytes_of(array))
    return sha.hexdigest()[:32]


def _answers(
    config: ModelConfig, params: Params, part: Arrays, first: int, key: jax.Array, keep: _Kept, batch: int
) -> tuple[np.ndarray, ...]:
    """(row_N, place_N, ids_NK, logprobs_NK) of the tokens of weight above 0 in some rows, the first of them `first`.

    The arrays that the device sees have `batch` rows and as many tokens as these hold, so that there is one program.
    """
    count, length = part["tokens_BT"].shape
    row_N, place_N = np.nonzero(part["weights_BT"] > 0)
    names = _PAIRED[:3] if _PAIRED[0] in part else ("tokens_BT", "positions_BT", "segments_BT")
    read = [np.pad(part[name], [(0, batch - count), (0, 0)]) for name in names]
    seen_N = part[_PAIRED[3]][row_N, place_N] if _PAIRED[3] in part else place_N
    at_N = row_N * read[0].shape[1] + seen_N
    chunk = chunk_rows(len(config.labels) or config.vocab_size, batch * length)
    fill = [(0, -(-batch * length // chunk) * chunk - len(row_N))]
    where = [np.pad(x.astype(np.int32), fill) for x in (np.where(seen_N < 0, 0, at_N), row_N + first, place_N)]
    asked = _ask(config, params, *read, *where, np.int32(len(row_N)), key, keep=keep, chunk=chunk)
    ids_NK, logprobs_NK = (np.array(x[: len(row_N)]) for x in on_host(asked))
    if np.isnan(logprobs_NK).any():
        raise UserError("the teacher's output is no number: look at its weights, or compute in another dtype")
    ids_NK[seen_N < 0], logprobs_NK[seen_N < 0] = 0, -np.inf
    return row_N, place_N, ids_NK, logprobs_NK


@partial(jax.jit, static_argnames=("config", "keep", "chunk"))
def _ask(config, params, tokens_BT, positions_BT, segments_BT, at_N, row_N, place_N, count, key, *, keep, chunk):
    """(ids_NK, logprobs_NK) of the first `count` of N tokens, in chunks: no logits of a batch exist whole."""
    params = filled_outside(params)
    hidden_BTD, _ = hidden(config, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    hidden_ND = hidden_BTD.reshape(-1, config.width)

    def answer(number, answers):
        at_C, row_C, place_C = (jax.lax.dynamic_slice_in_dim(x, number * chunk, chunk) for x in (at_N, row_N, place_N))
        logprobs_CV = jax.nn.log_softmax(_scores(config, params, hidden_ND[at_C])[:, : keep.vocab_size])
        if keep.draws is None:
            logprobs_CK, ids_CK = jax.lax.top_k(logprobs_CV, keep.entries)
        else:
            of_place = jax.vmap(lambda row, place: jax.random.fold_in(jax.random.fold_in(key, row), place))
            keys_C = of_place(row_C, place_C)
            ids_CK, logprobs_CK = jax.vmap(partial(_drawn, keep))(keys_C, logprobs_CV)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), number * chunk, 0)
            for x, new in zip(answers, (ids_CK, logprobs_CK), strict=True)
        )

    shape = (len(at_N), keep.entries)
    nothing = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return jax.lax.fori_loop(0, (count + chunk - 1) // chunk, answer, nothing)


def _scores(config: ModelConfig, params: Params, hidden_CD: jax.Array) -> jax.Array:
    """Logits of the next token, or of a classifier's labels."""
    if not config.labels:
        return logits(config, params, hidden_CD)
    return jnp.dot(hidden_CD, head_kernel(params).astype(hidden_CD.dtype), preferred_element_type=jnp.float32)


def _drawn(keep: _Kept, key: jax.Array, logprobs_V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(ids_K of the distinct tokens that were drawn, log of each one's share of the draws), of one distribution."""
    assert keep.draws is not None
    cumulative_V = jnp.cumsum(jnp.exp(logprobs_V))
    # A uniform number for each draw; Gumbel noise would be one for each token of the vocabulary as well.
    level = jax.random.uniform(key, (keep.draws,)) * cumulative_V[-1]
    drawn = jnp.sort(jnp.searchsorted(cumulative_V, level, side="right"))
    slot = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), drawn[1:] != drawn[:-1]]))
    counts_K = jnp.zeros(keep.entries, jnp.int32).at[slot].add(1)
    ids_K = jnp.zeros(keep.entries, jnp.int32).at[slot].set(drawn)
    return ids_K, jnp.where(jnp.isnan(logprobs_V).any(), jnp.nan, jnp.log(counts_K / keep.draws))
