"""How much arithmetic a forward pass and a training step are, counted from shapes.

XLA's own count sees the body of a scan once, so it is of no use for a stack of layers. A product of [a, b] and [b, c]
is 2abc; norms, activations and rotations are left out (under a percent), and so is what makes a prefix of virtual
tokens, once a batch.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from limbeck.model.chosen import CHOSEN
from limbeck.model.config import ModelConfig
from limbeck.model.params import block_path, weights
from limbeck.model.prefix import VIRTUAL, prefix_length


class Shaped(Protocol):
    """An array, or the mere shape of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def _products(config: ModelConfig, params: Mapping[str, Shaped]) -> dict[str, float]:
    """Forward FLOPs a token of every leaf that multiplies activations."""
    flops = {}
    for path, leaf in params.items():
        multiplies = path.endswith(("/kernel", "/kernel_int8", "/kernel_nf4", "/lora_a", "/lora_b"))
        if multiplies and not path.startswith(VIRTUAL):
            flops[path] = 2.0 * weights(path, leaf.shape)
        elif path.endswith("/vera_d"):  # the shared matrices are used anew in every module
            layers, rank = leaf.shape
            fan_in, features = _sizes(params, path.removesuffix("vera_d"))
            flops[path] = 2.0 * layers * rank * (fan_in + features)
    if not params.keys() & {"head/kernel", "score/kernel"}:
        flops["embed/embedding"] = 2.0 * config.vocab_size * config.width
    return flops


def _sizes(params: Mapping[str, Shaped], stem: str) -> tuple[int, int]:
    """(in, out) of the dense module that `stem` is the beginning of, however the stack is cut and the kernel kept."""
    inner = (block_path(stem) or (None, ""))[1]
    kernels = {(block_path(path) or (None, ""))[1]: leaf.shape for path, leaf in params.items()}
    for name in (f"{inner}kernel", f"{inner}kernel_int8", f"{inner}kernel_nf4"):
        if name in kernels:
            return kernels[name][1] * (2 if name.endswith("nf4") else 1), kernels[name][2]
    raise KeyError(stem)


def _attention(config: ModelConfig, context: float) -> float:
    """Forward FLOPs a token and layer of scores and weighted values over `context` keys."""
    return 4.0 * config.num_heads * config.head_dim * context


def forward_flops(config: ModelConfig, params: Mapping[str, Shaped], tokens: float, context: float) -> float:
    """FLOPs of a forward pass over `tokens` tokens that attend to `context` keys each, the head included.

    The keys of virtual tokens come on top of `context`.
    """
    dense = sum(_products(config, params).values())
    context += prefix_length(params)
    return tokens * (dense + config.depth * _attention(config, context))


def step_flops(
    config: ModelConfig, trainable: Mapping[str, Shaped], frozen: Mapping[str, Shaped], tokens: float, context: float
) -> float:
    """FLOPs of a training step: forward, the gradient of what trains, and the way back to the first layer that does.

    A frozen leaf has no weight gradient; layers below the first trainable one have no backward pass at all.
    """
    params = {**frozen, **trainable}
    products = _products(config, params)
    first = _first_layer(config, trainable)
    # The gradient of chosen entries is picked out of that of their whole leaf.
    moving = {path.removesuffix(CHOSEN) for path in trainable if not path.endswith("/vera_d")}
    backward = 0.0
    for path, flops in products.items():
        parsed = block_path(path)
        if path in moving:
            backward += flops
        if parsed is None:
            backward += flops  # the head's way back
        else:
            start, stop = parsed[0] or (0, config.depth)
            backward += flops * max(0, stop - max(start, first)) / (stop - start)
    attention = _attention(config, context + prefix_length(params))
    backward += 2 * attention * (config.depth - first)
    return forward_flops(config, params, tokens, context) + tokens * backward


def attention_flops(
    config: ModelConfig, trainable: Iterable[str], tokens: float, context: float
) -> tuple[float, float]:
    """(forward, backward) FLOPs of scores and weighted values in all layers of a training step.

    Backward five products where forward has two, as the scores are computed again (Dao et al. 2022, arXiv 2205.14135).
    """
    layer = tokens * _attention(config, context)
    return config.depth * layer, 2.5 * (config.depth - _first_layer(config, trainable)) * layer


def _first_layer(config: ModelConfig, trainable: Iterable[str]) -> int:
    first = config.depth
    for path in trainable:
        if parsed := block_path(path):
            first = min(first, parsed[0][0] if parsed[0] else 0)
        elif path.startswith(("embed/", "positions/", *VIRTUAL)):
            return 0
    return first
