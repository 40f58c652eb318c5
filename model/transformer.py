"""The decoder-only transformer behind pure functions: `init`, `apply`, and the pieces that a loss needs.

The block is a Linen module; the stack of blocks is a plain loop over the runs of layers in the parameter dict
(see `params.py`), so a stack that was cut where training begins is differentiated only from there on.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from limbeck.model.added import with_shared
from limbeck.model.attention import ATTENDED, Attention, LayerCache, Place
from limbeck.model.chosen import filled, filled_outside, has_chosen, keeps
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.layers import Bottleneck, Mlp, Norm, Turn, softcap, turn
from limbeck.model.params import Params, runs
from limbeck.model.prefix import PREFIX, VIRTUAL, fold_prefix, fold_prompt, is_prefix, prefix_length


class Cache(NamedTuple):
    """Keys and values of all layers, a slot per position.

    `length_B` is how many slots of a row are in use, `total_B` how many may come to be: some rotary positions depend
    on how long the text will be (longrope), and what is in the cache cannot be turned again.
    """

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    length_B: jax.Array
    total_B: jax.Array


class Output(NamedTuple):
    """What a forward pass gives; `cache` only where one was given."""

    logits_BTV: jax.Array
    hidden_BTD: jax.Array
    cache: Cache | None


class Block(nn.Module):
    """One transformer block: attention and MLP, each normed before it, on what it adds to the stream, or both."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, place: Place, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        c = self.config

        def norm(x_BTD: jax.Array, name: str, here: bool) -> jax.Array:
            return Norm(c, name=name)(x_BTD) if here else x_BTD

        before, after = c.norm_placement != "post", c.norm_placement != "pre"
        def adapter(update_BTD: jax.Array, name: str) -> jax.Array:
            return Bottleneck(name=name)(update_BTD) if self.has_variable("params", name) else update_BTD

        update_BTD, cache = Attention(c, name="attn")(norm(x_BTD, "attn_norm", before), place, cache)
        middle_BTD = x_BTD + norm(adapter(update_BTD, "attn_adapter"), "attn_post_norm", after)
        update_BTD = Mlp(c, name="mlp")(norm(x_BTD if c.parallel_residual else middle_BTD, "mlp_norm", before))
        return middle_BTD + norm(adapter(update_BTD, "mlp_adapter"), "mlp_post_norm", after), cache


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 parameters; a leaf's values depend on the key, its path and its layer alone."""
    return jax.jit(_init, static_argnums=0)(config, key)


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


def empty_cache(config: ModelConfig, batch: int, slots: int) -> Cache:
    """A cache of `slots` positions for each of `batch` rows."""
    shape = (config.depth, batch, slots, config.num_kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.dtype)
    return Cache(zeros, jnp.zeros_like(zeros), jnp.zeros(batch, jnp.int32), jnp.full(batch, slots, jnp.int32))


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
    documents, which do not see each other. Virtual tokens (see `prefix.py`) are before each of them and not in what is
    given back. Raises UserError for more tokens than the model has positions.
    """
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
    x_BTD, cache = _stack(c, params, x_BTD, positions_BT, segments_BT, cache)
    norm = {path.removeprefix("norm/"): leaf for path, leaf in params.items() if path.startswith("norm/")}
    return cast(jax.Array, Norm(c).apply({"params": norm}, x_BTD)), cache


def _embedded(config: ModelConfig, params: Mapping[str, jax.Array], tokens_BT: jax.Array) -> jax.Array:
    """What is looked up of each token: its row, and that of `embed/lora_a` @ `lora_b` (not in a tied head) if any."""
    x_BTD = params["embed/embedding"].astype(config.dtype)[tokens_BT]
    if "embed/lora_a" not in params:
        return x_BTD
    a_VR, b_RD, scale = (params[f"embed/lora_{part}"].astype(config.dtype) for part in ("a", "b", "scale"))
    return x_BTD + a_VR[tokens_BT] @ b_RD * scale


def _stack(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None,
    cache: Cache | None,
) -> tuple[jax.Array, Cache | None]:
    """(x_BTD after the last block, the cache): from what is looked up of the tokens to what the final norm takes."""
    c = config
    prefix = prefix_length(params)
    places_BT = positions_BT + prefix if prefix else positions_BT
    if c.positions == "learned":
        x_BTD = x_BTD + params["positions/embedding"].astype(c.dtype)[places_BT]

    total_B = places_BT.max(1) + 1 if cache is None else cache.total_B + prefix
    turns, turn_of_layer_L = _turns(c, places_BT, total_B)

    def block(carry, layer):
        x_BTD, k_LBSKH, v_LBSKH = carry
        leaves, window, which, index = layer
        layer_cache = None if k_LBSKH is None else LayerCache(k_LBSKH, v_LBSKH, index)
        here = jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[which], turns)
        place = Place(positions_BT, segments_BT, window, here)
        own = unflatten_dict(with_shared(filled(leaves), params), sep="/")
        out = Block(c).apply({"params": own}, x_BTD, place, layer_cache)
        x_BTD, layer_cache = cast(tuple[jax.Array, LayerCache | None], out)
        return (x_BTD, *(layer_cache[:2] if layer_cache else (None, None))), None

    if c.remat == "full":
        block = jax.checkpoint(block)
    elif c.remat == "dots":
        policies = jax.checkpoint_policies
        products = policies.dots_with_no_batch_dims_saveable
        kept = policies.save_from_both_policies(products, policies.save_only_these_names(ATTENDED))
        block = jax.checkpoint(block, policy=kept)
    elif has_chosen(params):
        block = jax.checkpoint(block, policy=keeps)
    windows_L = jnp.asarray(c.layer_windows(), jnp.int32)
    carry = (x_BTD, None, None) if cache is None else (x_BTD, cache.k_LBSKH, cache.v_LBSKH)
    stop = 0
    for run in runs(params):
        span = slice(run.start, run.stop)
        layers = (run.leaves, windows_L[span], turn_of_layer_L[span], jnp.arange(run.start, run.stop))
        if c.scan:
            carry, _ = jax.lax.scan(block, carry, layers)
        else:  # a plain loop: an unrolled scan would stack what the backward pass needs all the same
            for layer in _layer_by_layer(layers, run.stop - run.start):
                carry, _ = block(carry, layer)
        stop = run.stop
    if stop != c.depth:
        raise UserError(f"the parameters hold {stop} layers, the config says depth={c.depth}: use their own config")
    if cache is not None:
        k_LBSKH, v_LBSKH = cast(tuple[jax.Array, jax.Array], carry[1:])
        length_B = jnp.maximum(cache.length_B, positions_BT[:, -1] + 1)
        cache = Cache(k_LBSKH, v_LBSKH, length_B, cache.total_B)
    return carry[0], cache


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
    made = None
    if prompt_PD is not None:
        positions_1P = jnp.arange(prompt_PD.shape[0], dtype=jnp.int32)[None]
        slots = empty_cache(config, 1, prompt_PD.shape[0])
        made = _stack(config, model, prompt_PD.astype(config.dtype)[None], positions_1P, None, slots)[1]
    leaves: Params = {}
    stack = runs(model)
    for run in stack:
        stem = "blocks/" if len(stack) == 1 else f"blocks/{run.start}:{run.stop}/"
        for index, name in enumerate(PREFIX):
            parts = [run.leaves[name]] if name in run.leaves else []
            if made is not None:
                parts.append(made[index][run.start : run.stop, 0].astype(jnp.float32))
            if parts:
                leaves[stem + name] = jnp.concatenate(parts, 1)
    return leaves


def _layer_by_layer(stacked: Any, count: int) -> list[Any]:
    """The slices of a tree of leaves along their first axis; split once, so that gradients are put together once."""
    leaves, tree = jax.tree.flatten(stacked)
    pieces = [jax.lax.split(leaf, (1,) * count) for leaf in leaves]
    return [jax.tree.unflatten(tree, [piece[0] for piece in row]) for row in zip(*pieces, strict=True)]


def _turns(config: ModelConfig, positions_BT: jax.Array, total_B: jax.Array) -> tuple[Turn | None, jax.Array]:
    """(the distinct rotations of the layers, stacked, and which of them each layer has), worked out once for all."""
    of_layer = config.layer_ropes()
    distinct = list(dict.fromkeys(of_layer))
    which_L = jnp.asarray([distinct.index(rope) for rope in of_layer], jnp.int32)
    if distinct == [None]:
        return None, which_L
    turns = [None if rope is None else turn(rope, config.head_dim, positions_BT, total_B) for rope in distinct]
    some = next(each for each in turns if each is not None)
    still = Turn(jnp.ones_like(some.cos_BTR), jnp.zeros_like(some.sin_BTR))
    return jax.tree.map(lambda *x: jnp.stack(x), *(each or still for each in turns)), which_L


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
    hidden_BTD, _ = hidden(config, params, tokens_BT)
    last_BD = hidden_BTD[jnp.arange(tokens_BT.shape[0]), lengths_B - 1]
    return jnp.dot(last_BD, head_kernel(params).astype(last_BD.dtype), preferred_element_type=jnp.float32)
