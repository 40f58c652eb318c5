"""Models in and out: a published checkpoint's folder as a ModelConfig and a flat dict of parameters, and back.

A folder holds config.json, weights in safetensors (in one file, or in shards and an index) and a tokenizer. Those that
`save_pretrained` writes also have a manifest with the digest of every file. Weights are read leaf by leaf, each layer
into its place in the stack, and cast on the way if at all: no more than a block of a tensor exists twice.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np

from limbeck.model.chosen import has_chosen
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.files import disk_errors, sha256_file, write_atomic
from limbeck.model.hosts import leads, together
from limbeck.model.params import Params, count, digest, join
from limbeck.model.pretrained.card import HUB_NAME, Result, Table, drop_card, write_card
from limbeck.model.pretrained.config_json import TOKENIZER_KEYS, read_config, write_config, write_own
from limbeck.model.pretrained.families import FAMILIES, Json
from limbeck.model.pretrained.layout import Source, leaf_shape, locate, read_leaf, tensors
from limbeck.model.pretrained.lineage import LINEAGE, Lineage, Origin, read_lineage, to_json
from limbeck.model.pretrained.llama2c import load_llama2c
from limbeck.model.pretrained.stored_tensor import StoredTensor
from limbeck.model.pretrained.weight_files import Unsaved, open_weights, save_weights
from limbeck.model.progress import progress
from limbeck.model.quantize import is_quantized
from limbeck.model.sharding import layout, placed
from limbeck.model.tokenizer import Tokenizer, load_tokenizer
from limbeck.model.tokenizer.files import VOCABULARIES
from limbeck.model.transformer import shapes

_CONFIG, _MANIFEST = "config.json", "manifest.json"
_LONG = 2**29  # bytes that take more than a moment to load
_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class Pretrained(NamedTuple):
    """A model as it comes from disk.

    `tokenizer` is None where the folder has none; `digest` is that of the parameters where the folder's manifest
    vouches for it, so that it need not be worked out again. `lineage` is empty where the folder tells none.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    digest: str | None = None
    lineage: Lineage = ()


def load_pretrained(path: str | os.PathLike[str], *, dtype: str | None = None) -> Pretrained:
    """Reads a model: a Hugging Face folder, one that `save_pretrained` wrote, or a llama2.c `.bin` file.

    The parameters keep the type they are stored in, which is also that of the activations; `dtype` casts both, once.
    On a mesh (see `sharding.over`) each parameter goes to its devices, and only what those here need of it is read.
    Raises UserError for an unknown architecture, weights that are not those of the config, a damaged or unsafe file, a
    file that is not what the manifest says, and a tokenizer with more ids than the model.
    """
    folder = Path(path)
    if dtype is not None:
        one_of("dtype", dtype, _DTYPES)
    if folder.is_file():
        return _file(folder, dtype)
    known_digest = _check_manifest(folder) if folder.is_dir() else None
    config, stored, located = _open(folder)
    kind = _DTYPES[dtype] if dtype else None
    goes = layout(config)
    long = sum(tensor.nbytes for tensor in stored.values()) > _LONG
    params = {}
    with progress(f"load {folder.name}", len(located), "leaf") if long else contextlib.nullcontext(int) as advance:
        for leaf, source in located.items():
            params[leaf] = read_leaf(leaf, source, stored, kind, goes)
            advance(1)
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    tokenizer = load_tokenizer(folder) if any((folder / name).is_file() for name in VOCABULARIES) else None
    _check_tokenizer(config, tokenizer, folder)
    return Pretrained(config, params, tokenizer, None if dtype else known_digest, stored_lineage(folder))


def stored_lineage(path: str | os.PathLike[str]) -> Lineage:
    """What a folder's lineage.json tells, without the weights; empty where there is none.

    Raises UserError for one that tells none, or that is not what the manifest says.
    """
    told = Path(path) / LINEAGE
    if not told.is_file():
        return ()
    if (manifest := told.parent / _MANIFEST).is_file():
        files = _json(manifest).get("files")
        known = files.get(LINEAGE) if isinstance(files, dict) else None
        if known is not None and known != sha256_file(told):
            raise UserError(f"{told} has changed since it was written: copy or write it again")
    return read_lineage(told.read_text(encoding="utf-8", errors="replace"), str(told))


def lineage_of(model: Pretrained, path: str | os.PathLike[str]) -> Lineage:
    """The lineage that a model brings along; of one that brings none, that it was found at `path`, and its digest."""
    if model.lineage:
        return model.lineage
    folder = Path(path).resolve()
    told = _json(folder / _CONFIG).get("_name_or_path") if (folder / _CONFIG).is_file() else None
    name = told if isinstance(told, str) and HUB_NAME.fullmatch(told) else folder.name
    return (Origin(name, "found", count(model.params), model.digest or digest(model.params)),)


def save_pretrained(
    path: str | os.PathLike[str],
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    tokenizer: Tokenizer | None = None,
    *,
    lineage: Lineage = (),
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model folder in the names of `config.family`, or of the first family that can say what the model is.

    Other programs load such a folder. A model that no family can say (or one with adapters beside its kernels) is
    written with our own names, for `load_pretrained` alone. The weights are one file, or shards above
    `max_shard_bytes`; the manifest comes last. With a `lineage`, which `descended` makes and in which the model's own
    digest need not be known, the folder tells where it comes from, and has a model card (see `card.py`). Of several
    processes that hold a model together all must call this; the one that leads writes. Raises UserError on a full disk
    or a place that cannot be written.
    """
    folder = Path(path)
    params = join(params)
    _check_tokenizer(config, tokenizer, folder)
    described, tensors = _to_be_written(config, params)
    if leads():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (_MANIFEST, _CONFIG, LINEAGE):  # without them the folder is no model until it is whole
                (folder / name).unlink(missing_ok=True)
            drop_card(folder)
    names, weights = save_weights(folder, tensors, max_shard_bytes), digest(params)
    if leads():
        _finish(folder, config, tokenizer, lineage, described, names, weights)
    together(f"{folder.name} is written")


def _finish(
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    lineage: Lineage,
    described: Json,
    names: list[str],
    weights: str,
) -> None:
    """Writes what makes a model of weights: tokenizer, lineage, card, config, and last the manifest."""
    names = names + (tokenizer.save_folder(folder) if tokenizer else [])
    # Said even where there is none: what a family takes an absent id to be may lie outside of this vocabulary.
    described |= {key: getattr(tokenizer, key.replace("_token", ""), None) for key in TOKENIZER_KEYS}
    if lineage:
        lineage = (dataclasses.replace(lineage[0], digest=weights), *lineage[1:])
        write_atomic(folder / LINEAGE, to_json(lineage))
        write_card(folder, config, lineage)
        names = [*names, LINEAGE]
    write_atomic(folder / _CONFIG, json.dumps(described, indent=2))
    manifest = {name: sha256_file(folder / name) for name in [*names, _CONFIG]}
    write_atomic(folder / _MANIFEST, json.dumps({"files": manifest, "weights": weights}, indent=2))


def add_to_card(
    path: str | os.PathLike[str], sections: Mapping[str, Sequence[Table]], results: Sequence[Result] = ()
) -> Path | None:
    """Tells on a model's card what was measured of it; the path of the card, None for a folder that tells no lineage.

    See `card.write_card`; what the card told before of other sections stays.
    """
    folder, lineage = Path(path), stored_lineage(path) if leads() else ()
    return write_card(folder, describe(folder)[0], lineage, sections, results) if lineage else None


class Leaf(NamedTuple):
    """A parameter as `describe` tells it; `stored_as` is the tensor that holds it, with {} for the layer."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stored_as: str


def describe(path: str | os.PathLike[str]) -> tuple[ModelConfig, list[Leaf]]:
    """(config, every parameter) of a model on disk, from the headers of its files.

    The numbers of a llama2.c file, and of a head beside a tied embedding, are read. Raises as `load_pretrained` does.
    """
    folder = Path(path)
    if folder.is_file():
        model = _file(folder, None)
        return model.config, [Leaf(n, x.shape, str(x.dtype), x.nbytes, "") for n, x in sorted(model.params.items())]
    config, stored, located = _open(folder)
    leaves = []
    for leaf, source in sorted(located.items()):
        first = stored[source.names[0]]
        shape = leaf_shape(source, first.shape)
        stored_as = first.name.replace(".0.", ".{}.") if source.stacked else first.name
        leaves.append(Leaf(leaf, shape, str(first.dtype), math.prod(shape) * first.dtype.itemsize, stored_as))
    return config, leaves


def shapes_at(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, jax.ShapeDtypeStruct]]:
    """(config, shape and type of every parameter) of a model on disk; a folder's config.json alone is enough.

    Raises as `load_pretrained` does.
    """
    folder = Path(path)
    try:
        config, leaves = describe(folder)
        return config, {leaf.path: jax.ShapeDtypeStruct(leaf.shape, _DTYPES[leaf.dtype]) for leaf in leaves}
    except UserError:
        if not (folder / _CONFIG).is_file() or any(folder.glob("*.safetensors*")):
            raise
    config = read_config(_json(folder / _CONFIG))
    kind = _DTYPES[config.dtype]
    return config, {name: jax.ShapeDtypeStruct(leaf.shape, kind) for name, leaf in shapes(config).items()}


def _open(folder: Path) -> tuple[ModelConfig, dict[str, StoredTensor], dict[str, Source]]:
    """(config, the stored tensors, where each leaf is among them), read off the headers."""
    if not (folder / _CONFIG).is_file():
        raise UserError(f"no model at {folder}: a model folder holds {_CONFIG}, weights in safetensors and a tokenizer")
    described = _json(folder / _CONFIG)
    try:
        config = read_config(described)
    except UserError as error:
        raise UserError(f"{folder / _CONFIG}: {error}") from error
    stored = open_weights(folder)
    config, located = locate(config, stored, folder)
    dtype = str(stored[located["embed/embedding"].names[0]].dtype)
    return dataclasses.replace(config, dtype=dtype), stored, located


def _file(path: Path, dtype: str | None) -> Pretrained:
    if path.suffix != ".bin":
        raise UserError(f"{path} is no model: name a folder, or a llama2.c .bin file")
    config, params = load_llama2c(path, dtype)
    params = placed(config, params)
    beside = [path.parent / name for name in (f"tok{config.vocab_size}.bin", "tokenizer.bin")]
    tokenizer = next((load_tokenizer(file) for file in beside if file.is_file()), None)
    _check_tokenizer(config, tokenizer, path)
    return Pretrained(config, params, tokenizer)


def _check_manifest(folder: Path) -> str | None:
    """The digest of the parameters that the manifest vouches for; None without a manifest."""
    if not (folder / _MANIFEST).is_file():
        return None
    manifest = _json(folder / _MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise UserError(f"{folder / _MANIFEST} lists no files: remove it, or write the model again")
    for name, sha in files.items():
        if Path(name).name != name or name == "..":
            raise UserError(f"{folder / _MANIFEST} names {name!r}, which is outside of its folder")
        if not (folder / name).is_file() or sha256_file(folder / name) != sha:
            raise UserError(f"{folder / name} is missing or has changed since it was written: copy or write it again")
    return manifest.get("weights")


def _to_be_written(config: ModelConfig, params: Mapping[str, jax.Array]) -> tuple[Json, Iterator[Unsaved]]:
    """(config.json, the tensors): in a family's names where one can say it, else in ours."""
    if codes := next(filter(is_quantized, sorted(params)), None):
        raise UserError(f"{codes!r} is quantised, and weights are written as floats: save `dequantized(params)`")
    if has_chosen(params):
        raise UserError("some entries stand apart from their leaves: save `unchosen(params)`, in which they are put in")
    config = dataclasses.replace(config, dtype=str(params["embed/embedding"].dtype))
    # What a tuning method added has no name in any family.
    described = write_own(config) if params.keys() - shapes(config).keys() else write_config(config)
    family = described["model_type"] if described["model_type"] in FAMILIES else ""
    return described, tensors(dataclasses.replace(config, family=family), params)


def _check_tokenizer(config: ModelConfig, tokenizer: Tokenizer | None, place: Path) -> None:
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{place}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends at "
            f"{config.vocab_size - 1}: they do not belong together"
        )


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content
