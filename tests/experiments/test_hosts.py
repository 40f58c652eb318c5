"""A prediction job over several processes that hold one model together, against one process; and one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import host_processes
import jax
import pytest
from host_processes import free_port

from limbeck.experiments.cli import main
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.inference.store import PredictionStore
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
    max_len=128,
)  # fmt: skip
JOB = ["--mesh", "fsdp=2", "tensor=2", "--batch-size", "4", "--max-new-tokens", "5"]


def start(folder: Path, process: int, port: int, queries: str, *more: str, to: str = "many.db") -> subprocess.Popen:
    words = ["predict", "--model", str(folder / "model"), "--input", queries, "--store", str(folder / to)]
    return host_processes.start([*words, "--hosts", "True", *JOB, *more], process, port)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    params = {path: 2 * leaf for path, leaf in init(CONFIG, jax.random.key(0)).items()}
    save_pretrained(folder / "model", CONFIG, params, TOKENIZER)
    for name, count in (("queries", 6), ("others", 5)):
        lines = (json.dumps({"id": str(n), "prompt": f"word {n} of many"}) + "\n" for n in range(count))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def tmp_queries(folder: Path, rows: int) -> str:
    path = folder / "many.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "prompt": f"word {n} of many"}) + "\n" for n in range(rows)))
    return str(path)


def count(store: Path) -> int:
    with PredictionStore(store, read_only=True) as there:
        return there.count("predictions")


def test_two_processes_answer_as_one(folder):
    queries, port = str(folder / "queries.jsonl"), free_port()
    output = str(folder / "answers.jsonl")
    both = [start(folder, process, port, queries, "--output", output) for process in (0, 1)]
    said = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert "6 new" in said[0][0] and " new" not in said[1][0] and "predict" not in said[1][1]  # one of them speaks
    words = ["--model", str(folder / "model"), "--input", queries, "--store", str(folder / "one.db")]
    assert main(["predict", *words, "--batch-size", "4", "--max-new-tokens", "5"]) == 0
    with PredictionStore(folder / "one.db", read_only=True) as one, PredictionStore(folder / "many.db") as many:
        for (key, query, right), (same_key, same_query, found) in zip(one.rows(), many.rows(), strict=True):
            assert (key, query, right["tokens"]) == (same_key, same_query, found["tokens"])
            assert found["logprob"] == pytest.approx(right["logprob"], abs=1e-4)
    assert len(Path(output).read_text().splitlines()) == 6
    again = [start(folder, process, port, queries) for process in (0, 1)]
    said = [each.communicate(timeout=120) for each in again]
    assert "0 new, 6 there already" in said[0][0] and [each.returncode for each in again] == [0, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hosts": True}, "hosts: say how their devices hold the model"),
        ({"mesh": ("data=8",), "workers": 2}, "leave workers and ray out"),
        ({"mesh": ("data=8",), "ray": "local"}, "leave workers and ray out"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    with pytest.raises(UserError, match=words):
        PredictionConfig(**settings)


def test_a_process_that_nothing_says_which_one_it_is():
    command = "from limbeck.model.hosts import joined\nwith joined(): print('inside')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COORD")}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "inside" not in done.stdout
    assert "UserError: this process cannot join the others" in done.stderr and "JAX_PROCESS_ID" in done.stderr


def test_hosts_that_read_other_queries_end(folder):
    port = free_port()
    both = [start(folder, at, port, str(folder / f"{name}.jsonl")) for at, name in enumerate(("queries", "others"))]
    for each in both:
        said = each.communicate(timeout=60)[1]
        assert each.returncode == 2 and "limbeck: process 1 has other queries than process 0" in said


@pytest.mark.parametrize(("killed", "how", "status"), [(0, "KILL", -9), (1, "KILL", -9), (1, "INT", 130)])
def test_a_host_that_dies_ends_the_others(folder, killed, how, status):
    port, began = free_port(), time.monotonic()
    many = tmp_queries(folder, 4000)
    store = folder / f"{killed}{how}.db"
    both = [start(folder, process, port, many, to=store.name) for process in (0, 1)]
    while not (store.exists() and count(store) > 6):
        assert time.monotonic() - began < 60 and all(each.poll() is None for each in both)
        time.sleep(0.1)
    both[killed].send_signal(signal.Signals[f"SIG{how}"])
    for each in both:
        each.communicate(timeout=60)
    assert both[killed].returncode == status and both[1 - killed].returncode != 0
    with PredictionStore(store) as there:  # what was committed is there, whole
        there.check()
        kept = there.count("predictions")
    assert kept > 6
