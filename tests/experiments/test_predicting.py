"""`limbeck predict`: every source of queries, every kind of answer, poisoned rows, and the same asked online."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.experiments.asking import asking, open_engine, record_of
from limbeck.experiments.cli import main
from limbeck.experiments.predicting import asker
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.queries import open_task
from limbeck.inference.engine import Engine
from limbeck.inference.lookup import lookup
from limbeck.inference.store import PredictionStore
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.train.adapters import add_lora
from limbeck.train.heads import add_head
from limbeck.train.peft_format import save_adapter

CONFIG = ModelConfig(
    vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=128
)
FAST = ["--batch-size", "8"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Tiny models with random parameters, over bytes: "plain", "other", and with a "head" for labels or a "number"."""
    folder = tmp_path_factory.mktemp("models")
    params = init(CONFIG, jax.random.key(0))
    made = {"plain": (CONFIG, params), "other": (CONFIG, init(CONFIG, jax.random.key(1)))}
    made["head"] = add_head(CONFIG, params, ("no", "yes"), jax.random.key(1))
    made["number"] = add_head(CONFIG, params, ("output",), jax.random.key(1))
    for name, (config, own) in made.items():
        save_pretrained(folder / name, config, own, byte_tokenizer())
    lora = add_lora(params, jax.random.key(2), rank=2)
    lora = {path: leaf + (path.endswith("lora_b") and 0.5) for path, leaf in lora.items()} | params
    save_adapter(folder / "adapter", CONFIG, params, lora)
    return {name: str(folder / name) for name in (*made, "adapter")}


def write_rows(path: Path, rows: list) -> str:
    path.parent.mkdir(exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def make_task(folder: Path, kind: str = "classification") -> str:
    """A task of ten solved records and five to answer, in a folder."""
    answers = {"classification": ["no", "yes"], "generation": [f"answer {i}" for i in range(9)], "regression": [1, 2.5]}
    chosen = answers[kind]
    for split, count in (("train", 10), ("test", 5)):
        rows = [{"input": f"{split} سؤال {i}", "output": chosen[i % len(chosen)]} for i in range(count)]
        write_rows(folder / f"{split}.jsonl", rows)
    (folder / "task.json").write_text(json.dumps({"input": "input", "output": "output", "kind": kind}))
    return str(folder)


def read(path: Path | str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def keys(path: Path | str) -> set[str]:
    with PredictionStore(path, read_only=True) as store:
        return {key for key, _, _ in store.rows()}


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "p.jsonl", "--shots", "2"], "prompt.shots: a prompt is continued here, without a task"),
        (["--input", "p.jsonl", "--kind", "embed", "--temperature", "0.5"], "temperature: a text is embedded"),
        (["--task", "task", "--temperature", "0.5"], "temperature: options are compared"),
        (["--task", "task", "--options", "a"], "options: options are compared"),
        (["--task", "task", "--coded-cache", "True"], "coded_cache: options are compared"),
        (["--input", "p.jsonl", "--kind", "score"], "no options to choose from"),
        (["--input", "p.jsonl", "--kind", "regress"], "the model has no head"),
        (["--task", "task", "--kind", "classify", "--samples", "2"], "set kind='generate'"),
        (["--task", "task", "--view", "per_token"], "a store keeps the log-likelihood"),
        (["--task", "task", "--prompt.seed", "1"], "say it as --seed"),
        (["--task", "task", "--top-p", "0"], "top_p=0"),
        (["--task", "task", "--samples", "0"], "samples=0: at least 1"),
        (["--task", "task", "--quantise", "int4"], "expected one of"),
        ([], "nothing to predict"),
        (["--input", "p.josnl"], "no input 'p.josnl'; did you mean 'p.jsonl'?"),
        (["--input", "p.txt"], "'.txt' is none of"),
        (["--task", "task", "--model", "none"], "none"),
        (["--task", "task", "--store", ""], "no store is said"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(models, words, message, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_task(tmp_path / "task")
    write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}])
    (tmp_path / "p.txt").write_text("a")
    assert main(["predict", "--model", models["plain"], "--store", "a.db", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_head_answers_what_it_was_made_for_alone(models, tmp_path: Path, capsys) -> None:
    task = make_task(tmp_path / "task", "generation")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "a"}])
    for words in (["--task", task], ["--input", prompts, "--samples", "2"], ["--input", prompts, "--options", "x"]):
        assert main(["predict", "--model", models["head"], "--store", str(tmp_path / "a.db"), *words]) == 2
        assert "the model's head answers no, yes, and" in capsys.readouterr().err


def test_poisoned_rows_are_recorded_and_the_others_answered(models, tmp_path: Path, capsys) -> None:
    rows = [
        {"prompt": "good", "id": "1"},
        {"prompt": ""},
        {"prompt": "x" * 10_000_000},
        {"prompt": "long " * 100},
        {"prompt": "a\u0007b"},
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        {"prompt": "twice", "id": "1"},
        {"prompt": ["a"]},
        {"prompt": None},
        {"text": "a"},
        b"[1]",
        b"{",
        b"",
        {"prompt": 5, "id": 7},
        {"prompt": "می‌روم\tخانه"},
    ]
    name, store, out = write_rows(tmp_path / "p.jsonl", rows), str(tmp_path / "a.db"), tmp_path / "out.jsonl"
    words = ["predict", "--model", models["plain"], "--input", name, "--store", store, "--max-new-tokens", "4", *FAST]
    for attempts in (1, 2):
        assert main([*words, "--output", str(out)]) == 1
        done = capsys.readouterr()
        new, there = (3, 0) if attempts == 1 else (0, 3)
        assert f"{new} new, {there} there already, 0 duplicate, 13 refused" in done.out
        assert max(map(len, done.err.splitlines())) < 2000 and "3 more: limbeck store status" in done.err
        with PredictionStore(store, read_only=True) as opened:
            failures = opened.failures()
            assert len(failures) == 13 and {each["attempts"] for each in failures} == {attempts}
            assert opened.find("می‌روم خانه") and opened.find("5")
    told = read(out)
    assert [row["answer"] is not None for row in told] == [i in (0, 14, 15) for i in range(16)]
    assert [row["id"] for row in told[:3]] == ["1", "2", "3"] and told[14]["id"] == "7"
    for index, reason in (
        (1, "row 2: 'prompt' is empty"),
        (2, "10,000,000 characters"),
        (3, "more than the model's 128 positions"),
        (4, "the control character '\\x07', number 1"),
        (5, "row 6 is not UTF-8"),
        (6, "row 7: 'prompt' is not UTF-8"),
        (7, "the id '1' is that of"),
        (8, "must be text"),
        (9, "must be text"),
        (10, "no field 'prompt'"),
        (11, "no JSON object"),
        (12, "malformed JSON"),
        (13, "is empty"),
    ):
        assert reason in told[index]["error"]["message"], index


def test_records_that_do_not_fit_are_recorded_and_the_others_answered(models, tmp_path: Path, capsys) -> None:
    task = make_task(tmp_path / "task")
    queries = write_rows(tmp_path / "q.jsonl", [{"input": word} for word in ("short", "long " * 30, "brief")])
    store = str(tmp_path / "a.db")
    assert (
        main(["predict", "--model", models["plain"], "--task", task, "--input", queries, "--store", store, *FAST]) == 1
    )
    done = capsys.readouterr()
    assert "2 new, 0 there already, 0 duplicate, 1 refused" in done.out
    [line] = [line for line in done.err.splitlines() if line.startswith("refused: ")]
    assert f"{queries}, row 2: record" in line and "the model has 128 positions" in line


def test_a_dry_run_says_what_a_run_does_and_does_nothing(models, tmp_path: Path, capsys) -> None:
    rows = [{"prompt": f"prompt {i % 9}"} for i in range(12)] + [{"prompt": "long " * 60}] * 2 + [{"prompt": ""}]
    name, store = write_rows(tmp_path / "p.jsonl", rows), str(tmp_path / "a.db")
    words = ["predict", "--model", models["plain"], "--input", name, "--store", store, "--max-new-tokens", "4", *FAST]
    assert main([*words, "--dry-run"]) == 1
    dry = capsys.readouterr()
    assert not Path(store).exists() and sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl"]
    assert "9 new, 0 there already, 4 duplicate, 2 refused" in dry.out
    assert "81 tokens to read and at most 36 beside: about" in dry.out and "FLOPs at half of" in dry.out
    assert "1 refused: a prompt of … tokens and … new ones are more than the model's … positions" in dry.err
    few = write_rows(tmp_path / "few.jsonl", rows[:5])
    assert main([*words[:4], few, *words[5:]]) == 0
    content = Path(store).read_bytes()
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 1
    dry = capsys.readouterr().out
    assert "4 new, 5 there already, 4 duplicate, 2 refused" in dry and "the rate of this store's last run" in dry
    assert Path(store).read_bytes() == content
    assert main(words) == 1
    assert "4 new, 5 there already, 4 duplicate, 2 refused" in capsys.readouterr().out
    assert main([*words, "--dry-run", "--model", models["other"]]) == 2
    assert "was made with weights" in capsys.readouterr().err


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


def test_who_cannot_be_asked_now_is_told_why(models, tmp_path: Path) -> None:
    pairs = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i} for i in range(10)]
    task, store = write_rows(tmp_path / "pairs.jsonl", pairs), tmp_path / "a.db"
    assert main(["predict", "--model", models["plain"], "--task", task, "--store", str(store), *FAST]) == 0
    with PredictionStore(store, read_only=True) as opened:
        with pytest.raises(UserError, match="the fields sentence1, sentence2"):
            asker(opened.manifest)
        write_rows(tmp_path / "pairs.jsonl", pairs[:-1])
        with pytest.raises(UserError, match="made with another task"):
            asker(opened.manifest)
    with pytest.raises(UserError, match="does not say how a query is asked"):
        asker({"weights": "w"})


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


def test_an_interrupted_job_ends_with_the_same_store(models, tmp_path: Path, monkeypatch, capsys) -> None:
    task = make_task(tmp_path / "task", "generation")
    queries = write_rows(tmp_path / "q.jsonl", [{"input": f"query {i * i}"} for i in range(20)])
    words = ["predict", "--model", models["plain"], "--task", task, "--input", queries, *FAST]
    words += ["--shots", "1", "--pick", "fixed"]  # so that all begin alike
    words += ["--samples", "2", "--temperature", "1", "--chunk", "4"]
    assert main([*words, "--store", str(tmp_path / "whole.db")]) == 0
    answers, asked = Engine.answers, []

    def interrupted(engine, requests, only):
        for number, each in enumerate(answers(engine, requests, only)):
            if number == 11:
                raise KeyboardInterrupt
            asked.append(requests[each[0]])
            yield each

    monkeypatch.setattr(Engine, "answers", interrupted)
    store = str(tmp_path / "killed.db")
    for _ in range(3):
        assert main([*words, "--store", store]) == 130
    capsys.readouterr()
    assert main([*words, "--store", store]) == 0
    assert "7 new, 33 there already" in capsys.readouterr().out
    assert len(asked) == len(set(asked)) == 40
    with PredictionStore(store) as one, PredictionStore(tmp_path / "whole.db") as other:
        assert list(one.rows()) == list(other.rows())
        assert list(one.links()) == list(other.links()) and one.manifest == other.manifest


def test_a_second_writer_is_told_before_a_model_is_read(tmp_path: Path, capsys) -> None:
    queries = write_rows(tmp_path / "q.jsonl", [{"prompt": "a"}])
    with PredictionStore(tmp_path / "a.db"):
        words = ["predict", "--model", "no such model", "--input", queries, "--store", str(tmp_path / "a.db")]
        assert main(words) == 2
    assert "is being written by another process" in capsys.readouterr().err
