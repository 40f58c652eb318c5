"""Weights come back from a folder bit by bit, whatever happened while they were written."""

import errno
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

from limbeck.model.errors import UserError
from limbeck.model.pretrained.weight_files import INDEX, SINGLE, Unsaved, open_weights, save_weights

RNG = np.random.default_rng(0)


def any_bits(shape, kind: Any = np.float32):
    """Every bit pattern there is, signalling NaNs among them: a read that converts does not keep them all."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return RNG.integers(0, 256, size, np.uint8).view(kind).reshape(shape)


TENSORS = {
    "embed.weight": any_bits((7, 5)),
    "گلابی.norm": any_bits((), ml_dtypes.bfloat16),
    "layer.0.w": any_bits((3, 4, 2), ml_dtypes.bfloat16),
    "layer.1.w": any_bits((3,), np.float16),
    "empty": any_bits((0, 4)),
    "head": any_bits((2, 3, 1, 4)),
}


def save(folder, arrays=TENSORS, **options):
    return save_weights(folder, [Unsaved(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()], **options)


def same_bits(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def assert_holds(folder, arrays=TENSORS):
    stored = open_weights(folder)
    assert stored.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (stored[name].shape, stored[name].dtype, stored[name].nbytes) == (array.shape, array.dtype, array.nbytes)
        same_bits(stored[name].read(), array)


def shard_names(count):
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def test_one_file_keeps_every_bit(tmp_path):
    assert save(tmp_path) == [SINGLE]
    assert_holds(tmp_path)
    for name, array in safetensors.numpy.load_file(tmp_path / SINGLE).items():
        same_bits(array, TENSORS[name])
    with safetensors.safe_open(tmp_path / SINGLE, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_keep_every_bit(tmp_path):
    names = save(tmp_path, max_shard_bytes=100)
    assert names == [*shard_names(3), INDEX]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert_holds(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in TENSORS.values())
    for name, shard in index["weight_map"].items():
        with safetensors.safe_open(tmp_path / shard, "np") as file:
            same_bits(file.get_tensor(name), TENSORS[name])


def test_the_order_of_the_tensors_is_kept(tmp_path):
    save(tmp_path / "one", {name: array.astype(np.float32) for name, array in TENSORS.items()})
    save(tmp_path / "many", max_shard_bytes=100)
    assert list(open_weights(tmp_path / "one")) == list(open_weights(tmp_path / "many")) == list(TENSORS)


def test_files_of_the_library_are_read(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / SINGLE)
    assert_holds(tmp_path)


def test_a_shard_holds_at_most_what_it_may_and_at_least_one_tensor(tmp_path):
    arrays = {str(size): any_bits((size,)) for size in (1, 2, 30, 1, 1, 1, 4)}
    names = save(tmp_path, arrays, max_shard_bytes=16)
    assert_holds(tmp_path, arrays)
    for name in names[:-1]:
        with safetensors.safe_open(tmp_path / name, "np") as file:
            sizes = [file.get_tensor(key).nbytes for key in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 16 or len(sizes) == 1


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    save(tmp_path / "a", max_shard_bytes=100)
    save(tmp_path / "b", max_shard_bytes=100)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_tensor_starts_at_a_multiple_of_its_size(tmp_path):
    save(tmp_path, {"half": any_bits((3,), np.float16), "single": any_bits((3,))})
    assert all(tensor.offset % tensor.dtype.itemsize == 0 for tensor in open_weights(tmp_path).values())


def test_strided_arrays_are_written_in_order(tmp_path):
    array = any_bits((4, 6))
    save(tmp_path, {"w": array.T, "v": array[::2, ::-1]})
    stored = open_weights(tmp_path)
    same_bits(stored["w"].read(), np.ascontiguousarray(array.T))
    same_bits(stored["v"].read(), np.ascontiguousarray(array[::2, ::-1]))


@pytest.mark.parametrize("before", [10**9, 100, 60])
@pytest.mark.parametrize("after", [10**9, 100, 60])
def test_a_later_save_leaves_nothing_of_the_earlier(tmp_path, before, after):
    save(tmp_path, max_shard_bytes=before)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".model.safetensors.killed.new").write_text("")
    changed = {name: array.astype(np.float32) for name, array in TENSORS.items() if array.size}
    names = save(tmp_path, changed, max_shard_bytes=after)
    assert_holds(tmp_path, changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "config.json"])


def test_what_is_no_weight_is_not_written(tmp_path):
    with pytest.raises(UserError, match="ids is int64, weights are written as float32, bfloat16, float16"):
        save(tmp_path, {"ids": np.arange(3)})
    for wrong in (np.zeros(3, np.float32), np.zeros(2, np.float16)):
        with pytest.raises(ValueError, match="w was to be"):
            save_weights(tmp_path, [Unsaved("w", (2,), np.dtype(np.float32), lambda wrong=wrong: wrong)])
    with pytest.raises(ValueError, match="two tensors of one name"):
        save_weights(tmp_path, [Unsaved("w", (2,), np.dtype(np.float32), lambda: np.zeros(2, np.float32))] * 2)
    with pytest.raises(ValueError, match="cannot be a tensor's name"):
        save(tmp_path, {"__metadata__": any_bits((2,))})
    assert list(tmp_path.iterdir()) == []


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("before", [10**9, 100])
@pytest.mark.parametrize("after, call", [(10**9, 0), (100, 0), (100, 1), (100, 2), (100, 3)])
def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch, before, after, call):
    """A disk says that it is full when a file is written, or not before it is synced."""
    save(tmp_path, max_shard_bytes=before)
    files = sorted(path.name for path in tmp_path.iterdir())
    changed = {name: any_bits(array.shape, array.dtype) for name, array in TENSORS.items()}
    calls = iter([os.fsync] * call + [disk_full] * 99)
    monkeypatch.setattr(os, "fsync", lambda handle: next(calls)(handle))
    with pytest.raises(UserError, match="cannot write .*the disk is full"):
        save(tmp_path, changed, max_shard_bytes=after)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert_holds(tmp_path)


PROGRAM = """
import os, sys
import numpy as np
from pathlib import Path
from typing import Any
from limbeck.model.errors import UserError
from limbeck.model.pretrained.weight_files import Unsaved, open_weights, save_weights

def save(folder, value, limit, made=lambda: None):
    def make(shape):
        made()
        return np.full(shape, value, np.float32)
    tensors = [Unsaved(name, shape, np.dtype(np.float32), lambda shape=shape: make(shape))
               for name, shape in (("a", (64, 4)), ("b", (128,)), ("c", (5,)))]
    save_weights(folder, tensors, limit)

def values(folder):
    return {float(x) for tensor in open_weights(folder).values() for x in tensor.read().ravel()}
"""


def run(program, *arguments, wrapped=()):
    typings = Path(__file__).resolve().parents[2] / "typings"
    path = os.pathsep.join(filter(None, [str(typings), os.environ.get("PYTHONPATH")]))
    command = [*wrapped, sys.executable, "-c", PROGRAM + program, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


def test_a_full_file_system_leaves_the_old_weights(tmp_path):
    """The real thing, on a file system of 64 KiB."""
    inside = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"', "sh"]
    try:
        able = subprocess.run([*inside, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("no file system can be mounted here")
    full = """
folder = Path(sys.argv[1]) / "m"
for before, after in ((10**9, 10**9), (1100, 1100), (10**9, 1100), (1100, 10**9)):
    save(folder, 1, before)
    files = sorted(os.listdir(folder))
    big = [Unsaved(str(i), (4096,), np.dtype(np.float32), lambda: np.zeros(4096, np.float32)) for i in range(5)]
    try:
        save_weights(folder, big, after * 20)
    except UserError as error:
        assert "the disk is full" in str(error) and str(folder) in str(error)
    else:
        raise AssertionError("it fitted")
    assert sorted(os.listdir(folder)) == files and values(folder) == {1}
print("whole")
"""
    done = run(full, tmp_path, wrapped=inside)
    assert done.stdout == "whole\n", done.stderr


@pytest.fixture
def memory():
    """A folder in memory where there is one: each of a hundred saves waits for its disk several times."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield folder


def test_a_kill_at_any_step_leaves_the_old_the_new_or_a_refusal(memory):
    """Each child is killed one step later: before a file is opened, renamed or removed, or while a tensor is made."""
    killed = """
import shutil, signal
seen, steps = set(), 0
for before in (10**9, 1100, 200):
    for after in (10**9, 1100, 200):
        for step in range(1, 99):
            folder = Path(sys.argv[1]) / f"{before}-{after}-{step}"
            save(folder, 1, before)
            if (child := os.fork()) == 0:
                left = step
                def count(event="made", arguments=()):
                    global left
                    if event in ("open", "os.rename", "os.remove", "made"):
                        left -= 1
                        if left == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                sys.addaudithook(count)
                save(folder, 2, after, count)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            try:
                found = values(folder)
                assert found in ({1}, {2}), (folder, found)
                seen |= found
            except UserError as error:
                assert str(folder) in str(error)
                seen.add("refused")
            save(folder, 3, after)
            assert values(folder) == {3} and not [n for n in os.listdir(folder) if n.startswith(".")]
            shutil.rmtree(folder)
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            steps += 1
print(sorted(map(str, seen)), steps)
"""
    done = run(killed, memory)
    assert done.stdout.startswith("['1.0', '2.0', 'refused']"), done.stderr + done.stdout
    assert int(done.stdout.split()[-1]) > 80
