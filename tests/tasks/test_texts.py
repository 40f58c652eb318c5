"""Text to pretrain on and chats to tune on: the documents of every source, and one line for every mistake."""

import csv
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.tasks.texts import END_OF_TEXT, read_chats, read_texts

STORIES = ["Once upon a time\nthere was a plum.", "روزی روزگاری\u200c", "  kept  ", "a\u2028b\x85c\x0cd"]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "سلام"},
    {"role": "assistant", "content": "درود"},
]


def refused(read, path: Path | str, *parts: str, **options) -> None:
    with pytest.raises(UserError) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def texts(path: Path, **options) -> list[str]:
    return [document.text for document in read_texts(path, **options).documents]


# .txt files


@pytest.mark.parametrize("content", ["one\ntwo\n", "\n\n one \r\n", "a\u2028b\n<|endoftext|> b"])
def test_a_file_is_one_document_to_the_last_character(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content.encode())
    assert texts(file) == [content]
    file.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert texts(file) == [content]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")).filter(str.strip), min_size=2),
    st.sampled_from(["\n", "\r\n"]),
)
def test_documents_are_parted_by_a_line(tmp_path: Path, documents: list[str], end: str) -> None:
    documents = [document for document in documents if document.strip() != END_OF_TEXT]
    file = tmp_path / "stories.txt"
    file.write_bytes(f"{end}{END_OF_TEXT}{end}".join([*documents, ""]).encode())
    expected = [document for document in documents if document.encode().removeprefix(b"\xef\xbb\xbf").strip()]
    found = read_texts(file).documents
    assert [document.text.removeprefix("\ufeff") for document in found] == [e.removeprefix("\ufeff") for e in expected]
    if expected == documents:
        assert [document.row for document in found] == [1 + 2 * i for i in range(len(documents))]


def test_empty_documents_are_none_and_lines_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"{END_OF_TEXT}\nx\ny\n{END_OF_TEXT} \n\n{END_OF_TEXT}\n{END_OF_TEXT}\nz\n\n")
    found = read_texts(file).documents
    assert [(document.text, document.place) for document in found] == [
        ("x\ny", f"{file}, row 2"),
        ("z\n", f"{file}, row 8"),
    ]


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"good\n<|endoftext|>\nfine\n\xff\n<|endoftext|>\ngood too\n")
    refused(read_texts, file, f"{file}, line 4 is not UTF-8")
    kept = read_texts(file, on_bad_row="skip")
    assert [document.text for document in kept.documents] == ["good", "good too"]
    assert len(kept.skipped) == 1 and "line 4" in kept.skipped[0]
    file.write_bytes("سلام".encode("utf-16"))
    refused(read_texts, file, "line 1 is not UTF-8")
    refused(read_texts, file, "1 of 1 rows are bad", on_bad_row="skip")


def test_a_folder_of_text(tmp_path: Path) -> None:
    for name, story in zip("bacd", STORIES, strict=True):
        (tmp_path / f"{name}.txt").write_bytes(story.encode())
    assert texts(tmp_path) == [STORIES[i] for i in (1, 0, 2, 3)]
    refused(read_texts, tmp_path, "no train.txt", split="validation")
    (tmp_path / "train.txt").write_text("train")
    (tmp_path / "validation.txt").write_text("held out")
    assert (texts(tmp_path), texts(tmp_path, split="validation")) == (["train"], ["held out"])
    (tmp_path / "train.jsonl").write_text('{"text": "a"}')
    refused(read_texts, tmp_path, "both are the train split")


# Rows with a field "text"


def test_rows_of_every_format(tmp_path: Path) -> None:
    rows = [{"text": story, "id": i, "other": None} for i, story in enumerate(STORIES)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text",), *((story,) for story in STORIES)])
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        assert texts(tmp_path / name) == STORIES
    assert read_texts(tmp_path / "a.csv").documents[0].place == f"{tmp_path / 'a.csv'}, row 2"


def test_splits_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001.jsonl").write_text('{"text": "train"}\n')
    (tmp_path / "validation.jsonl").write_text('{"text": "held out"}\n')
    (tmp_path / "notes.txt").write_text("about these data")
    assert (texts(tmp_path), texts(tmp_path, split="validation")) == (["train"], ["held out"])
    refused(read_texts, tmp_path, "'test'", "train, validation", split="test")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"txet": "a"}', ["row 2", "no field 'text'", "did you mean 'txet'"]),
        (b'{"text": " "}', ["row 2", "'text' is empty"]),
        (b'{"text": ["a"]}', ["row 2", "'text' is ['a']"]),
        (b'{"text": "\xff"}', ["row 2", "not UTF-8"]),
        (b'{"text": "\\udc00"}', ["row 2", "not UTF-8"]),
        (b'{"text": "a"', ["row 2", "malformed JSON"]),
    ],
)
def test_a_bad_row_is_named_or_left_out(tmp_path: Path, line: bytes, parts: list[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    refused(read_texts, file, str(file), *parts)
    kept = read_texts(file, on_bad_row="skip")
    assert [document.text for document in kept.documents] == ["a", "b"]
    assert len(kept.skipped) == 1 and parts[0] in kept.skipped[0]


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("a")
    refused(read_texts, tmp_path / "storys.txt", "no file or folder", f"did you mean {str(tmp_path / 'stories.txt')!r}")
    refused(read_texts, tmp_path / "stories.txt", "one file", split="test")
    refused(read_texts, tmp_path / "stories.txt", "'dev'", "train, validation, test", split="dev")
    refused(read_texts, tmp_path / "stories.txt", "'ignore'", on_bad_row="ignore")
    (tmp_path / "a.md").write_text("a")
    refused(read_texts, tmp_path / "a.md", "'.md' is none of .txt, .jsonl")
    (tmp_path / "empty.txt").write_text("\n")
    refused(read_texts, tmp_path / "empty.txt", "is empty")
    (tmp_path / "none").mkdir()
    refused(read_texts, tmp_path / "none", "no train split among nothing")
    refused(read_texts, "tfds:no_such_set", "no_such_set")


def test_text_is_held_once(tmp_path: Path) -> None:
    line = "x" * 99 + "\n"
    (tmp_path / "a.txt").write_text(line * 100_000)
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": line, "more": "y" * 400}) + "\n") * 20_000)
    for name, size, copies in (("a.txt", 10e6, 2.8), ("a.jsonl", 2e6, 2.8)):  # lines, and the whole they are joined to
        tracemalloc.start()
        found = read_texts(tmp_path / name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sum(len(document.text) for document in found.documents) == size
        assert peak < copies * size + 3e6


# Chats


def test_chats_of_every_format(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": CHAT[1:]}, {"messages": CHAT[2:]}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        found = read_chats(tmp_path / name)
        assert [chat.messages for chat in found.chats] == [CHAT, CHAT[1:], CHAT[2:]]
        assert [chat.place for chat in found.chats] == [f"{tmp_path / name}, row {row}" for row in (1, 2, 3)]
        assert found.skipped == ()


@pytest.mark.parametrize(
    ("messages", "parts"),
    [
        (CHAT[:2], ["the last message is the user's"]),
        ([], ["[]", "must be a list"]),
        ("hello", ["'hello'", "must be a list"]),
        (None, ["None"]),
        (["hello"], ["message 1", "'hello'"]),
        ([*CHAT[:2], {"role": "asistant", "content": "a"}], ["message 3", "'asistant'", "did you mean 'assistant'"]),
        ([*CHAT[:2], {"role": ["assistant"], "content": "a"}], ["message 3", "the role is ['assistant']"]),
        ([*CHAT[:2], {"content": "a"}], ["message 3", "the role is None"]),
        ([*CHAT[:2], {"role": "assistant"}], ["message 3", "the content is None"]),
        ([*CHAT[:2], {"role": "assistant", "content": " "}], ["message 3", "the content is ' '"]),
        ([*CHAT[:2], {"role": "assistant", "content": [{"text": "a"}]}], ["message 3", "must be text"]),
        ([*CHAT[:2], {"role": "assistant", "content": "\ud800"}], ["message 3", "not UTF-8"]),
    ],
)
def test_a_bad_chat_is_named_or_left_out(tmp_path: Path, messages: object, parts: list[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"messages": given}) for given in (CHAT, messages, CHAT)))
    refused(read_chats, file, f"{file}, row 2", *parts)
    kept = read_chats(file, on_bad_row="skip")
    assert [chat.messages for chat in kept.chats] == [CHAT, CHAT]
    assert len(kept.skipped) == 1 and "row 2" in kept.skipped[0]


def test_no_messages_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"message": []}')
    refused(read_chats, tmp_path / "a.jsonl", "row 1: no field 'messages'", "did you mean 'message'")
    (tmp_path / "a.txt").write_text("a")
    refused(read_chats, tmp_path / "a.txt", "no field 'messages' among 'text'")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(st.characters(codec=None), max_size=3),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["messages", "role", "content"]), inner, max_size=3)
            ),
        ),
        max_size=3,
    )
)
def test_any_rows_are_chats_or_one_line(tmp_path: Path, rows: list) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    for read in (read_chats, read_texts):
        try:
            read(file, on_bad_row="skip")
        except UserError as error:
            assert len(str(error).splitlines()) == 1


# Real data


@pytest.mark.shared
def test_real_text(shared_data: Path) -> None:
    (shakespeare,) = texts(shared_data / "tinyshakespeare")
    assert len(shakespeare) == 1_115_394
    stories = {split: texts(shared_data / "tinystories", split=split) for split in ("train", "validation")}
    assert {split: len(found) for split, found in stories.items()} == {"train": 900, "validation": 100}
    assert stories["train"][0].startswith("One day, a little girl named Lily found a needle")
