"""Masks out of a file: which entries they name, and that no file does harm."""

import io
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from limbeck.model.chosen import choose
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.transformer import init
from limbeck.train.mask_file import entries_of_file
from limbeck.train.masks import random_entries

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=3, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16
)  # fmt: skip
BASE = init(CONFIG, jax.random.key(0))
Q, UP, EMBED, NORM = "blocks/attn/q/kernel", "blocks/mlp/up/kernel", "embed/embedding", "norm/scale"
TARGETS = f"{Q}|{UP}|{EMBED}|{NORM}"


def dense(index, shape):
    """The mask of some entries of a leaf, [L, k] or [k], as booleans of its shape."""
    mask = np.zeros((*index.shape[:-1], int(np.prod(shape)) // (index.shape[0] if index.ndim == 2 else 1)), bool)
    np.put_along_axis(mask, index, True, -1)
    return mask.reshape(shape)


SAVERS = {
    ".npz": lambda path, arrays: np.savez(path, **arrays),
    ".safetensors": lambda path, arrays: save_file(arrays, path),
}


@pytest.mark.parametrize("kind", SAVERS)
def test_masks_out_of_a_file(tmp_path, kind):
    wanted = random_entries(BASE, targets=TARGETS, share=0.1)
    arrays = {
        Q: dense(wanted[Q], BASE[Q].shape),
        UP: wanted[UP][:, ::-1].astype(np.int64).copy(),  # in any order
        EMBED: dense(wanted[EMBED], BASE[EMBED].shape),
        NORM: wanted[NORM].astype(np.uint16),
    }
    path = tmp_path / f"ماسک{kind}"
    SAVERS[kind](path, arrays)
    found = entries_of_file(BASE, path)
    assert found.keys() == wanted.keys()
    for name, index in found.items():
        assert index.dtype == np.int32
        np.testing.assert_array_equal(index, wanted[name])
    choose(BASE, found)


def test_compressed_and_in_fortran_order(tmp_path):
    mask = dense(random_entries(BASE, targets=EMBED, share=0.1)[EMBED], BASE[EMBED].shape)
    np.savez_compressed(tmp_path / "a.npz", **{EMBED: np.asfortranarray(mask)})  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(entries_of_file(BASE, tmp_path / "a.npz")[EMBED], np.flatnonzero(mask))


ragged = np.zeros(BASE[Q].shape, bool)
ragged[0, 0, :2] = ragged[1, 0, :1] = ragged[2, 0, :2] = True


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"norm/scales": np.array([1])}, "'norm/scales' is no parameter of the model; did you mean 'norm/scale'"),
        ({"../../etc/passwd": np.array([1])}, "is no parameter of the model"),
        ({NORM: np.array([1.0, 2.0])}, "is of another kind"),
        ({NORM: np.ones(17, bool)}, r"is a mask of \[17\], the parameter is \[16\]"),
        ({NORM: np.zeros(16, bool)}, "has 0 to 0 entries in a layer"),
        ({NORM: np.array([1, 16])}, "1 to 16, but a layer's leaf has 16"),
        ({NORM: np.array([-1, 2])}, "-1 to 2, but"),
        ({NORM: np.array([2**63], np.uint64)}, "9223372036854775808 to 9223372036854775808, but"),
        ({NORM: np.array([2, 2])}, "list each once"),
        ({NORM: np.arange(17)}, r"is \[17\]: more indices than the parameter has entries"),
        ({NORM: np.array(3)}, "more indices than the parameter has entries, or none"),
        ({Q: np.array([[1], [2]])}, r"is \[2, 1\], asked is \[3, k\]"),
        ({Q: ragged}, "has 1 to 2 entries in a layer: choose as many in every layer"),
        ({}, "holds no arrays"),
    ],
)
def test_a_file_that_fits_no_leaf_is_refused(tmp_path, kind, arrays, words):
    path = tmp_path / f"masks{kind}"
    SAVERS[kind](path, arrays)
    with pytest.raises(UserError, match=words) as told:
        entries_of_file(BASE, path)
    assert "\n" not in str(told.value) and str(path) in str(told.value)


def npz(*members, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.lib.format.write_array(out, array)
    return out.getvalue()


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


HOSTILE = {
    "no archive": (b"\x80\x04K\x01.", "no whole .npz"),
    "empty file": (b"", "no whole .npz"),
    "torn": (npz((f"{NORM}.npy", npy(np.arange(9))))[:-40], "no whole .npz"),
    "objects": (npz((f"{NORM}.npy", npy(np.array([{}], object)))), "is of another kind"),
    "no array": (npz((f"{NORM}.npy", b"cos\nsystem\n(S'true'\ntR.")), "no whole .npz"),
    "shorter than it says": (npz((f"{NORM}.npy", npy(np.arange(9))[:-8])), "no whole .npz"),
    "longer than it says": (npz((f"{NORM}.npy", npy(np.arange(9)) + b"more")), "no whole .npz"),
    "zeros without end": (
        npz((f"{NORM}.npy", header("{'descr': '|i1', 'fortran_order': False, 'shape': (9000000000000,), }"))),
        "more indices than",
    ),
    "less than nothing": (
        npz((f"{NORM}.npy", header("{'descr': '|i1', 'fortran_order': False, 'shape': (-1,), }"))), "no whole .npz",
    ),
    "code in the header": (npz((f"{NORM}.npy", header("__import__('os').abort()"))), "no whole .npz"),
    "nested header": (npz((f"{NORM}.npy", header("(" * 5000))), "no whole .npz"),
    "long header": (npz((f"{NORM}.npy", header(" " * 60000))), "no whole .npz"),
    "twice": (npz((f"{NORM}.npy", npy(np.arange(2))), (NORM, npy(np.arange(3)))), "is there twice"),
    "strange compression": (npz((f"{NORM}.npy", npy(np.arange(2))), compression=zipfile.ZIP_LZMA), "NumPy does not"),
    "long name": (npz(("x\n" * 9000, npy(np.arange(2)))), "is no parameter"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused_in_one_line(tmp_path, case):
    data, words = HOSTILE[case]
    path = tmp_path / "masks.npz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as told:
        entries_of_file(BASE, path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_every_flipped_byte_of_an_archive_is_seen_or_harmless(tmp_path):
    """Nothing but a UserError, and what is read in spite of it is what was written."""
    data = bytearray(npz((f"{NORM}.npy", npy(np.array([1, 3, 5, 9])))))
    path = tmp_path / "masks.npz"
    for place in range(len(data)):
        data[place] ^= 0xFF
        path.write_bytes(data)
        try:
            assert entries_of_file(BASE, path)[NORM].tolist() == [1, 3, 5, 9]
        except UserError as error:
            assert "\n" not in str(error)
        data[place] ^= 0xFF


def test_other_files_are_refused(tmp_path):
    (tmp_path / "masks.safetensors").write_bytes(b"\xff" * 99)
    with pytest.raises(UserError, match="no whole .safetensors file"):
        entries_of_file(BASE, tmp_path / "masks.safetensors")
    with pytest.raises(UserError, match="masks are read from .npz or .safetensors"):
        entries_of_file(BASE, tmp_path / "masks.pt")
    for name in ("none.npz", "none.safetensors"):
        with pytest.raises(UserError, match="cannot read .*No such file"):
            entries_of_file(BASE, tmp_path / name)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match="cannot read .*directory"):
        entries_of_file(BASE, tmp_path / "folder.npz")
