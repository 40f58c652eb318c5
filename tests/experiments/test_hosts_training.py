"""A training over several processes that hold one model together, against one process; stopped, killed, hung."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from host_processes import start_all

from limbeck.experiments import rundir
from limbeck.experiments.cli import main
from limbeck.model import hosts
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
    max_len=128,
)  # fmt: skip
MESH = ["--mesh", "fsdp=2", "tensor=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    save_pretrained(folder / "model", CONFIG, init(CONFIG, jax.random.key(0)), TOKENIZER)
    (folder / "one.txt").write_text("the small lemon tree bears a sour fruit\n" * 200)
    return folder


def words(folder: Path, run: str, steps: int = 6, *more: str) -> list[str]:
    fit = ["--fit.steps", str(steps), "--fit.batch-size", "4", "--fit.length", "32", "--fit.log-every", "2"]
    paths = ["--workdir", str(folder / run), "--root", str(folder), "--texts", "one.txt"]
    every = ["--fit.evaluate-every", "3", "--fit.checkpoint-every", "2", "--prompts", "the"]
    return ["run", "shakespeare", *paths, "--model", str(folder / "model"), *fit, *every, *more]


def weights(folder: Path, run: str) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in load_pretrained(folder / run / "model").params.items()}


def losses(folder: Path, run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / run / "metrics.jsonl").read_text().splitlines()]


def ended(processes: list[subprocess.Popen], within: float) -> list[tuple[str, str]]:
    said = [each.communicate(timeout=within) for each in processes]
    return [(out, err) for out, err in said]


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    assert main(words(folder, "alone")) == 0
    return folder


@pytest.mark.slow
def test_two_processes_stop_together_where_one_is_told(alone):
    both = start_all([*words(alone, "both", 4000), *MESH, "--hosts"])
    began = time.monotonic()
    while not (alone / "both" / "checkpoints" / "2").exists():
        assert time.monotonic() - began < 200 and all(each.poll() is None for each in both), ended(both, 5)
        time.sleep(0.1)
    both[1].send_signal(signal.SIGTERM)
    said = ended(both, 60)
    assert [each.returncode for each in both] == [143, 143], said
    assert "told to stop (SIGTERM)" in said[0][1] and "told to stop" not in said[1][1]
    stopped = max(int(each.name) for each in (alone / "both" / "checkpoints").iterdir() if each.name.isdigit())
    assert f"at step {stopped};" in said[0][1]  # the step at which all stopped is the one that was kept


@pytest.mark.slow
def test_two_processes_give_the_model_of_one(alone):
    both = start_all([*words(alone, "two"), *MESH, "--hosts"])
    said = ended(both, 240)
    assert [each.returncode for each in both] == [0, 0], said
    assert "the model is" in said[0][0] and "the model is" not in said[1][0] and "steps" not in said[1][1]
    np.testing.assert_allclose(losses(alone, "two"), losses(alone, "alone"), atol=1e-4)
    right = weights(alone, "alone")
    for path, leaf in weights(alone, "two").items():
        np.testing.assert_allclose(leaf, right[path], atol=1e-4, err_msg=path)
    before = (alone / "two" / "metrics.jsonl").read_bytes()
    again = start_all([*words(alone, "two"), *MESH, "--hosts"])  # everything is there: only the report is written
    said = ended(again, 120)
    assert [each.returncode for each in again] == [0, 0], said
    assert (alone / "two" / "metrics.jsonl").read_bytes() == before


def spoil_the_last(run: Path) -> None:
    """Leaves of a finished run what one has that was killed before its end: its checkpoint of step 4 is the newest."""
    for name in ("stages/pretrain.json", "stages/validation.json", "report.json"):
        (run / name).unlink()
    for each in (run / "checkpoints" / "6").iterdir():
        if each.is_file():
            each.unlink()


@pytest.mark.slow
def test_what_two_processes_left_goes_on_in_one_and_the_other_way_round(alone):
    """Checkpoints, of shards or whole, restore on one device and over two processes; adapters are written by both."""
    more = ("--tuning", "lora")

    def over_two() -> None:
        both = start_all([*words(alone, "lora", 6, *more), *MESH, "--hosts"])
        said = ended(both, 240)
        assert [each.returncode for each in both] == [0, 0], said

    def same() -> None:
        for path, leaf in weights(alone, "lora").items():
            np.testing.assert_allclose(leaf, right[path], atol=1e-4, err_msg=path)

    assert main(words(alone, "lora_alone", 6, *more)) == 0
    right = weights(alone, "lora_alone")
    over_two()
    assert (alone / "lora" / "adapter" / "adapter_model.safetensors").exists()
    spoil_the_last(alone / "lora")
    assert main(words(alone, "lora", 6, *more)) == 0
    same()
    spoil_the_last(alone / "lora")
    over_two()
    same()


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "how"), [(1, "STOP"), (1, "KILL"), (0, "KILL")])
def test_a_process_that_is_gone_ends_the_other(victim, how, alone):
    """With a status that a scheduler starts again: of a closed connection 75, of JAX's own heartbeat SIGABRT."""
    run = f"{how}{victim}"
    both = start_all([*words(alone, run, 4000), *MESH, "--hosts"])
    try:
        began = time.monotonic()
        while not (alone / run / "checkpoints" / "4").exists():
            assert time.monotonic() - began < 200 and all(each.poll() is None for each in both)
            time.sleep(0.1)
        began = time.monotonic()
        both[victim].send_signal(signal.Signals[f"SIG{how}"])
        said = both[1 - victim].communicate(timeout=60)
        assert both[1 - victim].returncode in (75, -signal.SIGABRT), said
        assert time.monotonic() - began < 45
        assert "run the same command on all hosts" in said[1] or both[1 - victim].returncode == -signal.SIGABRT
    finally:
        for each in both:
            each.kill()
            each.communicate()


@pytest.mark.parametrize(("waits", "status"), [(10, 75), (0, 0)])
def test_a_training_that_makes_no_step_is_ended(waits, status):
    script = f"""
import math, time, jax
jax.process_count = lambda: 2
from limbeck.model import hosts
with hosts.watched() as give:
    give(math.inf)
    give(0.2)
    time.sleep({waits})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == status
    assert ("some process hangs (LIMBECK_HUNG_AFTER); run the same command" in done.stderr) == (status != 0)


def test_a_folder_that_is_not_shared_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "leads", lambda: False)
    monkeypatch.setattr(hosts, "from_leader", lambda value: ["", "a mark"])
    monkeypatch.setattr(hosts, "without", lambda holds: [] if holds else [1])
    monkeypatch.setattr(rundir, "_SEEN_WITHIN", 1)
    words_ = "is not the run's folder of process 0: name one on a file system that all"
    with pytest.raises(UserError, match=words_), rundir.shared_run(tmp_path, None, []):
        pass
    (tmp_path / ".shared").write_text("a mark")
    with rundir.shared_run(tmp_path, None, []) as found:
        print("nothing of this is seen")
        assert found == tmp_path


def test_what_keeps_the_leader_from_its_folder_ends_all(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "leads", lambda: False)
    monkeypatch.setattr(hosts, "from_leader", lambda value: ["the folder is in use", "a mark"])
    with pytest.raises(UserError, match="the folder is in use"), rundir.shared_run(tmp_path, None, []):
        pass


def test_an_experiment_of_many_parts_runs_in_one_process(tmp_path, capsys):
    assert main(["run", "quickstart", "--workdir", str(tmp_path / "run"), "--mesh", "data=8", "--hosts"]) == 2
    assert "quickstart.py: LessonConfig runs in one process: leave --hosts out" in capsys.readouterr().err


def test_hosts_need_a_mesh(tmp_path, capsys):
    assert main(["run", "shakespeare", "--workdir", str(tmp_path / "run"), "--hosts"]) == 2
    assert "--hosts: say how their devices hold the model, such as --mesh fsdp=16" in capsys.readouterr().err


def test_a_time_that_is_none(monkeypatch):
    monkeypatch.setenv("LIMBECK_HUNG_AFTER", "soon")
    with pytest.raises(UserError, match="LIMBECK_HUNG_AFTER=soon: a number of seconds, such as 900"):
        hosts.hung_after()
