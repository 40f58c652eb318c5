"""Soft prompts: virtual tokens whose embeddings, or whose keys and values, train before a model that does not.

Each function adds leaves to the parameters; what they mean to the model is said in `model/prefix.py`. How they begin
decides more than which method it is: from the words of a task's instruction they work where random ones hardly move.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.params import Params
from limbeck.model.prefix import fold_prefix, fold_prompt, prefix_length
from limbeck.model.transformer import with_prefix

PromptInit = Literal["random", "vocabulary", "text"]
PrefixInit = Literal["random", "text"]

PROMPT_TRAINS = (r"prompt/embedding",)
P_TUNING_TRAINS = (r"prompt/.*",)
PREFIX_TRAINS = (r"blocks/attn/prefix_[kv]",)


def add_prompt(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    length: int,
    init: PromptInit = "vocabulary",
    text_ids: Sequence[int] = (),
    common: int = 5000,
) -> Params:
    """The parameters with `prompt/embedding` [P, D], P being `length` (Lester et al. 2021, arXiv 2104.08691).

    It begins as noise as large as the embedding ("random"), as the embedding of tokens drawn from the `common` first
    ids, in most vocabularies the most frequent ones ("vocabulary"), or as that of a text ("text"), which is cut to the
    length or said again until it is. Raises UserError for a length that the model has no room for, a text that is
    empty or not the model's, and a model that has virtual tokens already.
    """
    _check_new(config, params, length)
    one_of("init", init, get_args(PromptInit))
    embedding_VD = params["embed/embedding"]
    if init == "random":
        prompt_PD = embedding_VD.astype(jnp.float32).std() * jax.random.normal(key, (length, config.width))
    else:
        ids = _drawn(key, length, min(common, config.vocab_size)) if init == "vocabulary" else None
        prompt_PD = embedding_VD[_repeated(config, text_ids, length) if ids is None else ids].astype(jnp.float32)
    return {**params, "prompt/embedding": config.embedding_scale * prompt_PD}


def add_p_tuning(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    length: int,
    hidden: int | None = None,
) -> Params:
    """The parameters with `prompt/embedding` [P, D] and the three layers, `hidden` wide, of its encoder.

    P-tuning (Liu et al. 2021, arXiv 2103.10385) with the MLP that PEFT has for it; `hidden` is the model's width where
    none is given. The virtual tokens begin as noise as large as the embedding. `fold_prompt` makes a plain prompt of
    it after training. Raises UserError as `add_prompt` does.
    """
    _check_new(config, params, length)
    D, M = config.width, _width(config, "hidden", hidden)
    begin, *keys = jax.random.split(key, 4)
    out = {**params, "prompt/embedding": jax.random.normal(begin, (length, D))}
    for layer, (layer_key, fan_in, fan_out) in enumerate(zip(keys, (D, M, M), (M, M, D), strict=True)):
        spread = (2 / fan_in) ** 0.5 if layer else fan_in**-0.5
        out[f"prompt/encoder/{layer}/kernel"] = spread * jax.random.normal(layer_key, (fan_in, fan_out))
        out[f"prompt/encoder/{layer}/bias"] = jnp.zeros(fan_out)
    size = config.embedding_scale * params["embed/embedding"].astype(jnp.float32).std()
    out["prompt/encoder/2/kernel"] *= size / fold_prompt(out)["prompt/embedding"].std()
    return out


def add_prefix(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    length: int,
    init: PrefixInit = "text",
    text_ids: Sequence[int] = (),
    scale: float = 0.02,
    hidden: int | None = None,
) -> Params:
    """The parameters with `blocks/attn/prefix_k` and `prefix_v` [L, P, K, H] (Li & Liang 2021, arXiv 2101.00190).

    They begin as the keys and values of a text ("text": the model then computes what it does with that text before
    every other), or as normal noise of deviation `scale` ("random"). With `hidden`, what trains is an MLP of that
    width (the leaves `prefix/.*`), whose output is added to them and begins at zero; `fold_prefix` adds it up after
    training. Raises UserError as `add_prompt` does.
    """
    _check_new(config, params, length)
    one_of("init", init, get_args(PrefixInit))
    shape = (config.depth, length, config.num_kv_heads, config.head_dim)
    k_key, v_key, token_key, mlp_key = jax.random.split(key, 4)
    if init == "text":
        out = with_prefix(config, add_prompt(config, params, key, length=length, init="text", text_ids=text_ids))
    else:
        out = {**params}
        out["blocks/attn/prefix_k"] = scale * jax.random.normal(k_key, shape)
        out["blocks/attn/prefix_v"] = scale * jax.random.normal(v_key, shape)
    if hidden is not None:
        D, M = config.width, _width(config, "hidden", hidden)
        numbers = 2 * config.depth * config.num_kv_heads * config.head_dim
        out["prefix/embedding"] = jax.random.normal(token_key, (length, D))
        out["prefix/0/kernel"] = D**-0.5 * jax.random.normal(mlp_key, (D, M))
        out["prefix/0/bias"] = jnp.zeros(M)
        out["prefix/1/kernel"] = jnp.zeros((M, numbers))
        out["prefix/1/bias"] = jnp.zeros(numbers)
    return out


def fold(params: Mapping[str, jax.Array]) -> Params:
    """The same virtual tokens without the networks that helped to train them."""
    return fold_prompt(fold_prefix(params))


def _check_new(config: ModelConfig, params: Mapping[str, jax.Array], length: int) -> None:
    if length < 1:
        raise UserError(f"length={length}: a prompt or prefix needs at least 1 virtual token")
    if length >= config.max_len:
        raise UserError(
            f"length={length}: virtual tokens take positions, and the model has max_len={config.max_len}: "
            "leave some of them to the text"
        )
    if there := prefix_length(params):
        raise UserError(f"the model has {there} virtual tokens already: begin with one that has none")


def _width(config: ModelConfig, name: str, width: int | None) -> int:
    if width is not None and width < 1:
        raise UserError(f"{name}={width}: must be at least 1")
    return config.width if width is None else width


def _drawn(key: jax.Array, length: int, common: int) -> jax.Array:
    """Ids below `common`, each once as far as they go."""
    rounds = -(-length // common)
    keys = jax.random.split(key, rounds)
    return jnp.concatenate([jax.random.permutation(each, common) for each in keys])[:length]


def _repeated(config: ModelConfig, ids: Sequence[int], length: int) -> jax.Array:
    if len(ids) == 0:
        raise UserError('init="text" begins with the tokens of a text, and it is empty: give text_ids one or more')
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        wrong = next(i for i in ids if not 0 <= i < config.vocab_size)
        raise UserError(f"text_ids has {wrong}, the model's tokens are 0 to {config.vocab_size - 1}: same tokenizer?")
    return jnp.asarray((list(ids) * -(-length // len(ids)))[:length])
