"""Writing on: prefill a key-value cache, then one token at a time on the device, sampling and stopping included."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from limbeck.model.cache import AS_CACHED, Cache, Coded, Piece, empty_cache, first_rows
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.hosts import on_host
from limbeck.model.params import Params, join
from limbeck.model.prefix import PREFIX, USED, is_prefix, prefix_length
from limbeck.model.sampling import sample
from limbeck.model.sharding import ROWS, constrain
from limbeck.model.transformer import hidden, logits, with_prefix


class SamplingArrays(NamedTuple):
    """How each row samples (see `sampling.py`); a row's tokens depend on its own key alone.

    `key_B2` is the data of threefry keys, uint32, so that a caller may pass numpy arrays and no array is made on the
    device for one request.
    """

    key_B2: ArrayLike
    temperature_B: ArrayLike
    top_k_B: ArrayLike
    top_p_B: ArrayLike
    min_p_B: ArrayLike


class Generated(NamedTuple):
    """`tokens_BT[b, :length_B[b]]` were written; `logprobs_BT` are the model's own, before any filter.

    A row that met a stop token has it as its last and is `stopped_B`.
    """

    tokens_BT: jax.Array
    logprobs_BT: jax.Array
    length_B: jax.Array
    stopped_B: jax.Array


class Writing(NamedTuple):
    """Rows that are being written, each with the logits of its next token and how many tokens it may have.

    A row that is done goes through the model all the same; what it gives there is not kept.
    """

    logits_BV: jax.Array
    cache: Cache
    out: Generated
    limit_B: jax.Array

    @property
    def done_B(self) -> jax.Array:
        """Whether a row met a stop token or is full."""
        return self.out.stopped_B | (self.out.length_B >= self.limit_B)


def greedy(batch: int) -> SamplingArrays:
    """Settings for `batch` rows that always take the most likely token."""
    zeros_B = np.zeros(batch, np.float32)
    return SamplingArrays(
        np.zeros((batch, 2), np.uint32), zeros_B, zeros_B.astype(np.int32), np.ones_like(zeros_B), zeros_B
    )


def prefill(
    config: ModelConfig, params: Params, tokens_BT: jax.Array, lengths_B: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """(logits_BV after each row's last token, the cache): reads right-padded prompts into an empty cache.

    What padding wrote lies past the row's length: no query sees it before the row's own tokens replace it.
    """
    hidden_BTD, cache = cast(tuple[jax.Array, Cache], hidden(config, params, tokens_BT, cache=cache))
    last_BD = hidden_BTD[jnp.arange(tokens_BT.shape[0]), lengths_B - 1]
    return logits(config, params, last_BD), cache._replace(length_B=lengths_B)


def decode_step(config: ModelConfig, params: Params, tokens_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """(logits_BV of the next token, the cache with `tokens_B` in it)."""
    hidden_BTD, cache = cast(tuple[jax.Array, Cache], hidden(config, params, tokens_B[:, None], cache=cache))
    return logits(config, params, hidden_BTD[:, 0]), cache


def behind(config: ModelConfig, params: Params, text: Sequence[int], slots: int) -> Params:
    """The same model behind a text: its keys and values stand as a prefix of `slots` places before every other text.

    The text runs once, in a batch of one, behind the virtual tokens of the model, and takes their place; `slots`, at
    least its length, is all that compiled programs see of it. Such parameters are run with a cache. With longrope the
    text is turned as a short one. Not for a model of which only some layers have a prefix (`everywhere`).
    """
    params = with_prefix(config, params)
    if USED in params:  # behind another text: the places that it leaves empty are not kept
        used = int(params[USED])
        params = {path: leaf[:, :used] if is_prefix(path) else leaf for path, leaf in params.items() if path != USED}
    tokens_P = np.zeros(slots, np.int32)
    tokens_P[: len(text)] = text
    leaves = _left_by(config, params, tokens_P, np.int32(len(text)))
    return {path: leaf for path, leaf in params.items() if not is_prefix(path)} | leaves


def everywhere(config: ModelConfig, params: Params) -> bool:
    """Whether all layers have a prefix, or none has."""
    layers = sum(leaf.shape[0] for path, leaf in params.items() if path.endswith(PREFIX[0]))
    return layers in (0, config.depth)


@partial(jax.jit, static_argnums=0)
def _left_by(config: ModelConfig, params: Params, tokens_P: jax.Array, length: jax.Array) -> Params:
    slots = empty_cache(config, 1, len(tokens_P))._replace(total_B=length[None])
    cache = cast(Cache, hidden(config, params, tokens_P[None], cache=slots)[1])
    there = join({path: leaf for path, leaf in params.items() if is_prefix(path)})
    leaves: Params = {USED: prefix_length(params) + length}
    for name, made in zip(PREFIX, cache[:2], strict=True):
        own = [leaf.astype(config.dtype) for path, leaf in there.items() if path.endswith(name)]
        leaves[f"blocks/{name}"] = jnp.concatenate([*own, first_rows(made, config.dtype)], 1)
    return leaves


@partial(jax.jit, static_argnames=("config", "max_new_tokens"))
def generate(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    sampling: SamplingArrays,
    stop_V: jax.Array,
    max_new_tokens: int,
) -> Generated:
    """Continues right-padded prompts until each row met a token of the set `stop_V` (bool [V]) or is full.

    One compiled loop on the device, which ends when all rows have. The caller sees to it that prompt and
    continuation fit `config.max_len` (`check_room`).
    """
    params = with_prefix(config, params)
    state = _start(config, params, tokens_BT, lengths_B, max_new_tokens)
    return _advance(config, params, state, sampling, stop_V, max_new_tokens, len(lengths_B)).out


@partial(jax.jit, static_argnames=("config", "slots", "coded"))
def write_whole(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    limits_B: jax.Array,
    sampling: SamplingArrays,
    stop_V: jax.Array,
    slots: int,
    coded: bool,
) -> Generated:
    """What `fill` and `advance` write in rows of `slots` places, from the prompts to the last token in one program."""
    params = with_prefix(config, params)
    rows = len(lengths_B)
    state = _empty_rows(config, rows, slots, slots, coded)
    state = _fill(config, params, state, tokens_BT, lengths_B, jnp.arange(rows), limits_B)
    return _advance(config, params, state, sampling, stop_V, slots, rows).out


def stream(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array | np.ndarray,
    lengths_B: jax.Array | np.ndarray,
    sampling: SamplingArrays,
    stop_V: jax.Array | np.ndarray,
    max_new_tokens: int,
    chunk: int = 8,
    coded: bool = False,
) -> Iterator[Generated]:
    """`generate` that yields what is there after every `chunk` tokens; the last one is what `generate` gives.

    With `coded` the cache is kept in eight bits.
    """
    params = with_prefix(config, params)
    state = _start_jit(config, params, tokens_BT, lengths_B, max_new_tokens, coded)
    for _ in range(0, max_new_tokens, chunk):
        state = advance(config, params, state, sampling, stop_V, chunk, len(lengths_B))
        # The state is donated to the next call, so what leaves this function is a copy.
        yield on_host(state.out)
        if bool(state.out.stopped_B.all()):
            return


def _empty_rows(config: ModelConfig, rows: int, slots: int, new_tokens: int, coded: bool = False) -> Writing:
    """`rows` rows with nothing to write, for texts of up to `slots` tokens with up to `new_tokens` written ones.

    With `coded` the cache is kept in eight bits.
    """
    nothing = jnp.zeros(rows, jnp.int32)
    written_BT = jnp.zeros((rows, new_tokens), jnp.int32)
    out = Generated(written_BT, written_BT.astype(jnp.float32), nothing, nothing.astype(bool))
    cache = empty_cache(config, rows, slots, coded)
    return _laid(Writing(jnp.zeros((rows, config.vocab_size)), cache, out, nothing.copy()))


def _laid(state: Writing) -> Writing:
    """The same state, laid over a mesh in one way: else each way that the compiler finds is one more program."""

    def by_row(x: jax.Array) -> jax.Array:
        return constrain(x, ROWS, *(None,) * (x.ndim - 1))

    k, v = jax.tree.map(lambda x: constrain(x, None, *AS_CACHED[: x.ndim - 1]), (state.cache.k, state.cache.v))
    lengths = map(by_row, (state.cache.length_B, state.cache.total_B))
    logits_BV, out, limit_B = jax.tree.map(by_row, (state.logits_BV, state.out, state.limit_B))
    return Writing(logits_BV, Cache(k, v, *lengths), out, limit_B)


def _fill(
    config: ModelConfig,
    params: Params,
    state: Writing,
    tokens_RT: jax.Array,
    lengths_R: jax.Array,
    rows_R: jax.Array,
    limits_R: jax.Array,
) -> Writing:
    """The rows `rows_R` begin anew, with right-padded prompts and up to `limits_R` tokens to write.

    A number of a row that is not there fills none. `params` have their prefix (`with_prefix`).
    """
    R, T = tokens_RT.shape
    coded = isinstance(state.cache.k[0], Coded)
    new = empty_cache(config, R, T, coded)._replace(total_B=lengths_R + limits_R)
    logits_RV, new = prefill(config, params, tokens_RT, lengths_R, new)

    def put(old: jax.Array, rows: jax.Array | int) -> jax.Array:
        return old.at[rows_R].set(rows, mode="drop")

    def put_pieces(old: tuple[Piece, ...], pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        return jax.tree.map(lambda whole, piece: whole.at[:, rows_R, :, :T].set(piece, mode="drop"), old, pieces)

    cache = state.cache
    k, v = put_pieces(cache.k, new.k), put_pieces(cache.v, new.v)
    cache = Cache(k, v, put(cache.length_B, lengths_R), put(cache.total_B, new.total_B))
    out = jax.tree.map(lambda old: put(old, old.dtype.type(0)), state.out)
    return _laid(Writing(put(state.logits_BV, logits_RV), cache, out, put(state.limit_B, limits_R)))


def check_room(config: ModelConfig, prompt: int, max_new_tokens: int, prefix: int = 0) -> None:
    """Raises UserError when a prompt of that many tokens and its continuation do not fit the model's positions.

    `prefix` is how many positions virtual tokens take (`prefix_length`).
    """
    if prompt < 1:
        raise UserError("the prompt is empty: it needs at least the BOS token")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if prefix + prompt + max_new_tokens > config.max_len:
        virtual = f"{prefix} virtual tokens, " if prefix else ""
        raise UserError(
            f"{virtual}a prompt of {prompt} tokens and {max_new_tokens} new ones are more than the model's "
            f"{config.max_len} positions: shorten the prompt, give fewer examples or ask for fewer tokens"
        )


def _start(config, params, tokens_BT, lengths_B, max_new_tokens, coded=False) -> Writing:
    batch, length = tokens_BT.shape
    empty = _empty_rows(config, batch, length + max_new_tokens, max_new_tokens, coded)
    cache = empty.cache._replace(total_B=lengths_B + max_new_tokens)
    logits_BV, cache = prefill(config, params, tokens_BT, lengths_B, cache)
    return Writing(logits_BV, cache, empty.out, jnp.full(batch, max_new_tokens, jnp.int32))


def _advance(config, params, state: Writing, sampling: SamplingArrays, stop_V, steps, enough) -> Writing:
    """Up to `steps` more tokens for every row that is not done, until `enough` rows are."""
    rows_B = jnp.arange(len(state.limit_B))

    def unfinished(carry: tuple[jax.Array, Writing]) -> jax.Array:
        step, state = carry
        return (step < steps) & (state.done_B.sum() < enough)

    def write(carry: tuple[jax.Array, Writing]) -> tuple[jax.Array, Writing]:
        step, state = carry
        at_B, open_B = state.out.length_B, ~state.done_B
        keys_B = jax.random.wrap_key_data(jnp.asarray(sampling.key_B2), impl="threefry2x32")
        own_keys_B = jax.vmap(jax.random.fold_in)(keys_B, at_B)
        settings = {name: jnp.asarray(getattr(sampling, name)) for name in sampling._fields if name != "key_B2"}
        tokens_B = sample(state.logits_BV, own_keys_B, **settings)
        logprobs_B = jnp.take_along_axis(jax.nn.log_softmax(state.logits_BV), tokens_B[:, None], 1)[:, 0]
        places_B = jnp.where(open_B, at_B, state.out.tokens_BT.shape[1])  # of a row that is done: nowhere
        out = Generated(
            state.out.tokens_BT.at[rows_B, places_B].set(tokens_B, mode="drop"),
            state.out.logprobs_BT.at[rows_B, places_B].set(logprobs_B, mode="drop"),
            at_B + open_B,
            state.out.stopped_B | (open_B & stop_V[tokens_B]),
        )
        logits_BV, cache = decode_step(config, params, tokens_B, state.cache)
        return step + 1, Writing(logits_BV, cache, out, state.limit_B)

    return _laid(jax.lax.while_loop(unfinished, write, (jnp.int32(0), state))[1])


empty_rows = jax.jit(_empty_rows, static_argnums=(0, 1, 2, 3, 4))  # in a program, so that a mesh has its part of them
fill = jax.jit(_fill, static_argnames="config", donate_argnames="state")
_start_jit = jax.jit(_start, static_argnums=(0, 4, 5))
advance = jax.jit(_advance, static_argnums=0, donate_argnums=2)
