"""Plain text to pretrain on and chats to tune on: documents and conversations with the place where each was read."""

import codecs
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.tasks.folders import chosen, split_files
from limbeck.tasks.huggingface import is_saved
from limbeck.tasks.readers import READERS, Rows, reader_of, rows_of
from limbeck.tasks.sources import open_tables
from limbeck.tasks.tables import Item, OnBadRow, Row, Table, each, enough, readable, text_of
from limbeck.tasks.task import SPLITS

END_OF_TEXT = "<|endoftext|>"  # alone on a line of a .txt file it ends a document
ROLES = ("system", "user", "assistant")


class Text(NamedTuple):
    """One document."""

    text: str
    file: str
    row: int  # of a .txt file the line on which the document begins

    @property
    def place(self) -> str:
        """What an error calls it: 'FILE, row N'."""
        return f"{self.file}, row {self.row}"


class Chat(NamedTuple):
    """One conversation: messages {"role": ..., "content": ...}, the last of them the assistant's."""

    messages: list[dict[str, str]]
    file: str
    row: int

    @property
    def place(self) -> str:
        """What an error calls it: 'FILE, row N'."""
        return f"{self.file}, row {self.row}"


class Texts(NamedTuple):
    """Documents in the order of their files, and one line for each that was left out."""

    documents: list[Text]
    skipped: tuple[str, ...]


class Chats(NamedTuple):
    """Conversations in the order of their files, and one line for each that was left out."""

    chats: list[Chat]
    skipped: tuple[str, ...]


def read_texts(path: str | os.PathLike[str], *, split: str = "train", on_bad_row: OnBadRow = "error") -> Texts:
    """The documents of a .txt file or a folder of them, or of the field "text" of any other source of a task.

    A .txt file is one document, kept to the last character, unless lines with nothing but <|endoftext|> part it into
    several; the line break before such a line goes with it, and what is blank between two of them is no document.
    The other sources are .jsonl, .csv and .parquet files, folders of them and of Hugging Face, and "tfds:NAME".
    `split` is "train", "validation" or "test" of a source that has them; a .txt folder has them if it holds a
    train.txt. Raises UserError that names file and row (or line): not UTF-8, no such field, empty.
    """

    def text(table: Table, row: Row) -> Text:
        return Text(text_of(table, row, "text"), row.file, row.number)

    return Texts(*_collect(path, split, on_bad_row, text))


def read_chats(path: str | os.PathLike[str], *, split: str = "train", on_bad_row: OnBadRow = "error") -> Chats:
    """The conversations in the field "messages" of a source: lists of {"role": ..., "content": ...}.

    Roles are system, user and assistant, contents text that is not blank, and the assistant speaks last. Sources and
    splits as in `read_texts`. Raises UserError that names file and row of one that is otherwise.
    """

    def chat(table: Table, row: Row) -> Chat:
        if "messages" not in row.fields:
            text_of(table, row, "messages")  # says that the field is missing
        return Chat(_messages(row.fields["messages"], row.place), row.file, row.number)

    return Chats(*_collect(path, split, on_bad_row, chat))


def _collect(
    path: str | os.PathLike[str], split: str, on_bad_row: OnBadRow, make: Callable[[Table, Row], Item]
) -> tuple[list[Item], tuple[str, ...]]:
    name = os.fspath(path)
    skipped: list[str] = []
    with readable(name):
        table = _table(name, split)
        made = list(each(table.rows, lambda row: make(table, row), on_bad_row, skipped))
        enough(table.place, len(made), skipped)
    return made, tuple(skipped)


def _table(name: str, split: str) -> Table:
    one_of("split", split, SPLITS)
    path = Path(name)
    if path.is_dir():
        return _folder_table(path, split) or _split_of(name, split)
    if name.startswith("tfds:"):
        return _split_of(name, split)
    if not path.is_file():
        near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"no file or folder {name!r}{nearest(name, near)}; name one, or a data set as 'tfds:NAME'")
    if split != "train":
        raise UserError(f"{path} is one file and has no {split} split: name its folder, or the file of that split")
    if path.suffix.lower() not in (".txt", *READERS):
        raise UserError(f"cannot read {path}: {path.suffix!r} is none of .txt, {', '.join(READERS)}; convert it to one")
    return _files_table([path]) if path.suffix.lower() == ".txt" else _split_of(name, split)


def _split_of(name: str, split: str) -> Table:
    tables = open_tables(name, {})
    return tables[one_of(f"split of {name}", split, tables)]


def _folder_table(folder: Path, split: str) -> Table | None:
    """A split of a folder with .txt files: train.txt and so on, or all of them; None where the data is not in these."""
    found = split_files(folder, (".txt", *READERS))
    train = [file for files in found.get("train", {}).values() for file in files]
    if any(file.suffix.lower() == ".txt" for file in train):
        return _files_table(chosen(folder, found, split))
    texts = [file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".txt"]
    if not texts or train or is_saved(folder):
        return None
    if split != "train":
        raise UserError(f"{folder} has .txt files but no train.txt, so no {split} split: name a folder of its own")
    return _files_table(texts)


def _files_table(files: list[Path]) -> Table:
    def read(file: Path) -> Rows:
        return (_txt if file.suffix.lower() == ".txt" else reader_of(file))(file)

    return Table(str(files[0].parent) if len(files) > 1 else str(files[0]), rows_of(files, read))


def _txt(path: Path) -> Rows:
    """Documents of a .txt file as rows with a field "text", each numbered by its first line."""
    lines: list[str] = []
    start, fault, parted = 1, None, False
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):  # by bytes: U+2028 is no end of line
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip() == END_OF_TEXT.encode():
                yield from _document(lines, start, fault, parted=True)
                lines, start, fault, parted = [], number + 1, None, True
                continue
            try:
                lines.append(raw.decode())
            except UnicodeDecodeError:
                fault = fault or UserError(f"{path}, line {number} is not UTF-8 text: save the file as UTF-8")
    yield from _document(lines, start, fault, parted)


def _document(lines: list[str], start: int, fault: UserError | None, parted: bool) -> Rows:
    if fault:
        yield start, fault
        return
    text = "".join(lines)
    lines.clear()  # a file may be one document: not two copies of it longer than need be
    if parted:
        text = text.removesuffix("\n").removesuffix("\r")
    if text.strip():
        yield start, {"text": text}


def _messages(given: Any, place: str) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise UserError(f'{place}: "messages" is {given!r:.40}: it must be a list of {{"role": ..., "content": ...}}')
    messages = [_message(message, f"{place}, message {i}") for i, message in enumerate(given, 1)]
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{place}: the last message is the {messages[-1]['role']}'s: it must be the assistant's answer")
    return messages


def _message(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise UserError(f'{place} is {message!r:.40}: it must be {{"role": ..., "content": ...}}')
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise UserError(f"{place}: the role is {role!r:.40}: it must be one of {', '.join(ROLES)}")
    one_of(f"role in {place}:", role, ROLES)
    if not isinstance(content, str) or not content.strip():
        raise UserError(f"{place}: the content is {content!r:.40}: it must be text that is not blank")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: the content is not UTF-8 text: save the data as UTF-8") from error
    return {"role": role, "content": content}
