"""`limbeck store`: what each command says, its exit status, and one line for a mistake."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from limbeck.experiments.cli import main
from limbeck.inference.store import PredictionStore

ROWS = [(hashlib.sha256(b"%d" % i).hexdigest(), f"سؤال {i}", {"text": f" answer {i}"}) for i in range(20)]


def made(path, rows=ROWS, **manifest):
    with PredictionStore(path, manifest={"weights": "w" * 64, **manifest}) as store:
        store.put_many(rows)
        store.fail_many([("f" * 64, "a query", "a prompt of 9 tokens is too long")])
    return str(path)


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "p.db", options="null")


def test_status(store, tmp_path, capsys):
    assert main(["store", "status", store, "--check"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{store}: 20 predictions, 20 queries, ") and "every page and every row is whole" in out
    assert "coverage: 95.24 % of 21 queries asked so far" in out
    assert "failures: 1\n         1  a prompt of 9 tokens is too long\n" in out
    assert "weights: wwww" in out and "stale" not in out
    queries = tmp_path / "queries.txt"
    queries.write_text("سؤال 1\n\n سؤال  2 \r\nnever\nnever\n", encoding="utf-8")
    assert main(["store", "status", store, "--queries", str(queries)]) == 0
    assert f"coverage: 66.67 % of 3 queries of {queries}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(a tiny model's folder, its digest, its digest in int8)."""
    import jax

    from limbeck.model.config import ModelConfig
    from limbeck.model.params import digest
    from limbeck.model.pretrained import save_pretrained
    from limbeck.model.quantize import quantize
    from limbeck.model.tokenizer import byte_tokenizer
    from limbeck.model.transformer import init

    path = tmp_path_factory.mktemp("model") / "tiny"
    config = ModelConfig(
        vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=64, max_len=32
    )
    params = init(config, jax.random.key(0))
    save_pretrained(path, config, params, byte_tokenizer())
    return str(path), digest(params), digest(quantize(params, "int8"))


def test_staleness_against_a_model_which_is_opened_as_the_job_opened_it(model, tmp_path, capsys):
    path, digest, in_int8 = model
    fresh = made(tmp_path / "fresh.db", weights=digest)
    assert main(["store", "status", fresh, "--model", path]) == 0
    assert f"stale: none, {path} has the weights that the predictions are of ({digest[:12]})" in capsys.readouterr().out
    few_bits = made(tmp_path / "int8.db", weights=in_int8, job=json.dumps({"quantise": "int8"}))
    assert main(["store", "status", few_bits, "--model", path]) == 0
    stale = made(tmp_path / "stale.db")
    assert main(["store", "status", stale, "--model", path]) == 1
    told = f"stale: 20 predictions are of other weights ({'w' * 12}) than {path} ({digest[:12]})"
    assert told in capsys.readouterr().out


def test_export_and_compact(store, tmp_path, capsys):
    parquet, copy = str(tmp_path / "p.parquet"), str(tmp_path / "copy.db")
    assert main(["store", "export", store, parquet]) == 0
    assert capsys.readouterr().out.startswith(f"{parquet}: 20 predictions, ")
    assert pq.read_table(parquet)["answer"].to_pylist() == [row[2]["text"].strip() for row in sorted(ROWS)]
    assert main(["store", "compact", store, copy]) == 0
    assert capsys.readouterr().out.startswith(f"{copy}: a copy for look-ups, ")
    assert main(["lookup", copy, "سؤال 3"]) == 0
    assert capsys.readouterr().out == "answer 3\n"


def test_prune(store, capsys):
    with PredictionStore(store) as opened:
        opened.put_many([], links=[(ROWS[0][1], ROWS[1][0])])
    assert main(["store", "prune", store, "--failures", "--unfound"]) == 0
    said = f"{store}: failures forgotten: 1, predictions that no query finds forgotten: 1\n"
    assert capsys.readouterr().out == said
    assert main(["store", "prune", store, "--failures"]) == 0
    assert capsys.readouterr().out == f"{store}: failures forgotten: 0\n"


def test_merge(store, tmp_path, capsys):
    parts = [made(tmp_path / f"{i}.db", ROWS[5 * i : 15 + 5 * i], options="null") for i in range(2)]
    target = str(tmp_path / "target.db")
    assert main(["store", "merge", target, *parts]) == 0
    assert capsys.readouterr().out == f"{target}: 20 new, 10 there already; failures in all: 1\n"
    assert main(["store", "merge", store, target]) == 0
    assert capsys.readouterr().out == f"{store}: 0 new, 20 there already; failures in all: 1\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["status", "{none}"], "no prediction store at"),
        (["prune", "{none}", "--failures"], "no prediction store at"),
        (["prune", "{store}"], "nothing to prune: give --failures, --unfound, or both"),
        (["status", "{store}", "--queries", "{none}"], "No such file"),
        (["status", "{store}", "--queries", "{latin}"], "is not UTF-8 (byte 3)"),
        (["status", "{store}", "--model", "{none}"], "no model at"),
        (["export", "{store}", "{latin}"], "is no export of a store: name another file"),
        (["export", "{store}", "{store}"], "is the store itself: name another file"),
        (["compact", "{store}", "{latin}"], "not a prediction store"),
        (["compact", "{store}", "{store}"], "is not a compacted store: name another file"),
        (["merge", "{store}", "{other}"], "were made with different weights"),
        (["merge", "{store}", "{latin}"], "not a prediction store"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(store, tmp_path, capsys, words, told):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\u00e9s ".encode("latin-1") * 100)
    paths = {"store": store, "none": tmp_path / "none", "latin": latin}
    paths["other"] = made(tmp_path / "other.db", ROWS[:1], weights="v" * 64, options="null")
    with PredictionStore(store, read_only=True) as opened:
        before = list(opened.rows()), opened.failures()
    assert main(["store", *(word.format(**paths) for word in words)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("limbeck: ") and error.count("\n") == 1
    with PredictionStore(store, read_only=True) as opened:
        assert (list(opened.rows()), opened.failures()) == before
    assert not (tmp_path / "none").exists() and latin.stat().st_size == 600


def test_a_store_that_is_being_written_can_be_read_and_not_pruned(store, capsys):
    with PredictionStore(store):
        assert main(["store", "status", store]) == 0
        assert main(["store", "prune", store, "--failures"]) == 2
    error = capsys.readouterr().err
    assert "is being written by another process" in error and error.count("\n") == 1
