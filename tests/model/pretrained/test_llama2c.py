"""A llama2.c file is its header's arrays in order, or is refused before anything is allocated."""

import struct

import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.model.pretrained.llama2c import read_llama2c

HEADER = {"dim": 8, "hidden": 6, "layers": 3, "heads": 4, "kv_heads": 2, "vocab": 5, "max_len": 7}
SHAPES = {  # written out, in the order of the file
    "token_embedding_table": (5, 8),
    "rms_att_weight": (3, 8),
    "wq": (3, 8, 8),
    "wk": (3, 4, 8),
    "wv": (3, 4, 8),
    "wo": (3, 8, 8),
    "rms_ffn_weight": (3, 8),
    "w1": (3, 6, 8),
    "w2": (3, 8, 6),
    "w3": (3, 6, 8),
    "rms_final_weight": (8,),
    "freq_cis_real": (7, 1),
    "freq_cis_imag": (7, 1),
    "wcls": (5, 8),
}
ARRAYS = {name: np.random.default_rng(len(name)).random(shape, np.float32) for name, shape in SHAPES.items()}


def write(path, header=HEADER, untied=False, **changes):
    values = {**header, **changes}
    arrays = list(ARRAYS.values()) if untied else list(ARRAYS.values())[:-1]
    path.write_bytes(struct.pack("<7i", *values.values()) + b"".join(array.tobytes() for array in arrays))
    return path


@pytest.mark.parametrize("untied", [False, True])
def test_a_file_is_its_header_s_arrays_in_order(tmp_path, untied):
    header, arrays = read_llama2c(write(tmp_path / "m.bin", untied=untied, vocab=-5 if untied else 5))
    assert header == HEADER
    assert list(arrays) == list(SHAPES)[: None if untied else -1]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert not array.flags.writeable and not array.flags.owndata  # a view of the mapped file


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dim": 0}, "dim=0"),
        ({"layers": -3}, "layers=-3"),
        ({"vocab": 0}, "vocab=0"),
        ({"heads": 3}, "heads=3, which does not divide dim=8"),
        ({"kv_heads": 3}, "kv_heads=3, which does not divide heads=4"),
        ({"heads": 8, "kv_heads": 8}, "odd width"),
        ({"vocab": -5}, "calls for"),
        ({"vocab": 6}, "calls for"),
        ({"max_len": 6}, "calls for"),
        ({"layers": 2**31 - 1, "hidden": 2**31 - 1, "vocab": -(2**31)}, "calls for"),
        ({"dim": 0x616B3432}, "later version: export it again with --version 0"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=f"m.bin.*{words}"):
        read_llama2c(write(tmp_path / "m.bin", **changes))


def test_a_file_cut_anywhere_or_with_more_is_refused(tmp_path):
    whole = write(tmp_path / "m.bin").read_bytes()
    for size in [*range(0, len(whole), 7), len(whole) - 1, len(whole) + 1]:
        (tmp_path / "m.bin").write_bytes((whole + b"\0")[:size])
        with pytest.raises(UserError, match="m.bin (is too short|has)"):
            read_llama2c(tmp_path / "m.bin")


def test_what_is_no_such_file_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere.bin"):
        with pytest.raises(UserError, match="is not a file"):
            read_llama2c(place)
    for start in (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc"):
        (tmp_path / "m.bin").write_bytes(start + bytes(100))
        with pytest.raises(UserError, match="m.bin is a pickle"):
            read_llama2c(tmp_path / "m.bin")


@pytest.mark.shared
def test_a_real_one_has_the_angles_of_its_positions(shared_data):
    """What lies behind all kernels is where it is expected, so everything before it is too."""
    header, arrays = read_llama2c(shared_data / "stories260k" / "stories260K.bin")
    assert header == dict(zip(HEADER, (64, 172, 5, 8, 4, 512, 512), strict=True))
    angles = np.outer(np.arange(512), 1e4 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(arrays["freq_cis_real"], np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(arrays["freq_cis_imag"], np.sin(angles), atol=1e-5)
    assert "wcls" not in arrays
