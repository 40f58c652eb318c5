"""`limbeck predict` where something is wrong: poisoned rows, impossible settings, kills; what a dry run says."""

from pathlib import Path

import pytest
from prediction_files import FAST, make_task, read, write_rows

from limbeck.experiments.cli import main
from limbeck.experiments.predicting import asker
from limbeck.inference.engine import Engine
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError


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
