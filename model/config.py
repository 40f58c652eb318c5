"""The shape of a decoder-only transformer, as one frozen dataclass.

Config fields are words; arrays carry the letters of the dimension key: `B` batch, `T` query length, `S` key length,
`D` width, `N` query heads, `K` key-value heads, `G` queries per key-value head, `H` head dim, `F` mlp, `L` layers,
`V` vocabulary, `R` adapter rank, `P` prompt length.
"""

import dataclasses
from typing import Literal, get_args

from limbeck.model.errors import UserError, one_of

Norm = Literal["rms", "layer"]
Positions = Literal["rope", "learned", "none"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Remat = Literal["none", "dots", "full"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Raises UserError for a shape that cannot be built."""

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_len: int
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    positions: Positions = "rope"
    rope_theta: float = 10_000.0
    activation: Activation = "silu"
    gated_mlp: bool = True
    attention_bias: bool = False  # on q, k, v
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False
    tied_embedding: bool = True
    embedding_scale: float = 1.0  # Gemma multiplies the embedding by sqrt(width)
    window: int | None = None  # a token sees itself and the window - 1 tokens before it
    global_every: int = 0  # with a window: every so many-th layer sees everything; 0 for none
    qk_norm: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    scan: bool = True  # one compiled block in a loop; False unrolls the loop, with equal results
    remat: Remat = "none"  # what the backward pass computes again: nothing, all but the dense products, everything
    dtype: Dtype = "float32"  # of activations; parameters keep their own

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_len"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}: "
                "each key-value head serves a whole number of query heads"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} is odd: rotary positions turn pairs, so make it even")
        if self.window is not None and self.window < 1:
            raise UserError(f"window={self.window}: must be at least 1, or None for no window")
        for name, legal in (
            ("norm", Norm),
            ("positions", Positions),
            ("activation", Activation),
            ("remat", Remat),
            ("dtype", Dtype),
        ):
            one_of(name, getattr(self, name), get_args(legal))

    def layer_windows(self) -> tuple[int, ...]:
        """How far each layer looks back, in tokens; `max_len` where it sees everything."""
        window = self.window or self.max_len
        is_global = [self.global_every and (layer + 1) % self.global_every == 0 for layer in range(self.depth)]
        return tuple(self.max_len if everything else window for everything in is_global)
