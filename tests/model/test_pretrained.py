"""A model folder gives back what was put in, or says what is wrong with it."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.files import sha256_file
from limbeck.model.params import cut
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.tokenizer import train_bpe
from limbeck.model.transformer import init

TOKENIZER = train_bpe(["plum: drupe", "گلابی"], 280)
CONFIG = ModelConfig(
    vocab_size=280, width=8, depth=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=16, norm="layer"
)
PARAMS = init(CONFIG, jax.random.key(0))


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path / "m", CONFIG, cut(PARAMS, [1]), TOKENIZER)
    return tmp_path / "m"


def rewrite(folder, name, change):
    """Changes a file and its manifest with it, so that the check behind the manifest is what is tested."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = sha256_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_folder_gives_back_what_was_put_in(folder):
    model = load_pretrained(folder)
    assert model.config == CONFIG
    assert model.params.keys() == PARAMS.keys()
    for path, leaf in PARAMS.items():
        np.testing.assert_array_equal(model.params[path], leaf)
    assert model.tokenizer is not None and model.tokenizer.digest == TOKENIZER.digest


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is missing or has changed"):
        load_pretrained(folder)


def test_a_half_written_folder_and_no_folder_are_refused(folder, tmp_path):
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="not written to its end"):
        load_pretrained(folder)
    with pytest.raises(UserError, match="no model at"):
        load_pretrained(tmp_path / "nowhere")


def test_a_manifest_cannot_lead_out_of_the_folder(folder):
    (folder / "manifest.json").write_text(json.dumps({"../secret": "0"}))
    with pytest.raises(UserError, match="names '../secret'"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: {**p, "norm/scales": p["norm/scale"]}, "surplus parameter norm/scales; did you mean 'norm/scale'"),
        (lambda p: {k: v for k, v in p.items() if k != "norm/bias"}, "norm/bias is missing"),
        (lambda p: {**p, "norm/bias": p["norm/bias"][:3]}, r"norm/bias has shape \(3,\)"),
    ],
)
def test_weights_that_are_not_the_config_s_are_refused(folder, change, words):
    rewrite(folder, "model.safetensors", lambda data: safetensors.numpy.save(change(safetensors.numpy.load(data))))
    with pytest.raises(UserError, match=words):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda data: data.replace(b'"width"', b'"widht"'), "unknown field 'widht'; did you mean 'width'"),
        (lambda data: data.replace(b'"limbeck": 1', b'"limbeck": 9'), "not a Limbeck model's config"),
        (lambda data: data[:-4], "cannot be read"),
        (lambda data: b"[]", "does not hold a JSON object"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(folder, change, words):
    rewrite(folder, "config.json", change)
    with pytest.raises(UserError, match=words):
        load_pretrained(folder)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file"):
        save_pretrained(tmp_path / "file" / "m", CONFIG, PARAMS)
