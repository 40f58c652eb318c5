"""From rows to records: kinds of answer, a description from Python, bad rows left out, and where each row stood."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.tasks.sources import load_task
from limbeck.tasks.tables import OnBadRow
from limbeck.tasks.task import Task, number_text

PAIRS = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 4} for i in range(30)]
MOODS = [{"text": f"line {i}", "moods": ["joy", "anger", "fear"][: i % 4]} for i in range(12)]
MOODS_SAID = {"kind": "multi_label", "input": "text", "output": "moods"}
FRUITS = [{"input": f"fruit {i}", "output": f"class {i}"} for i in range(10)]


def write(path: Path, rows: Sequence[dict | str]) -> Path:
    """The rows as JSONL; a string is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused(path: Path, *parts: str, description: dict | None = None, on_bad_row: OnBadRow = "error") -> None:
    """Loading it is a UserError of one line with each of `parts` in it."""
    with pytest.raises(UserError) as error:
        load_task(path, description=description, on_bad_row=on_bad_row)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def records(task: Task) -> list[dict[str, str]]:
    return [record for split in task.splits.values() for record in split]


# Regression


def test_scores_of_pairs_are_a_regression(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "pairs.jsonl", PAIRS))
    assert (task.kind, task.options, task.metric) == ("regression", None, "pearson")
    found = {task.query(record): task.number(record) for record in records(task)}
    assert found == {f"{row['sentence1']}\n{row['sentence2']}\nscore:": row["score"] for row in PAIRS}


def test_a_described_regression(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": value} for i, value in enumerate([5.0, "4.25", 3, -0.0, 1e-7, "۲٫۵"[:1]])]
    file = write(tmp_path / "r.jsonl", rows)
    task = load_task(file, description={"kind": "regression", "metric": "mse"})
    answers = {record["text"]: task.answer(record) for record in records(task)}
    assert answers == {"t 0": "5", "t 1": "4.25", "t 2": "3", "t 3": "0", "t 4": "1e-07", "t 5": "2"}
    assert task.metric == "mse"
    assert load_task(file).kind == "generation"


def test_a_number_in_32_bits_is_as_short_as_it_was_written(tmp_path: Path) -> None:
    scores = pa.array([3.8, None, 0.1], pa.float32())
    texts = ["a", "b", "c"]
    pq.write_table(
        pa.table({"text": texts, "score": scores, "half": scores.cast(pa.float16())}), tmp_path / "s.parquet"
    )
    task = load_task(tmp_path / "s.parquet", on_bad_row="skip")
    assert {record["text"]: record["score"] for record in records(task)} == {"a": "3.8", "c": "0.1"}
    assert len(task.skipped) == 1 and "row 2: 'score' is None" in task.skipped[0]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_shortest_text_reads_back_the_same(number: float) -> None:
    assert float(number_text(number)) == number
    assert len(number_text(number)) <= len(repr(number))


@pytest.mark.parametrize(
    "value",
    ["good", "nan", "inf", "1e999", "1_000", "", " ", None, [1.0], True, {"a": 1}, 10**400],
    ids=lambda value: repr(value)[:9],
)
def test_what_is_no_number_is_named(tmp_path: Path, value: object) -> None:
    file = write(tmp_path / "p.jsonl", [*PAIRS[:3], {**PAIRS[3], "score": value}, *PAIRS[4:]])
    refused(file, f"{file}, row 4")


def test_a_regression_has_no_options(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", PAIRS)
    refused(file, "has options", description={"kind": "regression", "options": ["0", "1"]})
    refused(file, "metric 'accuracy'", "pearson", description={"metric": "accuracy"})


# Multi-label


def test_labels_from_a_list_or_text(tmp_path: Path) -> None:
    expected = {row["text"]: set(row["moods"]) for row in MOODS}
    with open(tmp_path / "moods.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "moods"), *((r["text"], ", ".join(r["moods"]) or "none") for r in MOODS)])
    pq.write_table(pa.Table.from_pylist(MOODS), tmp_path / "moods.parquet")
    tasks = [load_task(write(tmp_path / "moods.jsonl", MOODS), description=MOODS_SAID)]
    tasks += [load_task(tmp_path / name, description=MOODS_SAID) for name in ("moods.csv", "moods.parquet")]
    for task in tasks:
        assert (task.kind, task.metric) == ("multi_label", "micro_f1")
        assert task.options == ("anger", "fear", "joy")
        assert {record["text"]: set(task.labels(record)) for record in records(task)} == expected
        texts = {task.answer(record) for record in records(task)}
        assert texts <= {"none", "joy", "anger, joy", "anger, fear, joy"}
    assert {split: records for split, records in tasks[0].splits.items()} == tasks[2].splits


def test_described_options_give_the_order(tmp_path: Path) -> None:
    file = write(tmp_path / "moods.jsonl", MOODS)
    task = load_task(file, description={**MOODS_SAID, "options": ("joy", "fear", "anger", "awe")})
    assert {task.answer(record) for record in records(task)} == {"none", "joy", "joy, anger", "joy, fear, anger"}
    assert {task.labels(record) for record in records(task)} >= {(), ("joy", "fear", "anger")}


@pytest.mark.parametrize(
    ("moods", "options", "parts"),
    [
        (["joi"], ["joy", "anger", "fear"], ["row 13", "'joi'", "did you mean 'joy'"]),
        ("joy, joi", ["joy", "anger", "fear"], ["row 13", "'joi'"]),
        (["joy", 2], ["joy", "anger", "fear"], ["row 13", "'2'"]),
        (["joy", ["fear"]], None, ["row 13", "['fear']"]),
        (["joy", None], None, ["row 13", "None"]),
        (["a, b"], None, ["row 13", "'a, b' cannot be one label"]),
        (["none"], None, ["row 13", "'none' cannot be one label"]),
        ([""], None, ["row 13", "empty"]),
        ("", None, ["row 13", "'moods' is empty"]),
        ({"joy": 1}, None, ["row 13"]),
        (["joy"], ["joy", "none"], ["'none' cannot be one label"]),
        (["joy"], ["joy", "anger", "joy"], ["each listed once"]),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, moods: object, options: list | None, parts: list[str]) -> None:
    file = write(tmp_path / "moods.jsonl", [*MOODS, {"text": "last", "moods": moods}])
    refused(file, *parts, description={**MOODS_SAID, **({"options": options} if options else {})})


# Classification by word


def test_a_kind_says_what_cannot_be_guessed(tmp_path: Path) -> None:
    rows = [{"text": f"query {i}", "label": f"intent {i % 30:02}"} for i in range(300)]
    file = write(tmp_path / "intents.jsonl", rows)
    assert load_task(file).kind == "generation"
    task = load_task(file, description={"kind": "classification"})
    assert task.kind == "classification" and task.options is not None and len(task.options) == 30
    few = write(tmp_path / "few.jsonl", [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(99)])
    assert (load_task(few).kind, load_task(few, description={"kind": "generation"}).kind) == (
        "classification",
        "generation",
    )


def test_a_column_of_floats_is_no_classification(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i / 7} for i in range(99)]
    assert load_task(write(tmp_path / "f.jsonl", rows)).options is None


# A description from Python


def test_a_description_goes_before_the_folders(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{**row, "label": "ab"[i % 2]} for i, row in enumerate(PAIRS)])
    (tmp_path / "task.json").write_text('{"output": "label", "template": {"query": "{sentence1}:"}}')
    assert load_task(tmp_path).template.query == "{sentence1}:"
    task = load_task(tmp_path, description={"output": "score", "kind": "regression"})
    assert (task.kind, task.answer_field, task.template.query) == ("regression", "score", "{sentence1}:")


@pytest.mark.parametrize(
    ("description", "parts"),
    [
        ({"knd": "regression"}, ["key in description: 'knd'", "did you mean 'kind'"]),
        ({"kind": "regresion"}, ["kind in description: 'regresion'", "did you mean 'regression'"]),
        ({"kind": ["regression"]}, ["'kind'", "must be a string"]),
        ({"options": 3}, ["description: 'options' is 3: it must be a list or a string"]),
        ({"splits": {"train": "x"}}, ["'splits' goes with a folder"]),
        ({"tfds": "x"}, ["'tfds' goes with a folder"]),
    ],
)
def test_a_description_from_python_is_checked(tmp_path: Path, description: dict, parts: list[str]) -> None:
    refused(write(tmp_path / "p.jsonl", PAIRS), *parts, description=description)


def test_the_world_needs_no_description() -> None:
    refused(Path("world"), "describes itself", description={"kind": "classification"})


# Bad rows left out


def test_bad_rows_are_left_out_and_listed(tmp_path: Path) -> None:
    bad = [
        '{"input": "a", "output": "b"',
        '["a"]',
        '{"input": "a"}',
        '{"input": " ", "output": "b"}',
        '{"input": ["a"], "output": "b"}',
        "",
        '{"id": "train/1", "input": "a", "output": "b"}',
        '{"input": "a", "output": "x\\ny"}',
    ]
    write(tmp_path / "train.jsonl", [FRUITS[0], *bad, *FRUITS[1:]])
    write(tmp_path / "test.jsonl", FRUITS)
    (tmp_path / "test.jsonl").write_bytes(
        (tmp_path / "test.jsonl").read_bytes() + b'{"input": "\xff", "output": "b"}\n'
    )
    task = load_task(tmp_path, on_bad_row="skip")
    assert [record["id"] for record in task.splits["train"]] == ["train/1", *(f"train/{i}" for i in range(10, 19))]
    assert [record["input"] for record in task.splits["test"]] == [row["input"] for row in FRUITS]
    places = [f"{tmp_path / 'train.jsonl'}, row {row}" for row in range(2, 10)]
    places.append(f"{tmp_path / 'test.jsonl'}, row 11")
    for place in places:
        assert sum(place + end in line for line in task.skipped for end in (" ", ":")) == 1, place
    assert len(task.skipped) == len(places)
    clean = tmp_path / "clean"
    clean.mkdir()
    write(clean / "train.jsonl", [{"id": record["id"], **record} for record in task.splits["train"]])
    write(clean / "test.jsonl", FRUITS)
    again = load_task(clean)
    assert again.splits == task.splits and again.skipped == ()


def test_a_label_outside_the_options_is_left_out(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": "ab"[i % 2]} for i in range(60)]
    file = write(tmp_path / "d.jsonl", [*rows, {"text": "odd", "label": "c"}])
    task = load_task(file, description={"options": ["a", "b"]}, on_bad_row="skip")
    assert len(records(task)) == 60
    assert len(task.skipped) == 1 and "row 61" in task.skipped[0] and "'c'" in task.skipped[0]


@pytest.mark.parametrize("good", [0, 4])
def test_too_many_bad_rows_are_an_error(tmp_path: Path, good: int) -> None:
    write(tmp_path / "train.jsonl", FRUITS)
    test = write(tmp_path / "test.jsonl", [*FRUITS[:good], *({"input": "a"} for _ in range(5))])
    refused(tmp_path, str(test), f"5 of {good + 5} rows are bad", f"row {good + 1}", on_bad_row="skip")
    write(test, [*FRUITS[:5], *({"input": "a"} for _ in range(5))])
    assert len(load_task(tmp_path, on_bad_row="skip").skipped) == 5


def test_csv_that_has_lost_its_quotes_is_never_skipped(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("input,output\n" + "a,b\n" * 9 + 'c,"d\n' + "e,f\n" * 9)
    refused(file, "row 11", "malformed CSV", on_bad_row="skip")


def test_an_unknown_way_with_bad_rows(tmp_path: Path) -> None:
    refused(write(tmp_path / "d.jsonl", FRUITS), "'ignore'", "error, skip", on_bad_row="ignore")  # type: ignore


def test_places_name_file_and_row(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", [{"id": f"key {i}", **row} for i, row in enumerate(FRUITS)])
    task = load_task(file)
    assert {record["id"]: task.place(record) for record in records(task)} == {
        f"key {i}": f"{file}, row {i + 1}" for i in range(10)
    }
    moved = load_task(write(tmp_path / "other.jsonl", [{"id": f"key {i}", **row} for i, row in enumerate(FRUITS)]))
    assert moved.splits == task.splits and moved.places != task.places
    other = Task("data", moved.splits, moved.template, None, places=moved.places, skipped=("a line",))
    assert other == task and other.digest() == task.digest()
    assert task.place({"id": "written/1"}) == "task 'data', record 'written/1'"


LINES = st.lists(st.sampled_from(["good", "bad"]), min_size=1, max_size=12)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES)
def test_skipping_keeps_exactly_the_good_rows(tmp_path: Path, lines: list[str]) -> None:
    write(tmp_path / "test.jsonl", FRUITS)
    rows = [
        {"input": f"q {i}", "output": "x"} if line == "good" else {"input": f"q {i}"} for i, line in enumerate(lines)
    ]
    write(tmp_path / "train.jsonl", rows)
    good, said = lines.count("good"), {"input": "input", "output": "output"}
    if good < math.ceil(len(lines) / 2):
        refused(tmp_path, "rows are bad", description=said, on_bad_row="skip")
        return
    task = load_task(tmp_path, description=said, on_bad_row="skip")
    kept = [record["input"] for record in task.splits["train"]]
    assert kept == [f"q {i}" for i, line in enumerate(lines) if line == "good"]
    assert len(task.skipped) == len(lines) - good


# Real data


@pytest.mark.shared
def test_real_kinds(shared_data: Path) -> None:
    pairs = load_task(shared_data / "stsb")
    assert pairs.kind == "regression"
    assert {split: len(records) for split, records in pairs.splits.items()} == {
        "train": 5749,
        "validation": 1500,
        "test": 1379,
    }
    lines = (shared_data / "stsb" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert [pairs.number(record) for record in pairs.splits["test"]] == [json.loads(line)["score"] for line in lines]
    template = {"query": "{sentence1}\n{sentence2}\nscore:"}
    described = load_task(
        shared_data / "stsb", description={"kind": "regression", "output": "score", "template": template}
    )
    assert described.digest() == pairs.digest()
    intents = load_task(shared_data / "banking77", description={"kind": "classification"})
    assert intents.options is not None and len(intents.options) == 77
    news = load_task(
        shared_data / "ag_news_7600", description={"template": {"query": "{title}\n{text}\nlabel:"}}, on_bad_row="skip"
    )
    assert news.options == ("Business", "Sci/Tech", "Sports", "World") and news.skipped == ()
    assert news.place(news.splits["test"][6]) == f"{shared_data / 'ag_news_7600' / 'test.jsonl'}, row 7"


# Why an answer is right


def test_a_reason_is_kept_where_a_row_has_one(tmp_path: Path) -> None:
    rows = [{**row, **({"why": f" چون {i}\n"} if i % 2 else {})} for i, row in enumerate(FRUITS)]
    said = {"input": "input", "output": "output", "rationale": "why"}
    task, plain = (load_task(write(tmp_path / "f.jsonl", rows), description=each) for each in (said, None))
    assert task.rationale_field == "why" and plain.rationale_field is None
    kept = {record["input"]: record.get("why") for record in records(task)}
    assert kept == {row["input"]: row.get("why") for row in rows}
    assert not any("why" in record for record in records(plain))
    assert task.digest() != plain.digest()
    refused(tmp_path / "f.jsonl", "no field 'wyh' for 'rationale'", "'why'?", description={**said, "rationale": "wyh"})
    refused(tmp_path / "f.jsonl", "asked or answers already", description={**said, "rationale": "output"})


def test_a_field_is_read_back_into_its_parts(tmp_path):
    rows = [
        {"question": f"{n} + {n}?", "answer": f"{n} and {n} is\n#### so\n#### {2 * n}"} for n in range(8)
    ]  # the last mark counts
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    said = {
        "output": "final",
        "parts": {"answer": "{steps}\n#### {final}"},
        "template": {"query": "{question}", "target": " {steps}\n#### {final}", "separator": "\n\n"},
    }
    task = load_task(tmp_path / "f.jsonl", description=said)
    record = task.splits["train"][0]
    n = int(record["question"].split()[0])
    assert record["steps"] == f"{n} and {n} is\n#### so" and task.answer(record) == str(2 * n)
    assert task.target(record) == f" {rows[n]['answer']}"
    rows[3]["answer"] = "six"
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    refused(tmp_path / "f.jsonl", "row 4: 'answer' is 'six', not of the form '{steps}", description=said)
    left = load_task(tmp_path / "f.jsonl", description=said, on_bad_row="skip")
    assert sum(map(len, left.splits.values())) == 7 and "row 4" in left.skipped[0]
    mistyped = {**said, "parts": {"anwser": "{a} {b}"}}
    refused(tmp_path / "f.jsonl", "no field 'anwser'", "'answer'?", description=mistyped)
    refused(tmp_path / "f.jsonl", "cannot be read back", description={**said, "parts": {"answer": "{a}{b}"}})
    rows[3]["answer"] = "one\n\nbreak\n#### 6"
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    refused(tmp_path / "f.jsonl", "row 4: 'steps' is 'one", "holds the separator", description=said)
    assert "row 4" in load_task(tmp_path / "f.jsonl", description=said, on_bad_row="skip").skipped[0]
    taken = {**said, "parts": {"answer": "{question} {final}"}}
    refused(tmp_path / "f.jsonl", "has a field 'question' already", description=taken)
