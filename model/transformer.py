"""The decoder-only transformer behind pure functions: `init`, `apply`, and the pieces that a loss needs.

What lies between the embedding and the final norm is in `stack.py`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from limbeck.model.attention import Place
from limbeck.model.cache import Cache, empty_cache, first_rows
from limbeck.model.chosen import filled_outside
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.layers import Norm, softcap
from limbeck.model.params import Params, runs
from limbeck.model.prefix import PREFIX, VIRTUAL, fold_prefix, fold_prompt, is_prefix, prefix_length
from limbeck.model.sharding import layout
from limbeck.model.stack import CAPTURED, Block, stack, turned_by_length


class Output(NamedTuple):
    """What a forward pass gives; `cache` only where one was given."""

    logits_BTV: jax.Array
    hidden_BTD: jax.Array
    cache: Cache | None


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 parameters; a leaf's values depend on the key, its path and its layer alone.

    On a mesh each device makes its part.
    """
    goes = layout(config)
    where = None if goes is None else {path: goes(path, leaf.shape) for path, leaf in shapes(config).items()}
    return jax.jit(_init, static_argnums=0, out_shardings=where)(config, key)


def _init(config: ModelConfig, key: jax.Array) -> Params:
    c = config
    x_BTD = jnp.zeros((1, 1, c.width))
    place = Place(jnp.zeros((1, 1), jnp.int32), None, jnp.int32(c.max_len), None)

    def block(layer: jax.Array) -> Any:
        layer_key = jax.random.fold_in(jax.random.fold_in(key, 0), layer)
        return Block(c).init(layer_key, x_BTD, place, None)["params"]

    flat = cast(Params, flatten_dict(jax.vmap(block)(jnp.arange(c.depth)), sep="/"))
    params = {f"blocks/{path}": leaf for path, leaf in flat.items()}
    params["embed/embedding"] = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), (c.vocab_size, c.width))
    if c.positions == "learned":
        params["positions/embedding"] = 0.02 * jax.random.normal(jax.random.fold_in(key, 2), (c.max_len, c.width))
    if c.labels:
        params["score/kernel"] = c.width**-0.5 * jax.random.normal(
            jax.random.fold_in(key, 4), (c.width, len(c.labels))
        )
    elif not c.tied_embedding:
        params["head/kernel"] = c.width**-0.5 * jax.random.normal(
            jax.random.fold_in(key, 3), (c.width, c.vocab_size)
        )
    norm = cast(Params, Norm(c).init(key, x_BTD)["params"])
    params |= {f"norm/{path}": leaf for path, leaf in norm.items()}
    return params


def shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path, shape and dtype of every parameter, with nothing allocated."""
    return jax.eval_shape(lambda key: _init(config, key), jax.random.key(0))


def head_kernel(params: Mapping[str, jax.Array]) -> jax.Array:
    """head_DV: the output projection, or the embedding turned round where the two are tied; with labels, theirs."""
    outside = filled_outside(params)
    kernel = outside.get("score/kernel", outside.get("head/kernel"))
    return outside["embed/embedding"].T if kernel is None else kernel


def hidden(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    tokens_BT: jax.Array,
    *,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """(hidden_BTD after the final norm, the cache with the new tokens in it): a forward pass without the head.

    `positions_BT` counts from the row's start, or from `cache.length_B` with a cache; `segments_BT` numbers packed
    documents, which do not see each other; with longrope each turns by its own length. Virtual tokens (see `prefix.py`)
    are before each of them and not in what is given back. Raises UserError for more tokens than the model has
    positions.
    """
    hidden_BTD, cache, _ = _forward(config, params, tokens_BT, positions_BT, segments_BT, cache, ())
    return hidden_BTD, cache


def hidden_of_padded(
    config: ModelConfig, params: Mapping[str, jax.Array], tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """hidden_BTD of right-padded texts, `hidden` of each alone up to its length; what padding holds means nothing.

    Where turning depends on a text's length, that is its own and not the padded one. Raises UserError as `hidden` does.
    """
    if not turned_by_length(config):  # each token sees only those before it, so padding is seen by none that counts
        return hidden(config, params, tokens_BT)[0]
    slots_T = jnp.arange(tokens_BT.shape[1])
    real_BT = slots_T < lengths_B[:, None]
    positions_BT, segments_BT = jnp.where(real_BT, slots_T, 0), real_BT.astype(jnp.int32)
    return hidden(config, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)[0]


def captured(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    tokens_BT: jax.Array,
    *,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    names: tuple[str, ...],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(hidden_BTD after the final norm, what `names` asks for of every layer): `hidden` that shows what is inside it.

    "hidden" [L+1, B, T, D]: what enters the first block, then what leaves each, before the final norm; "q"
    [L, B, T, N, H], "k" and "v" [L, B, T, K, H], as attention takes them: queries and keys are turned, none is scaled.
    Virtual tokens are in none. Raises UserError as `hidden` does, and for an unknown name.
    """
    for name in names:
        one_of("captured array", name, CAPTURED)
    hidden_BTD, _, seen = _forward(config, params, tokens_BT, positions_BT, segments_BT, None, names)
    return hidden_BTD, seen


def _forward(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None,
    segments_BT: jax.Array | None,
    cache: Cache | None,
    names: tuple[str, ...],
) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
    c = config
    params = with_prefix(c, params)
    batch, length = tokens_BT.shape
    prefix = prefix_length(params)
    if cache is None and prefix + length > c.max_len:
        virtual = f" after {prefix} virtual ones" if prefix else ""
        raise UserError(
            f"{length} tokens in a row{virtual}, but the model has max_len={c.max_len} positions: shorten the input"
        )
    if positions_BT is None:
        start_B1 = jnp.zeros((batch, 1), jnp.int32) if cache is None else cache.length_B[:, None]
        positions_BT = start_B1 + jnp.arange(length, dtype=jnp.int32)
    x_BTD = _embedded(c, params, tokens_BT) * jnp.asarray(c.embedding_scale, c.dtype)
    x_BTD, cache, seen = stack(c, params, x_BTD, positions_BT, segments_BT, cache, names)
    norm = {path.removeprefix("norm/"): leaf for path, leaf in params.items() if path.startswith("norm/")}
    return cast(jax.Array, Norm(c).apply({"params": norm}, x_BTD)), cache, seen


def _embedded(config: ModelConfig, params: Mapping[str, jax.Array], tokens_BT: jax.Array) -> jax.Array:
    """What is looked up of each token: its row, and that of `embed/lora_a` @ `lora_b` (not in a tied head) if any."""
    x_BTD = params["embed/embedding"].astype(config.dtype)[tokens_BT]
    if "embed/lora_a" not in params:
        return x_BTD
    a_VR, b_RD, scale = (params[f"embed/lora_{part}"].astype(config.dtype) for part in ("a", "b", "scale"))
    return x_BTD + a_VR[tokens_BT] @ b_RD * scale


def with_prefix(config: ModelConfig, params: Mapping[str, jax.Array]) -> Params:
    """The same model with the keys and values of its virtual tokens, in place of the leaves that they come from.

    Chosen entries outside the blocks are put in, too. `hidden` does all this in every pass; who makes many, as
    decoding does, saves it the work. A prompt runs through the stack once, by itself, and stands behind a prefix that
    is there already. (With longrope it is turned as a short text, however long the text behind it.)
    """
    params = filled_outside(params)
    if not any(path.startswith(VIRTUAL) for path in params):
        return params
    leaves = _prefix_leaves(config, dict(params))
    plain = {path: leaf for path, leaf in params.items() if not path.startswith(VIRTUAL) and not is_prefix(path)}
    return {**plain, **leaves}


@partial(jax.jit, static_argnums=0)
def _prefix_leaves(config: ModelConfig, params: Params) -> Params:
    """`prefix_k` and `prefix_v` alone, of every run of layers."""
    model = fold_prompt(fold_prefix(params))
    prompt_PD = model.pop("prompt/embedding", None)
    made: Cache | None = None
    if prompt_PD is not None:
        positions_1P = jnp.arange(prompt_PD.shape[0], dtype=jnp.int32)[None]
        slots = empty_cache(config, 1, prompt_PD.shape[0])
        made = stack(config, model, prompt_PD.astype(config.dtype)[None], positions_1P, None, slots)[1]
    leaves: Params = {}
    pieces = runs(model)
    for run in pieces:
        stem = "blocks/" if len(pieces) == 1 else f"blocks/{run.start}:{run.stop}/"
        for index, name in enumerate(PREFIX):
            parts = [run.leaves[name]] if name in run.leaves else []
            if made is not None:
                made_LPKH = first_rows((made.k, made.v)[index], jnp.float32)
                parts.append(made_LPKH[run.start : run.stop])
            if parts:
                leaves[stem + name] = jnp.concatenate(parts, 1)
    return leaves


def logits(config: ModelConfig, params: Mapping[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """The vocabulary's head: hidden [..., D] to float32 logits [..., V]. Raises UserError for a classifier."""
    if config.labels:
        raise UserError(f"the model's head gives {', '.join(config.labels)}, not the next token: use `classify`")
    flat = hidden.reshape(-1, hidden.shape[-1])
    out = jnp.dot(flat, head_kernel(params).astype(hidden.dtype), preferred_element_type=jnp.float32)
    return softcap(out, config.logit_softcap).reshape(*hidden.shape[:-1], -1)


def apply(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    tokens_BT: jax.Array,
    *,
    positions_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    cache: Cache | None = None,
) -> Output:
    """One forward pass with the logits of every position; arguments and errors as in `hidden`."""
    hidden_BTD, cache = hidden(
        config, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, cache=cache
    )
    return Output(logits(config, params, hidden_BTD), hidden_BTD, cache)


def classify(
    config: ModelConfig, params: Mapping[str, jax.Array], tokens_BT: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """score_BC of right-padded texts, read off each one's last token: a logit for each of `config.labels`, or the
    value of a regression. Raises UserError for a model without such a head."""
    if not config.labels:
        raise UserError("the model has no head for classification or regression: its config names no labels")
    hidden_BTD = hidden_of_padded(config, params, tokens_BT, lengths_B)
    last_BD = hidden_BTD[jnp.arange(tokens_BT.shape[0]), lengths_B - 1]
    return jnp.dot(last_BD, head_kernel(params).astype(last_BD.dtype), preferred_element_type=jnp.float32)
