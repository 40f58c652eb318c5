"""The parts of a block: the one dense layer, norms, rotary positions, the MLP. `x_BTD` and friends: see `config.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from limbeck.model.added import Leaves, beside
from limbeck.model.config import ModelConfig
from limbeck.model.quantize import product
from limbeck.model.rope import Rope, frequencies
from limbeck.model.sharding import ROWS, constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class Linear(nn.Module):
    """`x @ kernel (+ bias)`: the one dense layer.

    An adapter is added to the parameters, not to the module: leaves beside the kernel are read where they are
    (`added.py`), a bias too, and codes in the place of a kernel (`quantize.py`).
    """

    features: int
    use_bias: bool = False
    init_scale: float = 1.0  # of the standard deviation 1 / sqrt(fan in)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        if self.is_initializing():
            spread = nn.initializers.normal(self.init_scale * fan_in**-0.5)
            self.param("kernel", spread, (fan_in, self.features))
        if self.use_bias:  # asked for in any case, so that a model that lacks it is an error
            self.param("bias", nn.initializers.zeros, (self.features,))
        leaves = cast(Leaves, self.variables["params"])
        # A flat [tokens, D] product: the gradient of the three-dimensional one is 2.6 times slower on CPU.
        flat = x.reshape(-1, fan_in)
        if "ia3_in" in leaves:  # (IA)3, Liu et al. 2022, arXiv 2205.05638, eq. 3
            flat = flat * leaves["ia3_in"].astype(x.dtype)
        y = flat @ leaves["kernel"].astype(x.dtype) if "kernel" in leaves else product(flat, leaves)
        return beside(flat, y, leaves).reshape(*x.shape[:-1], self.features)


class Bottleneck(nn.Module):
    """`x + up(relu(down(x)))`, a small network on what a half of a block adds (Houlsby et al. 2019, arXiv 1902.00751).

    It is there where its leaves are; `down/kernel` [D, R] says how wide it is.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = cast(Any, self.variables["params"])["down"]["kernel"].shape[-1]
        return x + Linear(x.shape[-1], True, name="up")(jax.nn.relu(Linear(width, True, name="down")(x)))


class Norm(nn.Module):
    """RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467) or layer norm over the last axis, in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        dim = x.shape[-1]
        y = x.astype(jnp.float32)
        if c.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + c.norm_eps)
        initial = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        scale = self.param("scale", initial, (dim,)).astype(jnp.float32)
        y = y * (1 + scale if c.norm_plus_one else scale)
        if c.norm == "layer":
            y = y + self.param("bias", nn.initializers.zeros, (dim,)).astype(jnp.float32)
        return y.astype(x.dtype)


class Turn(NamedTuple):
    """Cosine and sine of every position's angles; `R` is the number of pairs of a head that turn."""

    cos_BTR: jax.Array
    sin_BTR: jax.Array


def turn(rope: Rope, head_dim: int, positions_BT: jax.Array, total_BT: jax.Array) -> Turn:
    """The angles of every position; longrope chooses by how long a token's text is or may become.

    That is `total_BT`, or [B, 1] where a row is one text.
    """
    frequency_BTR = jnp.asarray(frequencies(rope, head_dim))[None, None]
    if rope.scaling == "longrope":
        long_BTR = jnp.asarray(frequencies(rope, head_dim, long=True))[None, None]
        frequency_BTR = jnp.where(total_BT[:, :, None] > rope.original_max_len, long_BTR, frequency_BTR)
    angle_BTR = positions_BT[:, :, None].astype(jnp.float32) * frequency_BTR
    return Turn(jnp.cos(angle_BTR) * rope.attention_factor, jnp.sin(angle_BTR) * rope.attention_factor)


def rotate(x_BTNH: jax.Array, turn: Turn) -> jax.Array:
    """Turns the first 2R dimensions of every head, in float32; the others stay."""
    half = turn.cos_BTR.shape[-1]
    cos, sin = turn.cos_BTR[:, :, None], turn.sin_BTR[:, :, None]
    first, second, rest = x_BTNH[..., :half], x_BTNH[..., half : 2 * half], x_BTNH[..., 2 * half :]
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`, or `x` itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class Mlp(nn.Module):
    """The block's feed-forward half: gated (Shazeer 2020, arXiv 2002.05202) or plain."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        act = ACTIVATIONS[c.activation]
        up_BTF = Linear(c.mlp_dim, c.mlp_bias, name="up")(x_BTD)
        gate_BTF = Linear(c.mlp_dim, c.mlp_bias, name="gate")(x_BTD) if c.gated_mlp else up_BTF
        # Worked out again in the backward pass: what a gate keeps for it is as large as what the products keep.
        gated = jax.checkpoint(lambda gate_BTF, up_BTF: act(gate_BTF) * up_BTF if c.gated_mlp else act(gate_BTF))
        hidden_BTF = gated(gate_BTF, up_BTF)
        hidden_BTF = constrain(hidden_BTF, ROWS, None, "tensor")
        return Linear(c.width, c.mlp_bias, (2 * c.depth) ** -0.5, name="down")(hidden_BTF)
