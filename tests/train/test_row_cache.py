"""Cached rows are those that were made: by whomever, once, and whatever happens to the files or to who writes them."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer
from limbeck.model.tokenizer.files import Parts
from limbeck.train.data import Rows, batches, pack, pad
from limbeck.train.examples import chunked, documents
from limbeck.train.row_cache import cached, rows_key

TOKENIZER = byte_tokenizer()
TEXTS = ["درخت انار", "a tree", "یک گل\u200cفروش", ""] * 6


def made(length: int = 16) -> Rows:
    return pack(chunked(documents(TEXTS, TOKENIZER), length), length)


def unasked() -> Rows:
    raise AssertionError("the rows were there")


def assert_same(got: Rows, expected: Rows) -> None:
    assert len(got.groups) == len(expected.groups) and got.skipped == expected.skipped
    assert got.names_E.tolist() == expected.names_E.tolist()
    for group, other in zip(got.groups, expected.groups, strict=True):
        assert group.keys() == other.keys()
        for name, array in group.items():
            assert array.dtype == other[name].dtype and np.array_equal(array, other[name])


def test_rows_come_back_the_same_and_are_mapped(tmp_path):
    examples = documents(TEXTS, TOKENIZER)
    for key, make in {
        "packed": made,
        "padded": lambda: pad(examples, [4, 8, 40]),
        "skipped": lambda: pack(examples, 8, "skip"),
        "empty": lambda: pack([], 8),
    }.items():
        assert_same(cached(tmp_path / "rows", key, make), make())
        again = cached(tmp_path / "rows", key, unasked)
        assert_same(again, make())
        arrays = [np.asarray(array) for group in again.groups for array in group.values()]
        assert not any(array.flags.writeable or array.flags.owndata for array in arrays)
    stream = batches(cached(tmp_path / "rows", "packed", unasked), 4, 0)
    own = batches(made(), 4, 0)
    assert all(np.array_equal(stream(3)[name], own(3)[name]) for name in own(3))
    assert all(np.asarray(array).flags.writeable for array in stream(3).values())
    assert not [path for path in (tmp_path / "rows").iterdir() if path.suffix in (".partial", ".old")]


def test_the_key_hangs_on_everything():
    def key(kind="documents", tokenizer=TOKENIZER, length=8, texts=("ab", "c")):
        return rows_key(kind, tokenizer, {"length": length}, texts)

    plain = TOKENIZER
    template = Tokenizer(Parts(plain._fast, dict(plain.tokens), plain.bos_id, plain.stop_ids, "{{ x }}"))
    keys = [
        key(),
        key("completions"),
        key(tokenizer=template),
        key(length=9),
        key(texts=("a", "bc")),
        key(texts=("ab", "c", "")),
        key(texts=("ab", "ç")),
        key(texts=("c", "ab")),
    ]
    assert len(set(keys)) == len(keys) and key(texts=iter(["ab", "c"])) == key()
    assert all(Path(name).name == name for name in keys)


FILES = ["manifest.json", "rows.json", "names_E.npy", "0.tokens_BT.npy", "0.segments_BT.npy", "0.weights_BT.npy"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_seen_and_the_rows_are_made_again(tmp_path, capsys, name):
    cached(tmp_path, "key", made)
    path = tmp_path / "key" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole) * 8, 12):
        spoilt = bytearray(whole)
        spoilt[place // 8] ^= 1 << (place % 8)
        path.write_bytes(spoilt)
        asked = []
        rows = cached(tmp_path, "key", lambda asked=asked: asked.append(1) or made())
        said = capsys.readouterr().err
        assert_same(rows, made())
        assert len(asked) == said.count("are damaged (") and said.count("\n") == len(asked)
        if name != "manifest.json":  # there a bit may turn white space into other white space
            assert asked and name in said
        path.write_bytes(whole)
    assert_same(cached(tmp_path, "key", unasked), made())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["missing", "torn", "empty"])
def test_a_file_that_is_not_whole(tmp_path, capsys, name, fault):
    cached(tmp_path, "key", made)
    path = tmp_path / "key" / name
    data = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(data[: len(data) // 2] if fault == "torn" else b"")
    assert_same(cached(tmp_path, "key", made), made())
    assert name in capsys.readouterr().err
    cached(tmp_path, "key", unasked)


@pytest.mark.parametrize(
    "manifest", ['{"..": "x"}', '{"": "x"}', '{"../other/a.npy": "x"}', "[]", "7", '{"a\\u0000": ""}']
)
def test_a_manifest_that_names_what_it_should_not(tmp_path, manifest):
    cached(tmp_path, "key", made)
    (tmp_path / "key" / "manifest.json").write_text(manifest)
    assert_same(cached(tmp_path, "key", made), made())


_MAKER = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
import limbeck.train.row_cache as row_cache
from limbeck.train.data import pack
from limbeck.train.examples import example

folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

def make():
    with open(folder / "made.txt", "a") as file:
        file.write("x")
    if not kill_at:
        time.sleep(0.5)
    return pack([example([n] * 5, 1, f"row {n}") for n in range(30)], 12)

if kill_at:
    for name in ("open", "mkdir", "rename", "replace", "fsync", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    row_cache.sha256_file = counted(row_cache.sha256_file)
for line in sys.stdin if not kill_at else "x":
    rows = row_cache.cached(folder / "rows", "key", make)
    print(int(rows.groups[0]["tokens_BT"].sum()), calls, flush=True)
"""
_SUM = 4 * sum(range(30))


def maker(folder: Path, kill_at: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _MAKER, str(folder), str(kill_at)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_at_once_one_makes_the_rows(tmp_path):
    both = [maker(tmp_path) for _ in range(2)]
    for process in both:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=60) for process in both]
    assert [out.split()[0] for out, _ in outcomes] == [str(_SUM)] * 2, outcomes
    assert (tmp_path / "made.txt").read_text() == "x"


def test_killed_at_any_call_the_next_makes_the_rows_and_leaves_nothing_behind(tmp_path):
    process = maker(tmp_path / "whole", 10**6)
    (tmp_path / "whole").mkdir()
    calls = int(process.communicate()[0].split()[1])
    assert calls > 20
    kills = sorted({1 + index * (calls - 1) // 7 for index in range(8)})
    killed = {kill_at: tmp_path / str(kill_at) for kill_at in kills}
    for folder in killed.values():
        folder.mkdir()
    for kill_at, folder in killed.items():
        process = maker(folder, kill_at)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        rows = cached(folder / "rows", "key", made)
        assert rows.groups[0]["tokens_BT"].sum() in (_SUM, made().groups[0]["tokens_BT"].sum())
        assert sorted(path.name for path in (folder / "rows").iterdir()) == [".key.lock", "key"]
    assert any("x" in (folder / "made.txt").read_text() for folder in killed.values() if (folder / "made.txt").exists())


def test_killed_between_the_two_renames(tmp_path, capsys):
    cached(tmp_path, "key", made)
    shutil.copytree(tmp_path / "key", tmp_path / ".key.partial")
    (tmp_path / "key").rename(tmp_path / ".key.old")
    assert_same(cached(tmp_path, "key", made), made())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".key.lock", "key"]
    assert capsys.readouterr().err == ""


def test_where_nothing_can_be_written_that_is_said_before_the_work(tmp_path, monkeypatch):
    cached(tmp_path, "there", made)
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="read-only; choose another folder") as error:
        cached(tmp_path, "key", unasked)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert_same(cached(tmp_path, "there", unasked), made())  # what is there can be read
    with pytest.raises(UserError, match="is a file"):
        cached(tmp_path / "there" / "rows.json", "key", unasked)


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_disk_is_said_and_nothing_is_left(small_disk):
    with pytest.raises(UserError, match="the disk is full"):
        cached(small_disk, "key", lambda: pad(documents(["x" * 9] * 2000, TOKENIZER), [10]))
    assert [path.name for path in small_disk.iterdir()] == [".key.lock"]
    assert_same(cached(small_disk, "small", made), made())


def test_a_bad_row_leaves_no_entry_and_no_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="text 1: .* tokens, where a row holds 4"):
            cached(tmp_path, "key", lambda: pack(documents(TEXTS, TOKENIZER), 4))
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]
    assert_same(cached(tmp_path, "key", made), made())
    assert json.loads((tmp_path / "key" / "rows.json").read_text())["skipped"] == []
