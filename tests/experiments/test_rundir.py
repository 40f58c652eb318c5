import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from limbeck.experiments import rundir
from limbeck.experiments.rundir import MetricsLog, open_run
from limbeck.model.errors import UserError


@dataclass(frozen=True)
class Inner:
    width: int = 8


@dataclass(frozen=True)
class Config:
    seed: int = 0
    sizes: tuple[int, ...] = (1, 2)
    data: Path = Path("records")
    model: Inner = field(default_factory=Inner)


ARGV = ["limbeck", "run", "my file.py", "--task", "سیب"]


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    with open_run(tmp_path / "a" / "b", Config(seed=3), ARGV) as run:
        assert run == tmp_path / "a" / "b"
    config = json.loads((run / "config.json").read_text())
    assert config == {"seed": 3, "sizes": [1, 2], "data": "records", "model.width": 8}
    assert (run / "command.txt").read_text(encoding="utf-8") == "limbeck run 'my file.py' --task 'سیب'\n"
    assert {"python", "platform", "jax", "flax", "optax"} <= json.loads(
        (run / "versions.json").read_text()
    ).keys()


def test_the_same_config_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run(tmp_path, Config(), ARGV):
            pass
    assert len((tmp_path / "command.txt").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(seed=1), "holds a run with seed 0, and this one has 1"),
        (Config(sizes=(1,)), r"with sizes \[1, 2\], and this one has \[1\]"),
        (Config(model=Inner(9)), "with model.width 8, and this one has 9"),
        (Inner(8), "with width absent, and this one has 8"),
    ],
)
def test_another_config_is_refused_and_nothing_is_touched(tmp_path: Path, config, message: str) -> None:
    with open_run(tmp_path, Config(), ARGV):
        pass
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=message), open_run(tmp_path, config, ARGV):
        pytest.fail("the folder of another run was entered")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="config.json is damaged"), open_run(tmp_path, Config(), ARGV):
        pass


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, Config(), ARGV),
        pytest.raises(UserError, match="in use by another run"),
        open_run(tmp_path, Config(), ARGV),
    ):
        pass
    with open_run(tmp_path, Config(), ARGV):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from limbeck.experiments.rundir import open_run
from dataclasses import make_dataclass
with open_run(Path({str(tmp_path)!r}), make_dataclass("C", [])(), []):
    print("in", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="in use"), open_run(tmp_path, Config(), ARGV):
            pass
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="holds a run with"), open_run(tmp_path, Config(), ARGV):
        pass


@pytest.mark.parametrize("below", [".", "run"])
def test_a_file_where_a_folder_is_needed(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    workdir = tmp_path / "file" / below
    with pytest.raises(UserError, match="is a file|choose another"), open_run(workdir, Config(), ARGV):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_other_versions_are_said(tmp_path: Path, monkeypatch, capsys) -> None:
    with open_run(tmp_path, Config(), ARGV):
        pass
    assert capsys.readouterr().err == ""
    before = rundir.versions()
    monkeypatch.setattr(rundir, "versions", lambda: before | {"jax": "99"})
    with open_run(tmp_path, Config(), ARGV):
        pass
    assert f"jax {before['jax']} -> 99" in capsys.readouterr().err


def test_the_commit_is_that_of_the_source_tree(tmp_path: Path, monkeypatch) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    monkeypatch.setattr(rundir, "_SOURCE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert rundir.commit() is None
    git("init")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "one", "--no-verify", "--no-gpg-sign")
    sha = rundir.commit()
    assert sha is not None and len(sha) == 40
    (tmp_path / "inner" / "file").write_text("2")
    assert rundir.commit() == f"{sha} (modified)"
    monkeypatch.setattr(rundir, "_SOURCE", tmp_path / "inner")
    assert rundir.commit() is None
    monkeypatch.setenv("PATH", "")
    assert rundir.commit() is None


def row(stage: str, step: int, loss: float | np.floating) -> dict:
    return {"stage": stage, "step": step, "loss": loss}


def test_metrics_come_back_as_they_were_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(row("full", 10, np.float32(0.5)))
    log.append({"stage": "done", "step": 0, "note": "میوه"})
    assert log.rows() == [row("full", 10, 0.5), {"stage": "done", "step": 0, "note": "میوه"}]
    assert MetricsLog(tmp_path).rows() == log.rows()


def test_a_stage_that_goes_back_replaces_its_own_later_rows(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for stage in ("pretrain", "full"):
        for step in (10, 20, 30):
            log.append(row(stage, step, 1.0))
    log = MetricsLog(tmp_path)
    log.append(row("full", 20, 2.0))
    log.append(row("full", 30, 2.0))
    assert log.rows() == [row("pretrain", step, 1.0) for step in (10, 20, 30)] + [
        row("full", 10, 1.0),
        row("full", 20, 2.0),
        row("full", 30, 2.0),
    ]


def test_a_log_cut_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    rows = [row("full", step, 0.5) for step in (1, 2, 3)]
    for each in rows:
        log.append(each)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        log = MetricsLog(tmp_path)
        kept = log.rows()
        assert kept == rows[: whole[:cut].count(b"\n")]
        log.append(row("next", 1, 0.0))
        assert log.rows() == [*kept, row("next", 1, 0.0)]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "a", "step": 1}\nxx\n{"stage": "a", "step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not JSON"):
        MetricsLog(tmp_path)
