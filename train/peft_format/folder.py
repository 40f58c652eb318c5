"""Adapters in and out: PEFT's folder of `adapter_config.json` and `adapter_model.safetensors`.

Such a folder goes between this program and PEFT, both ways: LoRA with its variants, VeRA, (IA)3, prompts and prefixes,
with whatever of the base model was trained in full beside them. A folder that `save_adapter` writes has a
`manifest.json` as well, which PEFT does not read: the digests of both files and of the base model, and how ranks are
divided where theirs has one module for several of ours.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, sha256_file, write_atomic
from limbeck.model.hosts import leads, on_host
from limbeck.model.params import Params, digest, merge
from limbeck.model.pretrained.stored_tensor import AGAIN, PICKLE, quoted, reading
from limbeck.model.pretrained.weight_files import Unsaved, file_bytes, inside, open_file, parse_json
from limbeck.train.peft_format.config import Json
from limbeck.train.peft_format.read import read_adapter
from limbeck.train.peft_format.write import kind_of_leaf, write_adapter

_CONFIG, _WEIGHTS, _PICKLE, _MANIFEST = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "manifest.json",
)
_LARGEST_JSON = 10_000_000


def save_adapter(
    path: str | os.PathLike[str],
    config: ModelConfig,
    base: Mapping[str, jax.Array],
    params: Mapping[str, jax.Array],
    *,
    base_name: str = "",
) -> None:
    """Writes what makes the model `base` what `params` are: added leaves, and the base's leaves that have changed.

    Leaves that are the same array in both cost nothing to compare. `base_name` is the folder or the published name of
    the base, which PEFT loads when it is not given one. Of several processes that hold the models together all must
    call this; the one that leads writes. Raises UserError for leaves that PEFT has no way to say, a
    model of no published family, and a full disk or a place that cannot be written.
    """
    folder = Path(path)
    if jax.process_count() > 1:
        whole = {name: on_host(leaf) for name, leaf in base.items()}
        params = {name: whole[name] if x is base.get(name) else on_host(x) for name, x in params.items()}
        base = whole
    written = write_adapter(config, base, params)
    if not leads():
        return
    described = {"base_model_name_or_path": base_name or None, **written.config}
    tensors = [Unsaved(name, x.shape, x.dtype, lambda x=x: x) for name, x in sorted(written.tensors.items())]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_MANIFEST, _CONFIG):  # without them the folder is no adapter until it is whole
            (folder / name).unlink(missing_ok=True)
    write_atomic(folder / _WEIGHTS, file_bytes(tensors))
    write_atomic(folder / _CONFIG, json.dumps(described, indent=2, sort_keys=True) + "\n")
    manifest: Json = {"files": {name: sha256_file(folder / name) for name in (_CONFIG, _WEIGHTS)}}
    manifest |= {"base": base_digest(base), "fused_ranks": written.fused_ranks}
    write_atomic(folder / _MANIFEST, json.dumps(manifest, indent=2) + "\n")


def load_adapter(path: str | os.PathLike[str], config: ModelConfig, params: Mapping[str, jax.Array]) -> Params:
    """The base model `params` with an adapter's leaves; the base's own arrays are the same ones, but for those that the
    adapter has in full.

    A classifier's adapter needs a model with a head for its labels (`add_head`), whose numbers do not count. Raises
    UserError for an adapter of another base (by the digest in the manifest, or by its shapes), an option or a tensor
    that is not supported or unknown, and a file that is damaged, a pickle, or a link out of the folder.
    """
    folder = Path(path)
    if any(kind_of_leaf(name) for name in params):
        raise UserError(f"{folder}: the model has an adapter already: load this one onto the base model")
    manifest = _manifest(folder)
    described = _read_json(folder, _CONFIG)
    if not os.path.lexists(folder / _WEIGHTS):
        if os.path.lexists(folder / _PICKLE):
            raise UserError(f"{folder / _PICKLE} {PICKLE}")
        raise UserError(f"no adapter at {folder}: {_WEIGHTS} is missing")
    if manifest.get("base") not in (None, base_digest(params)):
        raise UserError(
            f"{folder} was made for a base model of digest {str(manifest['base'])[:12]}, this one's is "
            f"{base_digest(params)[:12]}: load its own base, or remove 'base' from {_MANIFEST} to use this one"
        )
    stored = {tensor.name: tensor for tensor in open_file(folder, _WEIGHTS)}
    leaves = read_adapter(config, params, described, stored, manifest.get("fused_ranks", {}), folder)
    return merge(leaves, params)


def base_digest(params: Mapping[str, jax.Array]) -> str:
    """The digest of a base model by which its adapters know it: of all its leaves but those of a head."""
    own = {path: leaf for path, leaf in params.items() if not path.startswith(("head/", "score/"))}
    return digest({path: leaf for path, leaf in own.items() if not kind_of_leaf(path)})


def _manifest(folder: Path) -> Json:
    """The manifest, whose files are as it says; an empty one where there is none, as in a folder that PEFT wrote."""
    if not os.path.lexists(folder / _MANIFEST):
        return {}
    manifest = _read_json(folder, _MANIFEST)
    files, ranks = manifest.get("files"), manifest.get("fused_ranks", {})
    if not isinstance(files, dict) or not isinstance(ranks, dict):
        raise UserError(f"{folder / _MANIFEST} is no manifest of an adapter: remove it, or save the adapter again")
    for name, sha in files.items():
        if name not in (_CONFIG, _WEIGHTS):
            raise UserError(f"{folder / _MANIFEST} names {quoted(name)}: an adapter is {_CONFIG} and {_WEIGHTS}")
        if sha256_file(inside(folder, name)) != sha:
            raise UserError(f"{folder / name} has changed since it was written: {AGAIN}")
    for name, counts in ranks.items():
        if not isinstance(counts, list) or not all(type(count) is int for count in counts):
            raise UserError(f"{folder / _MANIFEST}: the ranks of {quoted(name)} are no list of numbers")
    return manifest


def _read_json(folder: Path, name: str) -> Json:
    place = folder / name
    if not os.path.lexists(place):
        raise UserError(f"no adapter at {folder}: an adapter folder holds {_CONFIG} and {_WEIGHTS}")
    with reading(place), open(inside(folder, name), "rb") as file:
        content = parse_json(place, file.read(_LARGEST_JSON + 1))
    if not isinstance(content, dict):
        raise UserError(f"{place} does not hold a JSON object")
    return content
