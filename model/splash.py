"""Attention over the sequence itself by the TPU's kernel, which holds the scores of no row: forward and backward.

It is splash attention, as JAX brings it: FlashAttention (Dao et al. 2022, arXiv 2205.14135) that leaves out the blocks
that a mask empties. The mask goes by index and not by position: within a segment both count the same distances, since
every row is made so that a document's tokens stand side by side, in order and once (train/data.py, distill/rows,
inference/scoring.py). Padding, which is segment 0 and all at position 0, sees what padding is before it; nobody reads
what comes of it.

Letters as in `config.py`; `X` is a row's length in whole blocks.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import PartitionSpec

from limbeck.model.sharding import ROWS, platform, spread

ATTENDED = "attended"  # what a rematerialisation may keep by this name: attention's output and log-sums
_LANES = 128  # of which the kernel's blocks are multiples
_BLOCK = 512  # tokens, at most
_MOST_HEAD_DIM = 256  # with more, a block's keys and values do not fit on the chip beside the scores
_KEYS_BYTES = 2**19  # of the keys that the fused backward kernel holds at a time, for the same reason
_COPIES = 4  # of the queries' gradient that it writes, at most


def fits(q_BTNH: jax.Array) -> bool:
    """Whether the program that is being traced is for a TPU, and its kernel takes such queries.

    Rows shorter than the smallest block are not worth it.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    can = T >= _LANES and H <= _MOST_HEAD_DIM and q_BTNH.dtype in (jnp.bfloat16, jnp.float32)
    return can and platform() == "tpu"


def splash(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    segments_BT: jax.Array | None,
    window: jax.Array,
    windows: Sequence[int],
    scale: float | None = None,
    cap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attend_causally` with the mask that segments and a window make, out_BTNH, where S is T.

    `window` may be traced and is one of `windows`; without segments a row is one. Under a mesh, which the compiler
    cannot spread a kernel over, each device takes its rows and its heads. Key-value heads that are too few to be split
    over `tensor` are repeated, each for a part of its group; where even that does not divide, every device takes all.
    `interpret` runs the kernel on any machine, slowly.
    """
    B, T, N, H = q_BTNH.shape
    K, tensor = k_BKSH.shape[1], spread("tensor")
    q_BNTH = (q_BTNH * (H**-0.5 if scale is None else scale)).swapaxes(1, 2)
    widths = sorted({min(each, T) for each in windows})
    which = sum((window > width).astype(jnp.int32) for width in widths[:-1])
    kernels = [partial(_rows, width=width, cap=cap, interpret=interpret) for width in widths]

    def attend(which, *arrays):
        return jax.lax.switch(which, kernels, *arrays)

    if not jax.sharding.get_abstract_mesh().empty:
        rows = next(axes for axes in (ROWS, ROWS[:1], None) if B % spread(axes) == 0)
        times, heads = tensor // math.gcd(K, tensor), None
        if N // K % times == 0:
            k_BKSH, v_BKSH, heads = jnp.repeat(k_BKSH, times, 1), jnp.repeat(v_BKSH, times, 1), "tensor"
        whole, by_head, by_row = PartitionSpec(), PartitionSpec(rows, heads), PartitionSpec(rows)
        attend = jax.shard_map(
            attend, in_specs=(whole, by_head, by_head, by_head, by_row), out_specs=by_head, check_vma=False
        )
    return attend(jnp.asarray(which), q_BNTH, k_BKSH, v_BKSH, segments_BT).swapaxes(1, 2)


def _rows(q_BNTH, k_BKTH, v_BKTH, segments_BT, *, width, cap, interpret):
    """out_BNTH of the rows and heads of one device."""
    _, N, T, H = q_BNTH.shape
    blocks = -(-T // _BLOCK)
    block = -(-T // (blocks * _LANES)) * _LANES
    X = blocks * block
    # What is added at the end no real query sees, as it is to its right, and its own outputs are cut off.
    q_BNXH, k_BKXH, v_BKXH = (jnp.pad(x, [(0, 0), (0, 0), (0, X - T), (0, 0)]) for x in (q_BNTH, k_BKTH, v_BKTH))
    mask = pallas.CausalMask((X, X)) if width == T else pallas.LocalMask((X, X), (width - 1, 0), 0)
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([mask] * N),
        block_sizes=_block_sizes(blocks, block, width, max(H, _LANES) * q_BNTH.dtype.itemsize),
        attn_logits_soft_cap=cap,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    segments = None
    if segments_BT is not None:
        segments_BX = jnp.pad(segments_BT, [(0, 0), (0, X - T)])
        segments = pallas.SegmentIds(segments_BX, segments_BX)
    return cast(jax.Array, jax.vmap(kernel)(q_BNXH, k_BKXH, v_BKXH, segments))[:, :, :T]


def _block_sizes(blocks: int, block: int, width: int, bytes_per_key: int) -> pallas.BlockSizes:
    """Blocks of a row of so many: the backward pass is one kernel where that is cheap, else one for queries and one
    for keys and values, which compute the scores twice.

    The one kernel writes the queries' gradient once for each block of keys. Such blocks are therefore of several
    others, so that there are few, but no longer than a window: a block is computed whole, masked or not.
    """
    several = next(count for count in range(1, blocks + 1) if blocks % count == 0 and blocks // count <= _COPIES)
    fused = several * block <= _KEYS_BYTES // bytes_per_key and (several - 1) * block < width
    return pallas.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=several * block if fused else block,
        block_kv_dkv_compute=block,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
