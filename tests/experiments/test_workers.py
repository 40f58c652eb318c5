"""A prediction job in two processes ends with the store that one process makes, killed on its way or not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from limbeck.experiments.cli import main
from limbeck.experiments.workers import part_of
from limbeck.inference.store import PredictionStore
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init

CONFIG = ModelConfig(
    vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=64
)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A job of forty-one queries, two samples of each, without its store; one of them is poisoned."""
    save_pretrained(tmp_path / "model", CONFIG, init(CONFIG, jax.random.key(0)), byte_tokenizer())
    start = "what all of them begin with is run once"
    rows = [{"prompt": f"{start} {i}"} for i in range(40)] + [{"prompt": "long " * 60}, {"prompt": f"{start} 3"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"model": "model", "input": "q.jsonl"}
    given = [word for name, value in given.items() for word in (f"--{name}", str(tmp_path / value))]
    return ["predict", *given, "--samples", "2", "--temperature", "1", "--max-new-tokens", "4", "--batch-size", "8"]


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "limbeck.experiments.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, **pipes)


def content(path: Path) -> tuple[list, list, list, dict]:
    with PredictionStore(path, read_only=True) as store:
        return list(store.rows()), list(store.links()), store.failures(), store.manifest


@pytest.mark.slow
def test_two_workers_end_with_the_store_of_one(words: list[str], tmp_path: Path, capsys) -> None:
    whole, shared, out = tmp_path / "whole.db", tmp_path / "shared.db", tmp_path / "out.jsonl"
    assert main([*words, "--store", str(whole), "--output", str(out)]) == 1
    expected, answers = content(whole), out.read_bytes()
    capsys.readouterr()
    words += ["--store", str(shared), "--workers", "2", "--output", str(out)]
    with start(words) as job:
        said, error = job.communicate(timeout=300)
    assert job.returncode == 1 and said == f"{shared}: 80 new, 0 there already, 2 duplicate, 2 refused\n", error
    assert content(shared) == expected and out.read_bytes() == answers
    assert not [path for path in tmp_path.iterdir() if "shard" in path.name]

    with start(words) as job:  # everything is there, and what failed has been tried once more
        said, error = job.communicate(timeout=300)
    assert said == f"{shared}: 0 new, 80 there already, 2 duplicate, 2 refused\n", error
    rows, links, failures, manifest = content(shared)
    assert (rows, links, manifest) == (expected[0], expected[1], expected[3])
    assert [each["attempts"] for each in failures] == [2, 2]


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(words: list[str], tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole.db", tmp_path / "shared.db"
    assert main([*words, "--store", str(whole)]) == 1
    words += ["--store", str(shared), "--workers", "2", "--chunk", "1"]
    with start(words) as job:
        deadline = time.monotonic() + 240
        while sum(map(rows_of, (part_of(str(shared), shard, 2) for shard in range(2)))) < 3:
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, error = job.communicate(timeout=300)
    assert job.returncode == 2 and "limbeck: a worker was killed" in error
    there = {key for shard in range(2) for key in keys_of(part_of(str(shared), shard, 2))}
    with start(words) as job:
        said, error = job.communicate(timeout=300)
    assert f"{80 - len(there)} new, {len(there)} there already" in said and there, error
    assert content(shared)[:2] == content(whole)[:2]


def rows_of(path: Path) -> int:
    return len(keys_of(path))


def keys_of(path: Path) -> set[str]:
    if not path.exists():
        return set()
    try:
        with PredictionStore(path, read_only=True) as store:
            return {key for key, _, _ in store.rows()}
    except UserError:  # it is about to be made
        return set()
