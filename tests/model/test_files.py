"""Files that are whole or not there, and locks that end with their process."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from limbeck.model.errors import UserError
from limbeck.model.files import locked

_HOLDER = """
import sys, time
from limbeck.model.files import locked
with locked(sys.argv[1], wait=True):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_holds_a_lock_and_another_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entered = threading.Event()
    path = tmp_path / "made" / ".fruits.lock"

    def enter() -> None:
        with locked(path, wait=True):
            entered.set()

    other = threading.Thread(target=enter)
    with locked(path, wait=True):
        other.start()
        with locked(tmp_path / ".trees.lock", wait=True):
            assert not entered.wait(0.3)
    assert entered.wait(10)
    other.join()
    assert capsys.readouterr().err == f"waiting for another process that holds {path}\n"


def test_a_lock_that_another_process_holds_is_said_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use by another process") as error, locked(path, wait=False):
        pass
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with locked(path, wait=False):
        pass


def test_a_lock_on_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="read-only; choose another"), locked(tmp_path / ".lock", wait=True):
        pass


def test_a_lock_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file; choose another"), locked(tmp_path / "file" / ".lock", wait=True):
        pass
