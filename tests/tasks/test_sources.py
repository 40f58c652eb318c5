"""Tasks from files, folders and TFDS: the records of every format, and one line for every mistake."""

import csv
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.model.errors import UserError
from limbeck.tasks import readers
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

FRUITS = [{"input": f"fruit {i}", "output": f"class {i}"} for i in range(10)]
REVIEWS = [{"text": f"review {i}", "label": ("bad", "good")[i % 2]} for i in range(60)]


def write(path: Path, rows: list[dict]) -> Path:
    """The rows in the format that the path's ending names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def describe(folder: Path, **description: object) -> Path:
    (folder / "task.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def refused(path: Path | str, *parts: str) -> None:
    """Loading it is a UserError of one line with each of `parts` in it."""
    with pytest.raises(UserError) as error:
        load_task(path)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def texts(task: Task) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [(task.query(record), task.answer(record)) for record in records]
        for split, records in task.splits.items()
    }


ENDINGS = [".jsonl", ".csv", ".parquet"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_task(tmp_path: Path, ending: str) -> None:
    hostile = [
        {"input": 'a "quoted", comma\nand a line', "output": "خرما"},
        {"input": "سیب\u200cزمینی", "output": "{__class__}"},
        {"input": "line\u2028separator\x85", "output": "0"},
        {"input": " kept ", "output": " stripped "},
    ]
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}{ending}", [*FRUITS, *hostile])
    task = load_task(tmp_path)
    expected = [(f"{row['input']}:", row["output"].strip()) for row in [*FRUITS, *hostile]]
    assert texts(task) == dict.fromkeys(("train", "validation", "test"), expected)
    assert task.name == tmp_path.name
    assert task.template == Template()
    assert (task.options, task.metric, task.answer_field) == (None, "accuracy", "output")


def test_ids_are_split_and_row(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", FRUITS[:3])
    write(tmp_path / "test.csv", FRUITS[3:5])
    task = load_task(tmp_path)
    assert [record["id"] for record in task.splits["train"]] == ["train/1", "train/2", "train/3"]
    assert [record["id"] for record in task.splits["test"]] == ["test/2", "test/3"]  # row 1 is the header


def test_ids_of_their_own(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", [{"id": i, **row} for i, row in enumerate(FRUITS)])
    records = [record for split in load_task(file).splits.values() for record in split]
    assert sorted(record["id"] for record in records) == [str(i) for i in range(10)]


def test_a_byte_order_mark_and_windows_lines_are_no_trouble(tmp_path: Path) -> None:
    for ending in (".jsonl", ".csv"):
        plain = write(tmp_path / f"plain{ending}", FRUITS)
        windows = tmp_path / f"windows{ending}"
        windows.write_bytes(b"\xef\xbb\xbf" + re.sub(rb"\r?\n", b"\r\n", plain.read_bytes()) + b"\r\n")
        assert texts(load_task(windows)) == texts(load_task(plain))


def test_numbers_and_truth_values_become_text(tmp_path: Path) -> None:
    rows = [{"input": 7, "output": True}, {"input": 1.5, "output": 0}, {"input": -3, "output": False}]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.parquet", [{"input": 7, "output": 1}])
    assert texts(load_task(tmp_path)) == {
        "train": [("7:", "true"), ("1.5:", "0"), ("-3:", "false")],
        "test": [("7:", "1")],
    }


# What is held out


def test_a_fifth_is_held_out_by_content(tmp_path: Path) -> None:
    rows = [{"input": f"fruit {i}", "output": f"class {i}"} for i in range(100)]
    task = load_task(write(tmp_path / "data.jsonl", rows))
    assert (len(task.splits["train"]), len(task.splits["test"])) == (80, 20)
    turned = load_task(write(tmp_path / "turned.csv", rows[::-1]))
    assert {split: set(pairs) for split, pairs in texts(turned).items()} == {
        split: set(pairs) for split, pairs in texts(task).items()
    }


def test_no_question_is_on_both_sides(tmp_path: Path) -> None:
    rows = [{"input": f"fruit {i % 10}", "output": f"class {i}"} for i in range(60)]
    both = texts(load_task(write(tmp_path / "data.jsonl", rows)))
    assert not {query for query, _ in both["train"]} & {query for query, _ in both["test"]}
    refused(write(tmp_path / "one.jsonl", [FRUITS[0]] * 9), "one.jsonl", "one question only")


# Templates and options


def test_a_classification_is_guessed(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", REVIEWS)
    write(tmp_path / "test.jsonl", REVIEWS[:5])
    task = load_task(tmp_path)
    assert task.options == ("bad", "good")
    assert task.answer_field == "label"
    prompt = task.prompt(task.splits["test"][1], task.splits["train"][:1])
    assert prompt + task.target(task.splits["test"][1]) == "review 0\nlabel: bad\n\nreview 1\nlabel: good"


@pytest.mark.parametrize(
    ("rows", "test"),
    [
        (REVIEWS[:49], REVIEWS[:2]),  # too few rows to say
        ([{"text": str(i), "label": str(i % 21)} for i in range(99)], REVIEWS[:0]),  # too many values
        (REVIEWS, [{"text": "so-so", "label": "mixed"}]),  # the test has others
    ],
)
def test_no_options_are_guessed(tmp_path: Path, rows: list[dict], test: list[dict]) -> None:
    write(tmp_path / "train.jsonl", rows)
    if test:
        write(tmp_path / "test.jsonl", test)
    assert load_task(tmp_path).options is None


def test_other_fields_are_left_out(tmp_path: Path) -> None:
    rows = [{"title": None, "tags": [1], **row} for row in REVIEWS]
    task = load_task(write(tmp_path / "news.jsonl", rows))
    assert set(task.splits["train"][0]) == {"id", "text", "label"}


def test_a_description_names_the_fields(tmp_path: Path) -> None:
    rows = [{"Review Text": f"review {i}", "stars": i % 5, "shop": "a"} for i in range(10)]
    write(tmp_path / "reviews.csv", rows)
    describe(tmp_path, input="Review Text", output="stars", options="from_train", group="shop", metric="macro_f1")
    task = load_task(tmp_path / "reviews.csv")
    assert task.name == "reviews"
    assert task.options == tuple(sorted({record["stars"] for record in task.splits["train"]}))
    assert (task.metric, task.group_field) == ("macro_f1", "shop")
    record = task.splits["test"][0]
    assert task.prompt(record) == f"{record['Review Text']}\nstars:"


def test_a_description_writes_the_template(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "same": ("no", "yes")[i % 2]} for i in range(6)]
    write(tmp_path / "pairs.jsonl", rows)
    write(tmp_path / "held.jsonl", rows[:2])
    template = {"query": "{sentence1}\n{sentence2}\nsame:", "instruction": "The same?"}
    splits = {"train": "pairs.jsonl", "test": "held.jsonl"}
    describe(tmp_path, output="same", template=template, options=["no", "yes"], splits=splits)
    for path in (tmp_path, tmp_path / "task.json"):
        task = load_task(path)
        assert task.name == tmp_path.name
        assert task.options == ("no", "yes")
        assert task.prompt(task.splits["test"][1], task.splits["train"][:1]) == (
            "The same?\n\na 0\nb 0\nsame: no\n\na 1\nb 1\nsame:"
        )


def test_the_world_is_built_in() -> None:
    assert load_task("world").name == "world"


# Mistakes


def test_an_answer_outside_the_options_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", REVIEWS)
    write(tmp_path / "test.jsonl", [*REVIEWS[:3], {"text": "hm", "label": "goood"}])
    describe(tmp_path, options=["bad", "good"])
    refused(tmp_path, str(tmp_path / "test.jsonl"), "row 4", "'goood'", "one of bad, good", "did you mean 'good'")
    describe(tmp_path, options="from_train")
    refused(tmp_path, str(tmp_path / "test.jsonl"), "row 4", "'goood'")


def test_an_id_may_stand_once(tmp_path: Path) -> None:
    rows = [{"id": 1, **FRUITS[0]}]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    refused(tmp_path, str(tmp_path / "test.jsonl"), "row 1", "id '1'", str(tmp_path / "train.jsonl"))


def test_an_unknown_name_gets_the_legal_ones(tmp_path: Path) -> None:
    refused(
        "wrold",
        "unknown task 'wrold'",
        "'world'",
        "tfds:NAME",
        ".jsonl, .csv, .parquet",
        "did you mean 'world'?",
    )
    write(tmp_path / "fruits.jsonl", FRUITS)
    refused(tmp_path / "fruit.jsonl", "unknown task", f"did you mean {str(tmp_path / 'fruits.jsonl')!r}")
    refused(tmp_path / "no" / "folder", "unknown task")
    refused("x" * 5000, "x" * 5000)
    refused("a\0b", "unknown task")


def test_an_ending_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").write_bytes(b"PK")
    refused(tmp_path / "data.xlsx", "'.xlsx' is none of .jsonl, .csv, .parquet; convert it")


def test_no_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path / "train.jsonl", FRUITS)
    monkeypatch.setattr(readers, "open", denied, raising=False)  # not chmod: root may read everything
    refused(tmp_path, f"cannot read {tmp_path / 'train.jsonl'}: Permission denied; mend that")


def test_a_folder_without_train(tmp_path: Path) -> None:
    refused(tmp_path, "no train split among nothing")
    write(tmp_path / "fruits.jsonl", FRUITS)
    refused(tmp_path, "no train split among fruits.jsonl", "train.jsonl, train.csv, train.parquet", "one file")


def test_a_split_in_two_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", FRUITS)
    write(tmp_path / "train.csv", FRUITS)
    refused(tmp_path, "train.csv and train.jsonl both are the train split")


def test_fields_that_cannot_be_guessed(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "same": "yes"}]
    refused(write(tmp_path / "d.jsonl", rows), "'sentence1', 'sentence2', 'same'", "task.json", '"template"')


@pytest.mark.parametrize(
    ("description", "parts"),
    [
        ({"imput": "text"}, ["'imput'", "did you mean 'input'"]),
        ({"input": "txet", "output": "label"}, ["row 1", "no field 'txet'", "did you mean 'text'"]),
        ({"input": 7}, ["'input' is 7: it must be a string"]),
        ({"options": {}}, ["must be a list or a string"]),
        ({"options": [1]}, ["'options' must hold strings only"]),
        ({"options": []}, ["'options' is empty: fill it in or leave it out"]),
        ({"options": "form_train"}, ["'form_train'", "did you mean 'from_train'"]),
        ({"template": {"quary": "{text}:"}}, ["'quary'", "did you mean 'query'"]),
        ({"template": {"query": "{text} "}}, ["ends in white space"]),
        ({"template": {"query": "{txt}:"}}, ["row 1", "no field 'txt'", "did you mean 'text'"]),
        ({"template": {"target": " {text}"}}, ["lacks the answer: add {label}"]),
        ({"splits": {"dev": "train.jsonl"}}, ["'dev'", "train, validation, test"]),
        ({"splits": {"train": "tarin.jsonl"}}, ["no file 'tarin.jsonl'", "did you mean 'train.jsonl'"]),
        ({"splits": {"train": "../train.jsonl"}}, ["no file '../train.jsonl'"]),
        ({"splits": {"train": "/etc/passwd"}}, ["no file '/etc/passwd'"]),
        ({"splits": {"test": "train.jsonl"}}, ["no train split"]),
        ({"metric": "f1"}, ["unknown metric 'f1'", "macro_f1"]),
        ({"group": "shop"}, ["train.jsonl, row ", "no field 'shop'"]),
        ([], ["must be one JSON object"]),
    ],
)
def test_a_description_is_checked(tmp_path: Path, description: object, parts: list[str]) -> None:
    write(tmp_path / "train.jsonl", REVIEWS)
    (tmp_path / "task.json").write_text(json.dumps(description))
    refused(tmp_path, *parts)


def test_a_malformed_description_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", REVIEWS)
    for content in (b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "task.json").write_bytes(content)
        refused(tmp_path, str(tmp_path / "task.json"), "one JSON object in UTF-8")


# Real data


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "sizes", "options", "query"),
    [
        ("sms_spam", (4000, 500, 1074), ("ham", "spam"), "{text}\nlabel:"),
        ("sst2", (6920, 872, 1821), ("negative", "positive"), "{text}\nlabel:"),
        ("ag_news_7600", (5600, 1000, 1000), ("Business", "Sci/Tech", "Sports", "World"), "{text}\nlabel:"),
        ("banking77", (10003, 0, 3080), None, "{text}\nlabel:"),
        ("in_context_tasks/country-capital.jsonl", (158, 0, 39), None, "{input}:"),
    ],
)
def test_real_data(
    shared_data: Path, name: str, sizes: tuple[int, ...], options: tuple[str, ...] | None, query: str
) -> None:
    task = load_task(shared_data / name)
    assert tuple(len(task.splits.get(split, ())) for split in ("train", "validation", "test")) == sizes
    assert task.options == options
    assert task.template.query == query


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gsm8k", "e2e_nlg", "in_context_tasks", "tinyshakespeare/input.txt"])
def test_real_data_that_needs_a_word(shared_data: Path, name: str) -> None:
    refused(shared_data / name, name)


@pytest.mark.shared
def test_banking_by_description(shared_data: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").symlink_to(shared_data / "banking77" / f"{split}.jsonl")
    options = load_task(describe(tmp_path, options="from_train")).options
    assert options is not None and len(options) == 77
