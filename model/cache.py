"""The key-value cache: what attention has seen of a text, so that each new token costs one token.

Heads come before slots, as the products over them take it: on CPU an array in another order is copied each time. A
piece is an array [L, B, K, S, H] of some layers, or eight-bit codes of one with a scale a head and slot: a quarter of
the memory, and values that are off by up to 1/254 of the largest of their vector.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from limbeck.model.config import ModelConfig
from limbeck.model.sharding import ROWS, constrain


class Coded(NamedTuple):
    """`codes` int8 [L, B, K, S, H]; a number is code * scale. `scale` is float32 [L, B, K, S]."""

    codes: jax.Array
    scale: jax.Array


Piece = jax.Array | Coded
AS_CACHED = (ROWS, "tensor", None, None)  # how [B, K, S, H] lies on a mesh


class Cache(NamedTuple):
    """Keys and values of all layers, a slot per position: in one piece where the stack is scanned, else one a layer.

    A loop that is compiled updates pieces of their own in place; a layer sliced out of the whole is copied each time.
    `length_B` is how many slots of a row are in use, `total_B` how many may come to be: some rotary positions depend
    on how long the text will be (longrope), and what is in the cache cannot be turned again.
    """

    k: tuple[Piece, ...]
    v: tuple[Piece, ...]
    length_B: jax.Array
    total_B: jax.Array


class LayerCache(NamedTuple):
    """A piece of the cache and which layer of it to use, so that a loop over layers updates it in place."""

    k: Piece
    v: Piece
    layer: jax.Array | int


def empty_cache(config: ModelConfig, batch: int, slots: int, coded: bool = False) -> Cache:
    """A cache of `slots` positions for each of `batch` rows, in eight bits where it is `coded`."""

    def piece(layers: int) -> Piece:
        shape, axes = (layers, batch, config.num_kv_heads, slots, config.head_dim), (None, *AS_CACHED)
        if coded:
            codes, scale = jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32)
            return Coded(constrain(codes, *axes), constrain(scale, *axes[:-1]))
        return constrain(jnp.zeros(shape, config.dtype), *axes)

    layers = [config.depth] if config.scan else [1] * config.depth
    k, v = (tuple(map(piece, layers)) for _ in "kv")
    return Cache(k, v, jnp.zeros(batch, jnp.int32), jnp.full(batch, slots, jnp.int32))


def write(piece: Piece, layer: jax.Array | int, positions_BT: jax.Array, x_BTKH: jax.Array) -> Piece:
    """The piece with keys, or values, of new tokens in the slots of their positions; a slot past the end is dropped."""
    row_B1 = jnp.arange(x_BTKH.shape[0])[:, None]
    if not isinstance(piece, Coded):
        return piece.at[layer, row_B1, :, positions_BT].set(x_BTKH, mode="drop")
    largest_BTK = jnp.abs(x_BTKH.astype(jnp.float32)).max(-1)
    scale_BTK = largest_BTK / 127
    codes_BTKH = jnp.round(x_BTKH / jnp.where(scale_BTK > 0, scale_BTK, 1)[..., None]).astype(jnp.int8)
    return Coded(
        piece.codes.at[layer, row_B1, :, positions_BT].set(codes_BTKH, mode="drop"),
        piece.scale.at[layer, row_B1, :, positions_BT].set(scale_BTK, mode="drop"),
    )


def read(piece: Piece, layer: jax.Array | int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """x_BKSH of one layer."""
    if not isinstance(piece, Coded):
        return piece[layer]
    return piece.codes[layer].astype(dtype) * piece.scale[layer][..., None].astype(dtype)


def first_rows(pieces: Sequence[Piece], dtype: jax.typing.DTypeLike) -> jax.Array:
    """x_LSKH: what all layers hold of the first row."""
    whole = [piece if not isinstance(piece, Coded) else piece.codes * piece.scale[..., None] for piece in pieces]
    return jnp.concatenate([piece_LBKSH[:, 0] for piece_LBKSH in whole]).swapaxes(1, 2).astype(dtype)
