"""`limbeck lookup` as it is run: an answer from before, and one of now where that is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.experiments import serving
from limbeck.experiments.cli import main
from limbeck.inference.lookup import side_store
from limbeck.inference.store import PredictionStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A compacted store, beside the one that it was made from."""
    with PredictionStore(tmp_path / "job1.db", manifest={"weights": "w1"}) as store:
        store.put_many([("key", "سؤال 1", {"text": "1"})])
        store.compact(tmp_path / "serving.db")
    return tmp_path / "serving.db"


def test_looking_up_imports_nothing_heavy(path: Path) -> None:
    code = f"""
import sys
from limbeck.experiments.cli import main
assert main(["lookup", {str(path)!r}, "سؤال 1"]) == 0
print([name for name in ("jax", "numpy", "starlette", "uvicorn", "pyarrow") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", "[]"]


@pytest.mark.parametrize("kind", ["job", "serving"])
def test_a_miss_is_asked_of_the_model_where_that_is_said(path: Path, kind: str, monkeypatch, capsys) -> None:
    """Recorded in the store itself where it can be written, else beside it."""
    models = []

    def online(manifest, model):
        assert manifest["weights"] == "w1"
        return lambda query: (models.append(model), ("new key", {"text": f" to {query}"}))[1]

    monkeypatch.setattr(serving, "_online", online)
    store = str(path if kind == "serving" else path.with_name("job1.db"))
    assert main(["lookup", store, "new"]) == 1
    assert main(["lookup", store, "سؤال 1", "--online"]) == 0 and models == []
    assert main(["lookup", store, "new", "--online", "MODEL"]) == 0
    assert main(["lookup", store, " new", "--online"]) == 0
    assert capsys.readouterr().out == "1\nto new\nto new\n" and models == ["MODEL"]
    assert main(["lookup", store, "new"]) == (1 if kind == "serving" else 0)
    assert side_store(store).exists() == (kind == "serving")


def test_what_is_asked_now_is_what_the_job_would_have_predicted(tmp_path: Path, capsys) -> None:
    import jax

    from limbeck.model.config import ModelConfig
    from limbeck.model.pretrained import save_pretrained
    from limbeck.model.tokenizer import byte_tokenizer
    from limbeck.model.transformer import init

    model, records, late = str(tmp_path / "tiny"), tmp_path / "records", "چیز دیگر"
    config = ModelConfig(
        vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=128
    )
    save_pretrained(model, config, init(config, jax.random.key(0)), byte_tokenizer())
    records.mkdir()
    for name, queries in (("train", ["a", "b"]), ("test", ["سیب"])):
        rows = [{"input": query, "output": f"answer {query}"} for query in queries]
        (records / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ask = tmp_path / "late.jsonl"
    ask.write_text(json.dumps({"input": late}), encoding="utf-8")
    words = ["predict", "--model", model, "--task", str(records), "--prompt.shots", "1"]
    job, whole = tmp_path / "job.db", tmp_path / "whole.db"
    assert main([*words, "--store", str(job)]) == 0
    assert main([*words, "--store", str(whole), "--input", str(ask)]) == 0
    with PredictionStore(whole, read_only=True) as store:
        [(key, _, payload)] = store.rows()
    with PredictionStore(job) as store:
        store.compact(tmp_path / "serving.db")
    capsys.readouterr()
    for path in (job, tmp_path / "serving.db"):
        assert main(["lookup", str(path), late, "--online"]) == 0
        assert capsys.readouterr().out == f"{payload['text'].strip()}\n"
    for path in (job, side_store(tmp_path / "serving.db")):
        with PredictionStore(path, read_only=True) as store:
            assert store.get(key) == payload
