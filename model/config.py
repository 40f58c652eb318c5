"""The shape of a decoder-only transformer, as one frozen dataclass.

Config fields are words; arrays carry the letters of the dimension key: `B` batch, `T` query length, `S` key length,
`D` width, `N` query heads, `K` key-value heads, `G` queries per key-value head, `H` head dim, `F` mlp, `L` layers,
`V` vocabulary, `R` adapter rank, `P` prompt length.
"""

import dataclasses
from typing import Literal, get_args

from limbeck.model.errors import UserError, one_of
from limbeck.model.rope import Rope, rotary_dims

Norm = Literal["rms", "layer"]
NormPlacement = Literal["pre", "post", "both"]
QkNorm = Literal["none", "head", "projection"]
Positions = Literal["rope", "learned", "none"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Remat = Literal["none", "dots", "full"]
Dtype = Literal["float32", "bfloat16", "float16"]
DEEPEST = 10_000  # layers are listed one by one; a file that claims more is damaged


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
    norm_plus_one: bool = False  # the norms' scales are kept as their difference from one (Gemma)
    norm_placement: NormPlacement = "pre"  # before each half of a block, on what it adds (OLMo 2), or both (Gemma 2)
    parallel_residual: bool = False  # both halves of a block read the same input (GPT-NeoX)
    positions: Positions = "rope"
    rope: Rope = Rope()
    local_rope: Rope | None = None  # of layers with a window; None for that of all
    unrotated_layers: tuple[int, ...] = ()  # layers without rotary positions (SmolLM3)
    activation: Activation = "silu"
    gated_mlp: bool = True
    attention_bias: bool = False  # on q, k, v
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False
    tied_embedding: bool = True
    embedding_scale: float = 1.0  # Gemma multiplies the embedding by sqrt(width)
    window: int | None = None  # a token sees itself and the window - 1 tokens before it
    global_layers: tuple[int, ...] = ()  # with a window: the layers that see everything all the same
    qk_norm: QkNorm = "none"  # of queries and keys, before they turn: each head by itself, or all heads as one vector
    attention_scale: float | None = None  # multiplies the scores; None for head_dim ** -0.5
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    labels: tuple[str, ...] = ()  # the outputs of a head for classification or regression, in place of the vocabulary
    scan: bool = True  # one compiled block in a loop; False unrolls the loop, with equal results
    remat: Remat = "none"  # what the backward pass computes again: nothing, all but the dense products, everything
    dtype: Dtype = "float32"  # of activations; parameters keep their own
    # Whose names and config the model is saved with (see families.py); empty for the first that fits.
    family: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_len"):
            most = DEEPEST if name == "depth" else 2**31 - 1
            if not isinstance(getattr(self, name), int) or not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}: must be a whole number from 1 to {most}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}: "
                "each key-value head serves a whole number of query heads"
            )
        if self.positions == "rope":
            dims = {rotary_dims(rope, self.head_dim) for rope in (self.rope, self.local_rope) if rope}
            if len(dims) > 1:
                raise UserError(f"rope and local_rope turn {sorted(dims)} dimensions of a head: give them one share")
        if self.window is not None and self.window < 1:
            raise UserError(f"window={self.window}: must be at least 1, or None for no window")
        for name in ("global_layers", "unrotated_layers"):
            if any(not 0 <= layer < self.depth for layer in getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)}: layers are 0 to {self.depth - 1}")
        for name, legal in (
            ("norm", Norm),
            ("norm_placement", NormPlacement),
            ("qk_norm", QkNorm),
            ("positions", Positions),
            ("activation", Activation),
            ("remat", Remat),
            ("dtype", Dtype),
        ):
            one_of(name, getattr(self, name), get_args(legal))

    def layer_windows(self) -> tuple[int, ...]:
        """How far each layer looks back, in tokens; `max_len` where it sees everything."""
        window = self.window or self.max_len
        return tuple(self.max_len if layer in self.global_layers else window for layer in range(self.depth))

    def layer_ropes(self) -> tuple[Rope | None, ...]:
        """The rotary positions of each layer, or None."""
        local = self.local_rope or self.rope
        ropes = [local if self.window and layer not in self.global_layers else self.rope for layer in range(self.depth)]
        return tuple(
            None if self.positions != "rope" or layer in self.unrotated_layers else rope
            for layer, rope in enumerate(ropes)
        )
