"""llama2.c's models: the weights of a `.bin` file, version 0: seven numbers, then float32 arrays one after the other.

The format is that of karpathy/llama2.c, `legacy_export` in export.py.
"""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.model.pretrained.stored_tensor import AGAIN, PICKLE, reading

_FIELDS: tuple[str, ...] = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "max_len")
_MAGIC = 0x616B3432  # what later versions begin with
_PICKLES = (b"PK\x03\x04", b"\x80\x02\x8a")  # PyTorch's, which end in .bin as well


def read_llama2c(path: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """(header, arrays): the arrays are mapped, not read; those of the layers are stacked, kernels are [layer, out, in].

    The names are llama2.c's own. `wcls`, the classifier, is there when it is not tied to the embedding. Raises
    UserError for a header that makes no sense and for a file that is not of the size that its header calls for.
    """
    path = Path(path)
    with reading(path):
        if not path.is_file():
            raise UserError(f"{path} is not a file: name a llama2.c .bin file")
        with open(path, "rb") as file:
            start = file.read(4 * len(_FIELDS))
        size = path.stat().st_size
    if len(start) < 4 * len(_FIELDS):
        raise UserError(f"{path} is too short for a llama2.c header: {AGAIN}")
    if start.startswith(_PICKLES):
        raise UserError(f"{path} {PICKLE}")
    if int.from_bytes(start[:4], "little") == _MAGIC:
        raise UserError(f"{path} is a llama2.c file of a later version: export it again with --version 0")
    header: dict[str, int] = dict(zip(_FIELDS, np.frombuffer(start, "<i4").tolist(), strict=True))
    untied = header["vocab"] < 0
    header["vocab"] = abs(header["vocab"])
    if (wrong := _nonsense(header)) is not None:
        raise UserError(f"{path} is no llama2.c file of version 0, {wrong}: {AGAIN}")
    shapes = _shapes(header, untied)
    expected = len(start) + 4 * sum(math.prod(shape) for shape in shapes.values())
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes, its header calls for {expected:,}: {AGAIN}")
    with reading(path):
        numbers = np.memmap(path, "<f4", "r", offset=len(start), shape=((size - len(start)) // 4,)).view(np.ndarray)
    arrays, done = {}, 0
    for name, shape in shapes.items():
        arrays[name] = numbers[done : done + math.prod(shape)].reshape(shape)
        done += math.prod(shape)
    return header, arrays


def _nonsense(header: dict[str, int]) -> str | None:
    for name, value in header.items():
        if value < 1:
            return f"its header has {name}={value}"
    for small, large in (("heads", "dim"), ("kv_heads", "heads")):
        if header[large] % header[small]:
            return f"its header has {small}={header[small]}, which does not divide {large}={header[large]}"
    if header["dim"] // header["heads"] % 2:
        return "its heads are of odd width and cannot be rotated in pairs"
    return None


def _shapes(header: dict[str, int], untied: bool) -> dict[str, tuple[int, ...]]:
    """The arrays in their order in the file."""
    dim, hidden, layers, heads, kv_heads, vocab, max_len = (header[name] for name in _FIELDS)
    kv_dim, pairs = dim // heads * kv_heads, dim // heads // 2
    return {
        "token_embedding_table": (vocab, dim),
        "rms_att_weight": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv_dim, dim),
        "wv": (layers, kv_dim, dim),
        "wo": (layers, dim, dim),
        "rms_ffn_weight": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final_weight": (dim,),
        "freq_cis_real": (max_len, pairs),
        "freq_cis_imag": (max_len, pairs),
        **({"wcls": (vocab, dim)} if untied else {}),
    }


def load_llama2c(path: Path, dtype: str | None = None) -> tuple[ModelConfig, Params]:
    """(config, parameters) as a Llama; `dtype` casts. Raises UserError as `read_llama2c` does."""
    header, arrays = read_llama2c(path)
    config = ModelConfig(
        vocab_size=header["vocab"],
        width=header["dim"],
        depth=header["layers"],
        num_heads=header["heads"],
        num_kv_heads=header["kv_heads"],
        head_dim=header["dim"] // header["heads"],
        mlp_dim=header["hidden"],
        max_len=header["max_len"],
        norm_eps=1e-5,
        tied_embedding="wcls" not in arrays,
        dtype=dtype or "float32",  # type: ignore[arg-type]
        family="llama",
    )

    def half_split(rows: np.ndarray) -> np.ndarray:
        """A head's pairs from neighbours (2i, 2i + 1) to halves (i, i + H/2)."""
        layers, _, width = rows.shape
        return rows.reshape(layers, -1, config.head_dim // 2, 2, width).swapaxes(2, 3).reshape(rows.shape)

    kernels = {
        "attn/q": half_split(arrays["wq"]),
        "attn/k": half_split(arrays["wk"]),
        **{"attn/v": arrays["wv"], "attn/o": arrays["wo"]},
        **{"mlp/gate": arrays["w1"], "mlp/down": arrays["w2"], "mlp/up": arrays["w3"]},
    }
    leaves = {f"blocks/{name}/kernel": rows.swapaxes(1, 2) for name, rows in kernels.items()}
    leaves |= {"blocks/attn_norm/scale": arrays["rms_att_weight"], "blocks/mlp_norm/scale": arrays["rms_ffn_weight"]}
    leaves |= {"embed/embedding": arrays["token_embedding_table"], "norm/scale": arrays["rms_final_weight"]}
    leaves |= {"head/kernel": arrays["wcls"].T} if "wcls" in arrays else {}
    return config, {path: jnp.array(leaf, config.dtype) for path, leaf in leaves.items()}
