"""A part of a stored tensor is the part of the whole, is read alone, and takes no memory besides."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import limbeck.model.pretrained.stored_tensor as stored_tensor
from limbeck.model.errors import UserError
from limbeck.model.pretrained.weight_files import SINGLE, Unsaved, open_weights, save_weights

ARRAY = np.random.default_rng(0).integers(0, 2**32, (16, 32, 12), np.uint32).view(np.float32)


def save(folder, arrays):
    save_weights(folder, [Unsaved(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()])


def same_bits(found, expected):
    assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@given(st.data())
def test_a_part_is_the_part_of_the_whole(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))
    kind = data.draw(st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float16]))
    array = np.arange(np.prod(shape, dtype=int)).astype(kind).reshape(shape)
    axes = [st.slices(size).filter(lambda s: s.step in (None, 1)) for size in shape]
    axes = [axis | st.integers(-size, size - 1) if size else axis for axis, size in zip(axes, shape, strict=True)]
    index = tuple(data.draw(axis) for axis in axes[: data.draw(st.integers(0, len(shape)))])
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), {"before": np.ones(3, np.float16), "w": array, "after": np.ones(4, np.float32)})
        stored = open_weights(Path(folder))["w"]
        part = stored[index]
        same_bits(part, np.asarray(array[index]))
        assert part.flags.writeable and part.flags.c_contiguous and (part.ctypes.data % 64 == 0 or not part.size)
        if len(index) == 1:
            same_bits(stored[index[0]], np.asarray(array[index]))


@pytest.mark.parametrize("index", [np.s_[::2], np.s_[::-1], np.s_[16], np.s_[-17], np.s_[0, 0, 0, 0]])
def test_an_index_that_numpy_refuses_or_that_has_a_step_is_refused(tmp_path, index):
    save(tmp_path, {"w": ARRAY})
    with pytest.raises((IndexError, ValueError)):
        open_weights(tmp_path)["w"][index]


class Counting:
    """A file that notes how much is read of it, and gives at most 1,000 bytes at once."""

    def __init__(self, file, read):
        self.file, self.read, self.seek = file, read, file.seek

    def readinto(self, buffer):
        self.read.append(self.file.readinto(buffer[:1000]))
        return self.read[-1]


@pytest.mark.parametrize("index", [np.s_[3:5], np.s_[:, 4:6], np.s_[:, :, 1], np.s_[9, 3, 2], np.s_[2:9, :, 3:], ()])
def test_a_part_is_read_alone(tmp_path, monkeypatch, index):
    save(tmp_path, {"w": ARRAY})
    fill: Any = stored_tensor._fill
    read = []
    monkeypatch.setattr(stored_tensor, "_fill", lambda out, file, *rest: fill(out, Counting(file, read), *rest))
    same_bits(open_weights(tmp_path)["w"][index], np.asarray(ARRAY[index]))
    assert sum(read) == ARRAY[index].nbytes


def test_a_file_that_ends_while_it_is_read_is_said(tmp_path, monkeypatch):
    save(tmp_path, {"w": ARRAY})
    stored = open_weights(tmp_path)["w"]
    os.truncate(tmp_path / SINGLE, 5000)
    monkeypatch.setattr(stored_tensor, "stamp", lambda file: stored.stamp)
    with pytest.raises(UserError, match=f"{SINGLE} ends within 'w'"):
        stored.read()


def test_a_file_that_changes_after_it_was_opened_is_refused(tmp_path):
    save(tmp_path, {"w": ARRAY})
    stored = open_weights(tmp_path)["w"]
    os.truncate(tmp_path / SINGLE, (tmp_path / SINGLE).stat().st_size - 4)
    with pytest.raises(UserError, match=f"{SINGLE} has changed since it was opened"):
        stored.read()
    save(tmp_path, {"w": ARRAY[::-1]})
    with pytest.raises(UserError, match=f"{SINGLE} has changed since it was opened"):
        stored.read()
    (tmp_path / SINGLE).unlink()
    with pytest.raises(UserError, match=f"cannot read .*{SINGLE}"):
        stored.read()


def test_buffers_that_are_no_weights_are_listed_and_not_read(tmp_path):
    arrays = {"h.0.attn.bias": np.tril(np.ones((4, 4), bool)), "ids": np.arange(3), "w": np.ones(2, np.float32)}
    arrays |= {"double": np.zeros(2), "eight": np.zeros(3, np.uint8)}
    safetensors.numpy.save_file(arrays, tmp_path / SINGLE)
    stored = open_weights(tmp_path)
    assert stored.keys() == arrays.keys()
    same_bits(stored["w"].read(), arrays["w"])
    for name in arrays.keys() - {"w"}:
        assert (stored[name].shape, stored[name].dtype) == (arrays[name].shape, arrays[name].dtype)
        with pytest.raises(UserError, match=rf"{name}.* is {arrays[name].dtype}, weights are float32, bfloat16"):
            stored[name].read()


PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from typing import Any
from limbeck.model.pretrained.weight_files import Unsaved, open_weights, save_weights

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
"""


@pytest.fixture
def memory():
    """A folder in memory where there is one: hundreds of megabytes go through it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


def run(program, *arguments):
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the peak from /proc")
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2] / "typings"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", PROGRAM + program, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("parts", [1, 4])
def test_loading_takes_the_memory_of_the_weights_and_no_more(memory, parts):
    """400 MB of leaves that are all kept; whole, and by columns as the shards of a device are."""
    rows, columns, count = 5_000, 2_500, 8
    size = 4 * rows * columns
    header = {
        str(i): {"dtype": "F32", "shape": [rows, columns], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    text = json.dumps(header).encode()
    (memory / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(memory / SINGLE, 8 + len(text) + count * size)  # zeros that take no room
    load = """
parts, before, leaves = int(sys.argv[2]), peak(), []
for tensor in open_weights(sys.argv[1]).values():
    width = tensor.shape[1] // parts
    leaves += [tensor[:, i * width : (i + 1) * width] for i in range(parts)]
assert sum(leaf.nbytes for leaf in leaves) == 400_000_000
print((peak() - before) / 400_000_000)
"""
    assert 0.95 < run(load, memory, parts) < 1.05


def test_saving_holds_one_tensor_at_a_time(memory):
    store = """
before, shape = peak(), (4_000_000,)
tensors = [Unsaved(str(i), shape, np.dtype(np.float32), lambda: np.ones(shape, np.float32)) for i in range(8)]
save_weights(Path(sys.argv[1]), tensors, 40_000_000)
print((peak() - before) / 16_000_000)
"""
    assert 0.9 < run(store, memory) < 1.3
