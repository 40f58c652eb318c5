"""A training run that is stopped or killed, at whatever instant, ends in the same bits as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.train.checkpoint import steps
from limbeck.train.loop import STOPPED

_KILLS = 100

# One process imports everything and forks a run for each line that it reads: no device exists before the fork.
_RUNS = """
import builtins, hashlib, json, os, signal, sys, warnings
warnings.simplefilter("ignore")
import jax, jax.numpy as jnp, numpy as np
from limbeck.model.params import digest
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit

SETTINGS = FitConfig(
    steps=STEPS, batch_size=4, length=12, optim=OptimConfig(learning_rate=1e-2), log_every=1, checkpoint_every=2
)
CALLS = [(os, n) for n in ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "open", "scandir")]
calls = 0

def loss_fn(params, batch, key):
    # Small, so that a start is quick; it hangs on every parameter, on the batch and on the random key.
    noise_BT = jax.random.normal(key, batch["tokens_BT"].shape)
    guess_BT = jnp.tanh(params["embed/embedding"][batch["tokens_BT"]] @ params["head/kernel"])
    loss = jnp.mean(jnp.square(guess_BT - noise_BT) * batch["weights_BT"])
    return loss, {"loss": loss}

def counted(function, last):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

def run(folder, kill_at, pause):
    rng = np.random.default_rng(0)
    def batch_at(step):
        draw = np.random.default_rng(step)
        return {"tokens_BT": draw.integers(1, 31, (4, 12)), "weights_BT": draw.random((4, 12), np.float32)}
    def counted_batch(step):
        if pause:
            import time; print(step, file=sys.stderr, flush=True); time.sleep(pause)
        return counted(batch_at, kill_at)(step)
    params = {"embed/embedding": rng.normal(size=(31, 8)), "head/kernel": rng.normal(size=8)}
    params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in params.items()}
    for module, name in [*CALLS, (builtins, "open")]:
        setattr(module, name, counted(getattr(module, name), kill_at))
    return fit(loss_fn, params, counted_batch, SETTINGS, checkpoints=folder)

for line in sys.stdin:
    folder, kill_at, pause = json.loads(line)
    child = os.fork()
    if not child:
        fitted = run(folder, kill_at, pause)
        print(json.dumps([digest(fitted.trainable), fitted.curve, calls]), flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
"""


class Runs:
    """The forking process; `run` gives a run's (exit status, what it ended in or None)."""

    def __init__(self, total_steps: int) -> None:
        script = _RUNS.replace("STEPS", str(total_steps))
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def run(self, folder: Path, kill_at: int = -1) -> tuple[int, list | None]:
        assert self.process.stdin and self.process.stdout
        print(json.dumps([str(folder), kill_at, 0]), file=self.process.stdin, flush=True)
        first = json.loads(self.process.stdout.readline())
        return (json.loads(self.process.stdout.readline()), first) if isinstance(first, list) else (first, None)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_killed_a_hundred_times_a_run_ends_in_the_same_bits(tmp_path):
    """Before a call to the file system or a step, drawn at random; a killed run goes on until the next kill."""
    runs, draw = Runs(8), random.Random(0)
    try:
        status, whole = runs.run(tmp_path / "whole")
        assert status == 0 and whole is not None
        kills, attempt, finished = 0, 0, 0
        while kills < _KILLS:
            status, ended = runs.run(tmp_path / str(attempt), draw.randint(1, whole[2]))
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
            if ended is not None:
                assert ended[:2] == whole[:2]
                attempt, finished = attempt + 1, finished + 1
        status, ended = runs.run(tmp_path / str(attempt))
        assert status == 0 and ended is not None and ended[:2] == whole[:2]
        assert finished >= 5
    finally:
        runs.close()


def test_told_to_stop_a_run_saves_and_goes_on_from_there(tmp_path):
    script = _RUNS.replace("STEPS", "9").split("for line in sys.stdin")[0]
    script += f"fitted = run({str(tmp_path)!r}, -1, float(sys.argv[1])); print(digest(fitted.trainable), fitted.curve)"

    def start(pause: float) -> subprocess.Popen:
        command = [sys.executable, "-c", script, str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    stopped = start(0.3)
    assert stopped.stderr is not None
    for line in stopped.stderr:
        if line.strip() == "4":  # the fifth step is about to run; the checkpoints at 2 and 4 are there
            break
    stopped.send_signal(signal.SIGTERM)
    _, error = stopped.communicate(timeout=60)
    assert stopped.returncode == STOPPED == 143
    assert "told to stop (SIGTERM) at step 5; the same command goes on from here" in error
    assert steps(tmp_path) == [4, 5]
    resumed, _ = start(0).communicate(timeout=60)
    for path in tmp_path.iterdir():
        os.rename(path, tmp_path.parent / f"{tmp_path.name}-{path.name}")
    whole, _ = start(0).communicate(timeout=60)
    assert resumed == whole != ""
