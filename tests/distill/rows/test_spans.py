"""Spans of rows are made once, by whomever, and whatever happens to the files or to who writes them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from limbeck.distill.rows import spans
from limbeck.distill.rows.spans import Sheet, kept
from limbeck.model.errors import UserError

SHEETS = [
    Sheet(13, {"a": ((3, 2), np.dtype(np.uint8)), "b": ((), np.dtype(np.float16))}),
    Sheet(4, {"a": ((5,), np.dtype(np.int32))}),
]


def expected(number: int, name: str) -> np.ndarray:
    shape, dtype = SHEETS[number].arrays[name]
    shape = (SHEETS[number].rows, *shape)
    return (np.arange(np.prod(shape)).reshape(shape) % 100 + number).astype(dtype)


class Maker:
    """Makes what is expected, and remembers which rows; raises before the span after `last`."""

    def __init__(self, last: int | None = None):
        self.made, self.last = [], last

    def __call__(self, number, start, stop, advance):
        if len(self.made) == self.last:
            raise KeyboardInterrupt
        self.made.append((number, start, stop))
        advance(stop - start)
        return {name: expected(number, name)[start:stop] for name in SHEETS[number].arrays}


def check(arrays: list[dict[str, np.ndarray]]) -> None:
    for number, sheet in enumerate(SHEETS):
        assert arrays[number].keys() == sheet.arrays.keys()
        for name, array in arrays[number].items():
            np.testing.assert_array_equal(array, expected(number, name))
            assert array.dtype == sheet.arrays[name][1] and not array.flags.writeable and not array.flags.owndata


def files(entry: Path) -> list[str]:
    return sorted(path.name for path in entry.iterdir())


@pytest.fixture(autouse=True)
def small_spans(monkeypatch):
    monkeypatch.setattr(spans, "_SPAN_BYTES", 8 * 5)  # five of the first sheet's rows


def test_made_once_in_spans_of_whole_batches_and_mapped(tmp_path):
    make = Maker()
    check(kept(tmp_path / "entry", SHEETS, make, 2, "it"))
    assert make.made == [(0, 0, 4), (0, 4, 8), (0, 8, 12), (0, 12, 13), (1, 0, 2), (1, 2, 4)]
    for batch_size in (1, 2, 100):
        check(kept(tmp_path / "entry", SHEETS, Maker(last=0), batch_size, "it"))
    assert files(tmp_path) == [".entry.lock", "entry"]
    assert len(files(tmp_path / "entry")) == 3 + 6
    assert kept(tmp_path / "none", [], Maker(last=0), 2, "it") == []


@pytest.mark.parametrize("last", range(6))
def test_a_run_that_ends_early_is_gone_on_with_at_any_batch_size(tmp_path, last):
    first, second = Maker(last), Maker()
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "entry", SHEETS, first, 2, "it")
    check(kept(tmp_path / "entry", SHEETS, second, 3, "it"))
    rows = [(number, row) for number, start, stop in first.made + second.made for row in range(start, stop)]
    assert sorted(rows) == [(number, row) for number, sheet in enumerate(SHEETS) for row in range(sheet.rows)]


@pytest.mark.parametrize("name", ["0.a", "0.b", "1.a", "0.4-8.json", "1.0-2.json"])
@pytest.mark.parametrize("fault", ["flip", "torn", "empty", "longer", "missing"])
def test_what_is_damaged_is_made_again_and_nothing_else(tmp_path, capsys, name, fault):
    entry = tmp_path / "entry"
    kept(entry, SHEETS, Maker(), 2, "it")
    whole = (entry / name).read_bytes()
    place = np.random.default_rng(0).integers(len(whole))
    (entry / name).write_bytes(
        {
            "flip": whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :],
            "torn": whole[:place],
            "empty": b"",
            "longer": whole + b"x",
            "missing": b"",
        }[fault]
    )
    if fault == "missing":
        (entry / name).unlink()
    capsys.readouterr()
    make = Maker()
    check(kept(entry, SHEETS, make, 2, "it"))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    if fault == "longer" and not name.endswith("json"):
        assert make.made == []  # what was written is there
        return
    assert all(number == int(name[0]) for number, *_ in make.made)
    assert len(told) == (0 if fault == "missing" and name.endswith("json") else len(make.made))
    if fault == "flip" or name.endswith("json"):
        assert len(make.made) == 1
    if name.endswith("json"):
        assert name == "{}.{}-{}.json".format(*make.made[0])
    check(kept(entry, SHEETS, Maker(last=0), 2, "it"))


def test_files_that_are_not_of_the_entry_are_removed_or_let_be(tmp_path):
    kept(tmp_path / "entry", SHEETS, Maker(), 2, "it")
    for name in ("9.0-2.json", "1.2-4.json", ".0.0-4.json.tmp", "notes.txt"):
        (tmp_path / "entry" / name).write_text("{}", encoding="utf-8")
    make = Maker()
    check(kept(tmp_path / "entry", SHEETS, make, 2, "it"))
    assert make.made == [(1, 2, 4)]
    assert {"9.0-2.json", ".0.0-4.json.tmp"}.isdisjoint(files(tmp_path / "entry"))
    assert "notes.txt" in files(tmp_path / "entry")


def test_of_two_at_once_one_makes_them(tmp_path):
    make, got = Maker(), []

    def slow(*args):
        time.sleep(0.05)
        return make(*args)

    threads = [
        threading.Thread(target=lambda: got.append(kept(tmp_path / "entry", SHEETS, slow, 2, "it"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2 and len(make.made) == len(set(make.made)) == 6
    for arrays in got:
        check(arrays)


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_spans
from test_spans import SHEETS, Maker, kept, spans

spans._SPAN_BYTES = 40
calls, kill_at = 0, int(sys.argv[3])

def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for name in ("mkdir", "replace", "fsync", "posix_fallocate", "open"):
    setattr(os, name, counted(getattr(os, name)))
kept(Path(sys.argv[2]), SHEETS, Maker(), 2, "it")
print(calls)
"""


def run_killed(entry: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _KILLED, str(Path(__file__).parent), str(entry), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True)


def test_killed_at_any_call_the_next_goes_on(tmp_path):
    whole = run_killed(tmp_path / "whole", 0)
    calls = int(whole.stdout)
    assert calls > 20
    left = set()
    for kill_at in sorted({2 + index * (calls - 2) // 6 for index in range(7)}):
        entry = tmp_path / str(kill_at)
        assert run_killed(entry, kill_at).returncode == -signal.SIGKILL
        make = Maker()
        check(kept(entry, SHEETS, make, 2, "it"))
        left.add(len(make.made))
        assert files(entry) == files(tmp_path / "whole")
    assert {0, 6} < left | {0} and len(left) > 3


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_disk_is_said_before_the_work_and_nothing_is_left(small_disk):
    large = [Sheet(300, {"a": ((100,), np.dtype(np.int32))})]
    with pytest.raises(UserError, match="the disk is full; free some space") as error:
        kept(small_disk / "entry", large, Maker(last=0), 2, "it")
    assert "\n" not in str(error.value)
    assert files(small_disk) == [".entry.lock"]
    check(kept(small_disk / "small", SHEETS, Maker(), 2, "it"))


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_disk_that_fills_up_on_the_way_keeps_what_is_there(small_disk, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    sheet = Sheet(8, {"a": ((4096,), np.dtype(np.int32))})
    made = []

    def make(number, start, stop, advance):
        made.append(start)
        return {"a": np.full((stop - start, 4096), start + 1, np.int32)}

    with pytest.raises(UserError, match="the disk is full; free some space"):
        kept(small_disk / "entry", [sheet], make, 1, "it")
    assert 2 < len(made) < 8
    before = len(made)
    subprocess.run(["mount", "-o", "remount,size=512k", str(small_disk)], check=True)
    [arrays] = kept(small_disk / "entry", [sheet], make, 1, "it")
    assert made[before:] == list(range(before - 1, 8))
    assert arrays["a"][:, 0].tolist() == list(range(1, 9))


def test_where_nothing_can_be_written_that_is_said_and_what_is_there_is_read(tmp_path, monkeypatch):
    kept(tmp_path / "there", SHEETS, Maker(), 2, "it")
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "no", path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    check(kept(tmp_path / "there", SHEETS, Maker(last=0), 2, "it"))
    with pytest.raises(UserError, match="no permission to write there"):
        kept(tmp_path / "other", SHEETS, Maker(last=0), 2, "it")
