"""Requests and results cross a cluster as JSON and stay what they are; a local Ray of two makes the store of one."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.inference.ray_job import dumps, loads
from limbeck.inference.requests import (
    EmbedRequest,
    GenerateRequest,
    Generation,
    HeadRequest,
    Sampling,
    ScoreRequest,
    Scores,
    Values,
)
from limbeck.inference.store import PredictionStore
from limbeck.model.config import ModelConfig
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init

VALUES = [
    GenerateRequest((1, 2), Sampling(3, 0.1 + 0.2, 4, 0.5, 0.25, 7), ("\n", "می‌روم"), 2, "adapter"),
    GenerateRequest((), Sampling()),
    ScoreRequest((1,), ((2, 3), (4,)), "a"),
    EmbedRequest((1, 2)),
    HeadRequest((1, 2), "a"),
    Generation("سیب", (1, 2), -1 / 3, True),
    Scores((-1 / 3, -2e-300), (1, 2), (True, False)),
    Values((1e-7, -0.1)),
    "why there is none",
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_read_back_as_it_was(value) -> None:
    found = loads(dumps(value))
    assert found == value and repr(found) == repr(value)


def test_a_number_that_is_not_finite_is_still_none_when_it_arrives() -> None:
    assert math.isnan(loads(dumps(Values((math.nan,)))).values[0])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="many machines need the extra [ray]")
def test_two_workers_of_a_local_ray_make_the_store_of_one_process(tmp_path: Path) -> None:
    import jax

    config = ModelConfig(
        vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=64
    )
    save_pretrained(tmp_path / "model", config, init(config, jax.random.key(0)), byte_tokenizer())
    start = "what all of them begin with is run once"
    rows = [{"prompt": f"{start} {i}"} for i in range(20)] + [{"prompt": "long " * 60}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def predict(store: str, *words: str) -> str:
        words = ("--model", "model", "--input", "q.jsonl", "--max-new-tokens", "4", "--batch-size", "8", *words)
        command = [sys.executable, "-m", "limbeck.experiments.cli", "predict", "--store", store, *words]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == (2 if "127.0.0.1:1" in words else 1), done.stderr
        return done.stdout or done.stderr

    assert predict("one.db") == "one.db: 20 new, 0 there already, 0 duplicate, 1 refused\n"
    assert predict("ray.db", "--ray", "local", "--workers", "2") == (
        "ray.db: 20 new, 0 there already, 0 duplicate, 1 refused\n"
    )
    with (
        PredictionStore(tmp_path / "one.db", read_only=True) as one,
        PredictionStore(tmp_path / "ray.db", read_only=True) as other,
    ):
        assert list(one.rows()) == list(other.rows()) and list(one.links()) == list(other.links())
        assert one.failures() == other.failures() and one.manifest == other.manifest
    error = predict("ray.db", "--ray", "127.0.0.1:1")
    assert error.startswith("limbeck: no Ray cluster at '127.0.0.1:1'") and error.count("\n") == 1
