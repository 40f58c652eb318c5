"""`limbeck predict`: every source of queries, every kind of answer, and the same asked online."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prediction_files import FAST, keys, make_task, read, write_rows

from limbeck.experiments.asking import asking, open_engine, record_of
from limbeck.experiments.cli import main
from limbeck.experiments.predicting import asker
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.queries import open_task
from limbeck.inference.lookup import lookup
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_a_split_is_answered_and_looked_up(models, kind: str, tmp_path: Path, capsys) -> None:
    task, store = make_task(tmp_path / "task", kind), str(tmp_path / "answers.db")
    words = ["predict", "--model", models["plain"], "--task", task, "--store", store, *FAST]
    assert main([*words, "--shots", "1"]) == 0
    assert capsys.readouterr().out == f"{store}: 5 new, 0 there already, 0 duplicate, 0 refused\n"
    assert main([*words, "--shots", "1"]) == 0
    assert capsys.readouterr().out == f"{store}: 0 new, 5 there already, 0 duplicate, 0 refused\n"
    assert main(["lookup", store, "test  سؤال 3"]) == 0
    answer = capsys.readouterr().out.removesuffix("\n")
    assert answer in ("no", "yes") or kind == "generation"
    for changed, message in (
        (["--shots", "2"], "was made with shots 1, not 2"),
        (["--shots", "1", "--seed", "3"], "was made with seed 0, not 3"),
        (["--shots", "1", "--quantise", "int8"], "was made with quantise , not int8"),
        (["--shots", "1", "--split", "tset"], "did you mean 'test'"),
        (["--shots", "1", "--normalisation", "nfc_casefold"], "made with normalisation nfc, not nfc_casefold"),
    ):
        assert main([*words, *changed]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_queries_of_a_file_are_asked_as_the_task_s_own_are(models, tmp_path: Path, capsys) -> None:
    task = make_task(tmp_path / "task")
    asked = [{"input": f"test سؤال {i}"} for i in (3, 1, 77)]
    inputs = [write_rows(tmp_path / "queries.jsonl", asked), str(tmp_path / "q.csv"), str(tmp_path / "q.parquet")]
    Path(inputs[1]).write_text("input,note\n" + "".join(f"{row['input']},x\n" for row in asked), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(asked), inputs[2])
    store, out = str(tmp_path / "a.db"), tmp_path / "out.jsonl"
    words = ["predict", "--model", models["plain"], "--task", task, "--store", store, *FAST]
    assert main(words) == 0
    for number, name in enumerate(inputs):
        capsys.readouterr()
        assert main([*words, "--input", name, "--output", str(out)]) == 0
        new = 1 if number == 0 else 0
        assert f"{new} new, {3 - new} there already" in capsys.readouterr().out
        rows = read(out)
        assert [row["query"] for row in rows] == [row["input"] for row in asked]
        assert [int(row["id"]) for row in rows] == [place + (name.endswith(".csv")) for place in (1, 2, 3)]
        for row in rows:
            logprobs = row["predictions"][0]["logprobs"]
            assert row["answer"] == ("no", "yes")[logprobs.index(max(logprobs))] and row["error"] is None
    assert main([*words, "--input", write_rows(tmp_path / "bad.jsonl", [{"text": "a"}])]) == 2
    assert "no field 'input' among 'text'" in capsys.readouterr().err


def test_every_kind_of_answer(models, tmp_path: Path, capsys) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "سیب", "id": "a"}, {"prompt": "pear is", "id": "b"}])
    out = tmp_path / "out.jsonl"

    def predicted(name: str, model: str, *words: str) -> list[dict]:
        capsys.readouterr()
        command = ["predict", "--model", models[model], "--store", str(tmp_path / f"{name}.db"), *FAST]
        assert main([*command, "--output", str(out), *words]) == 0, capsys.readouterr().err
        rows = read(out)
        assert [row["id"] for row in rows] == ["a", "b"] or "--task" in words
        return rows

    given = ("--input", prompts)
    written = predicted("texts", "plain", *given, "--max-new-tokens", "8", "--stop", "e", "o")
    assert all(row["answer"] == row["predictions"][0]["text"] for row in written)
    assert all(not {"e", "o"} & set(row["answer"]) and len(row["predictions"][0]["tokens"]) <= 8 for row in written)
    drawn = predicted("drawn", "plain", *given, "--samples", "3", "--temperature", "1.5", "--max-new-tokens", "8")
    assert all(len({each["text"] for each in row["predictions"]}) > 1 for row in drawn)
    assert (
        predicted("drawn", "plain", *given, "--samples", "3", "--temperature", "1.5", "--max-new-tokens", "8") == drawn
    )
    more = predicted("drawn", "plain", *given, "--samples", "4", "--temperature", "1.5", "--max-new-tokens", "8")
    assert [row["predictions"][:3] for row in more] == [row["predictions"] for row in drawn]
    scored = predicted("scored", "plain", *given, "--options", " red", " green", " a")
    assert all(row["answer"] in (" red", " green", " a") for row in scored)
    embedded = predicted("embedded", "plain", *given, "--kind", "embed")
    assert all(math.hypot(*row["predictions"][0]["values"]) == pytest.approx(1) for row in embedded)
    assert all(row["answer"] is None for row in embedded)
    labelled = predicted("labelled", "head", *given)
    assert all(row["answer"] in ("no", "yes") and len(row["predictions"][0]["values"]) == 2 for row in labelled)
    told = predicted("told", "head", "--task", make_task(tmp_path / "told"))
    assert all(row["answer"] in ("no", "yes") for row in told) and len(told) == 5
    number = predicted("number", "number", "--task", make_task(tmp_path / "number", "regression"))
    assert all(float(row["answer"]) == pytest.approx(row["predictions"][0]["values"][0], rel=1e-4) for row in number)
    assert main(["lookup", str(tmp_path / "number.db"), "test سؤال 3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == number[3]["answer"]
    said = predicted("said", "plain", "--task", make_task(tmp_path / "said", "regression"))
    assert all("text" in row["predictions"][0] for row in said)
    free = predicted("free", "plain", "--task", make_task(tmp_path / "told"), "--kind", "generate")
    assert all(row["answer"] in ("no", "yes", "") and "text" in row["predictions"][0] for row in free)


def test_model_adapter_quantisation_and_type_make_other_predictions(models, tmp_path: Path, capsys) -> None:
    name = write_rows(tmp_path / "p.jsonl", [{"prompt": "apple"}])
    found, logprobs = [], []
    for number, words in enumerate(
        ([], ["--quantise", "int8"], ["--quantise", "nf4"], ["--dtype", "bfloat16"], ["--adapter", models["adapter"]])
    ):
        out, store = tmp_path / "out.jsonl", tmp_path / f"{number}.db"
        command = ["predict", "--model", models["plain"], "--input", name, "--options", "a", "b", *FAST]
        assert main([*command, "--store", str(store), "--output", str(out), *words]) == 0
        found.append(frozenset(keys(store)))
        logprobs.append(read(out)[0]["predictions"][0]["logprobs"])
    assert len(set(found)) == 5 and len(set(map(tuple, logprobs))) == 5
    assert logprobs[1] == pytest.approx(logprobs[0], abs=0.1) and logprobs[4] != pytest.approx(logprobs[0], abs=0.01)


def test_keys_and_values_in_eight_bits_write_other_predictions(models, tmp_path: Path) -> None:
    name = write_rows(tmp_path / "p.jsonl", [{"prompt": "apple"}])
    command = ["predict", "--model", models["plain"], "--input", name, "--max-new-tokens", "4", *FAST]
    stores = []
    for number, words in enumerate(([], ["--coded-cache", "True"])):
        assert main([*command, "--store", str(tmp_path / f"{number}.db"), *words]) == 0
        stores.append(keys(tmp_path / f"{number}.db"))
    assert len(stores[0] | stores[1]) == 2
    with PredictionStore(tmp_path / "1.db") as store:  # asked online it is the same request of the same engine
        [key] = stores[1]
        asked, payload = asker(store.manifest)("apple")
        assert asked == key and json.loads(json.dumps(payload)) == store.get(key)


@pytest.mark.parametrize("with_task", [True, False])
@pytest.mark.parametrize("kind", ["generate", "score", "classify", "embed"])
def test_every_request_is_of_the_adapter(models, kind: Any, with_task: bool, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task") if with_task else ""
    labels = () if with_task or kind in ("generate", "embed") else ("no", "yes")
    config = PredictionConfig(models["plain"], task=task, kind=kind, options=labels, adapter=models["adapter"])
    engine, adapter = open_engine(config)
    own = open_task(config) if task else None
    how = asking(config, engine, adapter, own)
    [asked] = how.ask([record_of(own, "a", {how.names[0]: "سیب"})])
    assert adapter and not isinstance(asked, UserError) and [request.adapter for request in asked] == [adapter]


@pytest.mark.parametrize("way", ["few_shots", "prompts", "options", "head", "adapter", "quantised"])
def test_a_query_asked_now_is_asked_as_in_bulk(models, way: str, tmp_path: Path) -> None:
    task, store = make_task(tmp_path / "task"), str(tmp_path / "a.db")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "سیب"}, {"prompt": "pear"}])
    queries = write_rows(tmp_path / "q.jsonl", [{"input": "سیب"}, {"input": "pear"}])
    words = {
        "few_shots": ["--task", task, "--input", queries, "--shots", "2", "--seed", "3"],
        "prompts": ["--input", prompts, "--samples", "2", "--temperature", "1", "--stop", "a", "--max-new-tokens", "5"],
        "options": ["--input", prompts, "--options", " a", " b"],
        "head": ["--model", models["head"], "--task", task, "--input", queries],
        "adapter": ["--input", prompts, "--adapter", models["adapter"], "--max-new-tokens", "5"],
        "quantised": ["--input", prompts, "--kind", "embed", "--quantise", "nf4", "--dtype", "bfloat16"],
    }[way]
    model = [] if way == "head" else ["--model", models["plain"]]
    assert main(["predict", *model, "--store", store, *FAST, *words]) == 0
    with PredictionStore(store) as opened:
        ask = asker(opened.manifest)
        for query in ("سیب", "pear"):
            key, payload = ask(query)
            there = opened.get(key)
            assert there is not None and opened.find(query) == there
            if "text" in there:
                assert payload["text"] == there["text"] and list(payload["tokens"]) == there["tokens"]
            for name in there.keys() & {"logprob", "logprobs", "values"}:
                assert payload[name] == pytest.approx(there[name], abs=1e-4)
        assert opened.find("new") is None
        rows = opened.count("predictions")
        payload = lookup(opened, "new", ask)
        assert payload is not None and opened.find("new") == payload and opened.count("predictions") == rows + 1
        for query, message in (
            ("", "empty"),
            ("a\0b", "control character"),
            ("long " * 100, "positions|the model reads"),
        ):
            with pytest.raises(UserError, match=message):
                ask(query)
        with pytest.raises(UserError, match="made with another weights"):
            asker(opened.manifest | {"weights": "w"})
        if way == "prompts":
            with pytest.raises(UserError, match="made with another weights"):
                asker(opened.manifest, models["other"])
            assert asker(opened.manifest | {"model": "gone"}, models["plain"])("pear") == ask("pear")


def test_a_job_file_says_the_same_as_words(models, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    task = make_task(tmp_path / "task")
    (tmp_path / "my_job.py").write_text(
        "from limbeck.experiments.prediction_config import PredictionConfig\n"
        "from limbeck.prompting.config import PromptConfig\n"
        f"config = PredictionConfig(model={models['plain']!r}, task={task!r}, store='a.db', batch_size=8,\n"
        "                          prompt=PromptConfig(shots=1))\n"
        'main = "limbeck.experiments.predicting:run"\n'
    )
    assert main(["predict", "my_job.py", "--dry-run"]) == 0
    assert "a.db: 5 new" in capsys.readouterr().out
    assert main(["predict", "my_job.py"]) == 0
    assert main(["predict", "my_job.py", "--shots", "2"]) == 2
    assert main(["predict", "my_job.py", "--shots", "2", "--store", "b.db"]) == 0
    assert keys("a.db") != keys("b.db")
    assert main(["run", "my_job.py", "--store", "", "--workdir", "runs/mine"]) == 0
    assert keys("runs/mine/predictions.db") == keys("a.db")
    capsys.readouterr()
    assert main(["predict", "quickstart"]) == 2
    assert "quickstart is no prediction job" in capsys.readouterr().err


def test_a_batch_is_answered_line_by_line(models, tmp_path: Path, capsys) -> None:
    def asked(identity, url, body):
        return {"custom_id": identity, "method": "POST", "url": f"/v1/{url}", "body": body}

    rows = [
        b"{",
        asked("a", "completions", {"model": "m", "prompt": "سیب", "max_tokens": 4, "temperature": 0}),
        asked("b", "embeddings", {"input": ["pear", "plum"]}),
        asked("c", "completions", {"prompt": "pear", "max_tokens": 4, "n": 3, "seed": 5}),
        asked("d", "completions", {"prompt": "pear", "max_tokens": 4, "tools": [1]}),
        asked("a", "completions", {"prompt": "again", "max_tokens": 4}),
        asked("e", "completions", {"prompt": "سیب", "max_tokens": 4, "temperature": 0}),
        asked("\ud800", "completions", {"prompt": "plum", "max_tokens": 4}),
        asked("f", "chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        {"prompt": "no line of a batch"},
    ]
    name = tmp_path / "batch.jsonl"
    name.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    store, out = str(tmp_path / "a.db"), tmp_path / "results.jsonl"
    words = ["predict", "--model", models["plain"], "--input", str(name), "--store", store, "--output", str(out), *FAST]
    assert main(words) == 1
    assert "7 new, 0 there already, 1 duplicate, 5 refused" in capsys.readouterr().out
    said = read(out)
    assert [row["custom_id"] for row in said] == [None, "a", "b", "c", "d", "a", "e", "\ud800", "f", None]
    assert [row["response"] and row["response"]["status_code"] for row in said] == [
        *(None, 200, 200, 200, 400, None, 200, 200, 400, None),
    ]
    bodies: list[Any] = [row["response"] and row["response"]["body"] for row in said]
    assert bodies[1]["choices"] == bodies[6]["choices"] and bodies[1]["model"] == "m"
    assert len(bodies[2]["data"]) == 2 and len(bodies[3]["choices"]) == 3
    assert "has no chat template" in bodies[8]["error"]["message"]
    first = out.read_bytes()
    assert main(words) == 1
    assert "0 new, 7 there already, 1 duplicate, 5 refused" in capsys.readouterr().out
    assert out.read_bytes() == first
    with PredictionStore(store, read_only=True) as opened:
        found = opened.find("سیب")
        assert found and found["text"] == bodies[1]["choices"][0]["text"]
        with pytest.raises(UserError, match="does not say how a query is asked"):
            asker(opened.manifest)
    for changed, message in (
        (["--max-new-tokens", "5"], "max_new_tokens None, not 5"),
        (["--kind", "embed"], "leave out"),
    ):
        assert main([*words, *changed]) == 2
        assert message in capsys.readouterr().err
