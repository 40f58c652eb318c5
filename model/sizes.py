"""Shapes of foundations by name, for pretraining from scratch: Llama's architecture from a laptop to a slice."""

from limbeck.model.config import ModelConfig
from limbeck.model.errors import one_of

# width, depth, heads, key-value heads, MLP (None: 8 / 3 of the width); named by the parameters in the blocks, of which
# there are about 12 * depth * width^2. The last two are Llama 3's (arXiv 2407.21783, table 3).
_SHAPES = {
    "tiny": (128, 4, 4, 4, None),
    "5m": (256, 6, 8, 8, None),
    "14m": (384, 8, 6, 6, None),
    "30m": (512, 10, 8, 8, None),
    "85m": (768, 12, 12, 12, None),
    "300m": (1024, 24, 16, 8, None),
    "1b": (2048, 20, 32, 8, None),
    "8b": (4096, 32, 32, 8, 14336),
    "70b": (8192, 80, 64, 8, 28672),
}
SIZES = tuple(_SHAPES)
UNROLLED = 8  # up to so many layers a plain loop, a quarter faster on CPU, is soon compiled; more are scanned


def sized(name: str, vocab_size: int, max_len: int) -> ModelConfig:
    """The shape of that name; the input and output embeddings are one up to 85m. Raises UserError for another name."""
    width, depth, heads, kv_heads, mlp_dim = _SHAPES[one_of("size", name, SIZES)]
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        mlp_dim=mlp_dim or 64 * round(width * 8 / 3 / 64),
        max_len=max_len,
        tied_embedding=width < 1024,
        scan=depth > UNROLLED,
    )
