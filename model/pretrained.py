"""Models on disk: a folder with config.json, model.safetensors, tokenizer.json and a manifest of their digests."""

import dataclasses
import json
import os
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import safetensors.numpy

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, nearest
from limbeck.model.files import disk_errors, sha256_file, write_atomic
from limbeck.model.params import Params, join
from limbeck.model.tokenizer import Tokenizer, load_tokenizer
from limbeck.model.transformer import shapes

_WEIGHTS, _CONFIG, _TOKENIZER, _MANIFEST = "model.safetensors", "config.json", "tokenizer.json", "manifest.json"


class Pretrained(NamedTuple):
    """A model as it comes from disk; `tokenizer` is None where the folder has none."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None


def save_pretrained(
    path: str | os.PathLike[str], config: ModelConfig, params: Params, tokenizer: Tokenizer | None = None
) -> None:
    """Writes a model folder; the manifest comes last: a folder with one is whole. Raises UserError on a full disk."""
    folder = Path(path)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
    arrays = {name: jnp.asarray(leaf).__array__() for name, leaf in join(params).items()}
    write_atomic(folder / _WEIGHTS, safetensors.numpy.save(arrays))
    write_atomic(folder / _CONFIG, json.dumps({"limbeck": 1, **dataclasses.asdict(config)}, indent=1))
    names = [_WEIGHTS, _CONFIG]
    if tokenizer is not None:
        tokenizer.save(folder / _TOKENIZER)
        names.append(_TOKENIZER)
    write_atomic(folder / _MANIFEST, json.dumps({name: sha256_file(folder / name) for name in names}, indent=1))


def load_pretrained(path: str | os.PathLike[str]) -> Pretrained:
    """Reads a model folder and checks every file against the manifest.

    Raises UserError for a folder that is no model or was only half written, a file that has changed, a config
    with unknown fields, and weights that are not those of the config.
    """
    folder = Path(path)
    if not (folder / _CONFIG).is_file():
        raise UserError(f"no model at {folder}: a model folder holds {_CONFIG}, {_WEIGHTS} and {_TOKENIZER}")
    if not (folder / _MANIFEST).is_file():
        raise UserError(f"{folder} has no {_MANIFEST}: it was not written to its end; write the model again")
    for name, sha in _json(folder / _MANIFEST).items():
        if name not in (_WEIGHTS, _CONFIG, _TOKENIZER):
            raise UserError(f"{folder / _MANIFEST} names {name!r}: a model folder holds no such file")
        if not (folder / name).is_file() or sha256_file(folder / name) != sha:
            raise UserError(f"{folder / name} is missing or has changed since it was written: copy or write it again")
    fields = _json(folder / _CONFIG)
    if fields.pop("limbeck", None) != 1:
        raise UserError(f"{folder / _CONFIG} is not a Limbeck model's config: other formats are not read yet")
    legal = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in fields:
        if name not in legal:
            raise UserError(f"{folder / _CONFIG} has the unknown field {name!r}{nearest(name, legal)}")
    config = ModelConfig(**fields)
    params = {name: jnp.asarray(array) for name, array in safetensors.numpy.load_file(folder / _WEIGHTS).items()}
    check_params(config, params, folder)
    tokenizer = load_tokenizer(folder / _TOKENIZER) if (folder / _TOKENIZER).is_file() else None
    return Pretrained(config, params, tokenizer)


def check_params(config: ModelConfig, params: Params, place: object) -> None:
    """Raises UserError unless the parameters are those of the config; low-rank leaves may come on top."""
    expected = shapes(config)
    for name, leaf in expected.items():
        if name not in params:
            raise UserError(f"{place}: the parameter {name} is missing{nearest(name, params)}")
        if params[name].shape != leaf.shape:
            raise UserError(f"{place}: {name} has shape {params[name].shape}, the config says {leaf.shape}")
    for name in params.keys() - expected.keys():
        if "/lora_" not in name:
            raise UserError(f"{place}: surplus parameter {name}{nearest(name, expected)}")


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content
