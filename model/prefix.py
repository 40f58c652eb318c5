"""Virtual tokens: what soft prompts add to the parameters, and how they become one prefix of keys and values.

A prefix is `blocks/attn/prefix_k` and `prefix_v` [L, P, K, H]: keys (not turned any more) and values that stand at the
positions 0 to P - 1 before every text and every packed document, whose own tokens then stand at P, P + 1, ... What
trains instead of them, and is turned into them by `transformer.with_prefix`:

- `prompt/embedding` [P, D] (Lester et al. 2021, arXiv 2104.08691): inputs of the first layer, one a virtual token. They
  stand beside tokens' embeddings after `embedding_scale`, as PEFT's do, and get learned positions as tokens do.
- `prompt/encoder/{0,1,2}/{kernel,bias}` beside it (P-tuning, Liu et al. 2021, arXiv 2103.10385): an MLP through which
  `prompt/embedding` goes first.
- `prefix/embedding` [P, D] and `prefix/{0,1}/{kernel,bias}` (Li & Liang 2021, arXiv 2101.00190, section 4.3): an MLP
  whose output [P, L * 2 * K * H] is added to the prefix in the blocks.

A text that many texts begin with is such a prefix too (`decode.behind`). So that texts of all lengths share a few
compiled shapes, only the first `prefix_used` (int32, one number beside the blocks) of its P keys then stand there; the
rest are filling, which takes no position and is never seen.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from limbeck.model.errors import UserError
from limbeck.model.params import Params, block_path

VIRTUAL = ("prompt/", "prefix/")  # leaves that are not part of the stack, but give its prefix
Activation = Callable[[jax.Array], jax.Array]
PREFIX = ("attn/prefix_k", "attn/prefix_v")
USED = "prefix_used"


def is_prefix(path: str) -> bool:
    """Whether a leaf is the blocks' own prefix, of all layers or of some."""
    parsed = block_path(path)
    return parsed is not None and parsed[1] in PREFIX


def prefix_length(params: Mapping[str, Any]) -> int:
    """How many positions virtual tokens take before each text: P, or 0, read off arrays or their mere shapes.

    Raises UserError for layers that disagree.
    """
    lengths = {leaf.shape[1] for path, leaf in params.items() if is_prefix(path)}
    if len(lengths) > 1:
        raise UserError(f"the layers' prefixes have {sorted(lengths)} virtual tokens: give all the same number")
    prompt = params.get("prompt/embedding")
    return sum(lengths) + (0 if prompt is None else prompt.shape[0])


def fold_prompt(params: Mapping[str, jax.Array]) -> Params:
    """The same prompt without its encoder: `prompt/embedding` alone. Without an encoder nothing changes."""
    out = {path: leaf for path, leaf in params.items() if not path.startswith("prompt/encoder/")}
    if "prompt/encoder/0/kernel" in params:
        out["prompt/embedding"] = _mlp(params, "prompt/encoder", params["prompt/embedding"], 3, jax.nn.relu)
    return out


def fold_prefix(params: Mapping[str, jax.Array]) -> Params:
    """The same prefix without its reparameterisation: `prefix_k` and `prefix_v` alone."""
    out = {path: leaf for path, leaf in params.items() if not path.startswith("prefix/")}
    if "prefix/embedding" not in params:
        return out
    flat = _mlp(params, "prefix", params["prefix/embedding"], 2, jnp.tanh)
    for path, leaf in out.items():
        parsed = block_path(path)
        if parsed and parsed[1] in PREFIX:
            P, K, H = leaf.shape[1:]
            start, stop = parsed[0] or (0, leaf.shape[0])
            by_layer = flat.reshape(P, -1, 2, K, H).swapaxes(0, 1)
            out[path] = leaf + by_layer[start:stop, :, PREFIX.index(parsed[1])].astype(leaf.dtype)
    return out


def _mlp(params: Mapping[str, jax.Array], stem: str, x: jax.Array, layers: int, act: Activation) -> jax.Array:
    for layer in range(layers):
        x = x @ params[f"{stem}/{layer}/kernel"] + params[f"{stem}/{layer}/bias"]
        x = act(x) if layer < layers - 1 else x
    return x
