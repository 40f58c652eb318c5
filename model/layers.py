"""The parts of a block: the one dense layer, norms, rotary positions, the MLP. `x_BTD` and friends: see `config.py`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from limbeck.model.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class Linear(nn.Module):
    """`x @ kernel (+ bias) (+ (x @ lora_a) @ lora_b * lora_scale)`: the one dense layer.

    The low-rank side path (Hu et al. 2021, arXiv 2106.09685, eq. 3) is there when its leaves are: an adapter is
    added to the parameters, not to the module.
    """

    features: int
    use_bias: bool = False
    init_scale: float = 1.0  # of the standard deviation 1 / sqrt(fan in)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        # A flat [tokens, D] product: the gradient of the three-dimensional one is 2.6 times slower on CPU.
        flat = x.reshape(-1, fan_in)
        kernel = self.param("kernel", nn.initializers.normal(self.init_scale * fan_in**-0.5), (fan_in, self.features))
        y = flat @ kernel.astype(x.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        if self.has_variable("params", "lora_a"):
            a, b, scale = (self.get_variable("params", f"lora_{part}") for part in ("a", "b", "scale"))
            y = y + (flat @ a.astype(x.dtype)) @ b.astype(x.dtype) * scale.astype(x.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Norm(nn.Module):
    """RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467) or layer norm over the last axis, in float32."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dim = x.shape[-1]
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        y = y * self.param("scale", nn.initializers.ones, (dim,)).astype(jnp.float32)
        if self.kind == "layer":
            y = y + self.param("bias", nn.initializers.zeros, (dim,)).astype(jnp.float32)
        return y.astype(x.dtype)


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) over the pairs (i, i + H/2), angles in float32."""
    half = x_BTNH.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1H = (positions_BT[:, :, None].astype(jnp.float32) * frequency_H)[:, :, None, :]
    cos, sin = jnp.cos(angle_BT1H), jnp.sin(angle_BT1H)
    first, second = x_BTNH[..., :half].astype(jnp.float32), x_BTNH[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x_BTNH.dtype)


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
        hidden_BTF = act(gate_BTF) * up_BTF if c.gated_mlp else act(gate_BTF)
        return Linear(c.width, c.mlp_bias, (2 * c.depth) ** -0.5, name="down")(hidden_BTF)
