"""Rows in which student and teacher read different tokens of the same content, each on a side of its own.

The student's side is that of any rows (`train/data.Rows`). Beside it lie the teacher's `teacher_tokens_BS`,
`teacher_positions_BS`, `teacher_segments_BS`, and `teacher_at_BT` (int32): the teacher's place, of its S, whose
distribution is that of the student's place t; -1 where there is none, or where the target does not count.

Dimension key: `B` rows, `T` length of the student's side, `S` of the teacher's, `E` examples.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.distill.rows.token_bytes import added_spaces, ends, token_bytes
from limbeck.model.errors import UserError, one_of
from limbeck.model.progress import progress
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.tokenizer.join import joined
from limbeck.prompting.demonstrations import choose
from limbeck.tasks.tables import OnBadRow
from limbeck.tasks.task import Record, Task
from limbeck.train.data import Arrays, Rows, place
from limbeck.train.examples import Example, completions


class Pair(NamedTuple):
    """One example on both sides: what the student learns, what the teacher reads, and which of its places is which.

    `teacher_ids` are int32, `at_T` (int32, one shorter than the student's ids) is what `teacher_at_BT` holds of it.
    """

    student: Example
    teacher_ids: np.ndarray
    at_T: np.ndarray


def prompt_distillation(
    task: Task,
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    shots: int,
    seed: int,
    instruction: str = "",
    length: int,
    teacher_length: int,
    on_bad_row: OnBadRow = "error",
) -> Rows:
    """The teacher reads instruction, examples and query, the student the query: the prompt moves into the weights.

    (Askell et al. 2021, arXiv 2112.00861, context distillation; Snell et al. 2022, arXiv 2209.15189.) The examples are
    those that prompting shows with the same `shots` and `seed`, of the training split and never the record itself.
    The student's query is the task's prompt without them: an `instruction` given here, in place of the template's, is
    read by the teacher alone. The answer's tokens are the same on both sides and aligned one to one. Raises UserError
    that names an example too long for its side, or leaves it out with "skip".
    """
    shown = task
    if instruction:
        shown = dataclasses.replace(task, template=dataclasses.replace(task.template, instruction=instruction))
    pairs = []
    with progress("prompts for the teacher", len(records), "record") as advance:
        for record, student in zip(records, completions(task, records, tokenizer), strict=True):
            own = _given(student)
            text = shown.prompt(record, choose(task, record, shots, seed))
            [(ids, given)] = joined(tokenizer, [(text, task.target(record) + task.template.separator)])
            context = ids[:given]
            teacher_ids = np.concatenate([np.asarray(context, np.int32), student.ids[own:]])
            places_T = np.arange(len(student.ids) - 1) + len(context) - own
            pairs.append(Pair(student, teacher_ids, _counted(student, places_T)))
            advance()
    return pack_pairs(pairs, length, teacher_length, on_bad_row)


def two_tokenizers_on_task(
    task: Task,
    records: Sequence[Record],
    student_tokenizer: Tokenizer,
    teacher_tokenizer: Tokenizer,
    *,
    length: int,
    teacher_length: int,
    on_bad_row: OnBadRow = "error",
) -> Rows:
    """Task records, as `train.examples.completions` makes of them, in the tokens of both: answers are aligned.

    The student's place is the teacher's at which both have read the same bytes. Raises UserError for a kind of
    tokenizer that cannot be aligned, and one that names a record that is too long or that a tokenizer does not give
    back byte for byte but for spaces that it put in; with "skip" such a record is left out.
    """
    sides = [completions(task, records, tokenizer) for tokenizer in (student_tokenizer, teacher_tokenizer)]
    texts = [task.prompt(record) + task.target(record) + task.template.separator for record in records]
    pairs, skipped = _aligned(sides, texts, student_tokenizer, teacher_tokenizer, on_bad_row)
    return pack_pairs(pairs, length, teacher_length, on_bad_row, skipped)


def pack_pairs(
    pairs: Sequence[Pair],
    length: int,
    teacher_length: int,
    on_bad_row: OnBadRow = "error",
    skipped: Sequence[str] = (),
) -> Rows:
    """Pairs side by side in rows of `length` tokens of the student's and `teacher_length` of the teacher's.

    An example is a segment of its own, of the same number on both sides. Raises UserError that names an example too
    long for its side, or leaves it out with "skip"; `skipped` says what was left out before.
    """
    one_of("on_bad_row", on_bad_row, ["error", "skip"])
    sizes_E = np.asarray([len(pair.student.ids) - 1 for pair in pairs], np.int64)
    teacher_sizes_E = np.asarray([len(pair.teacher_ids) - 1 for pair in pairs], np.int64)
    fits_E = (sizes_E <= length) & (teacher_sizes_E <= teacher_length)
    too_long = [
        f"{pairs[i].student.name}: {sizes_E[i]} tokens and {teacher_sizes_E[i]} for the teacher, where a row holds"
        f" {length} and {teacher_length}"
        for i in np.flatnonzero(~fits_E).tolist()
    ]
    if too_long and on_bad_row == "error":
        others = f" (and {len(too_long) - 1} more)" if too_long[1:] else ""
        raise UserError(
            f"{too_long[0]}{others}: raise `length` or `teacher_length`, take fewer shots,"
            ' or leave it out with on_bad_row="skip"'
        )
    order = np.random.RandomState(0).permutation(np.flatnonzero(fits_E))  # as train.data.pack: no order by label
    names_E = np.asarray([pair.student.name.encode() for pair in pairs], np.bytes_)
    groups = (_packed(pairs, order, length, teacher_length),) if len(order) else ()
    return Rows(groups, names_E, (*skipped, *too_long))


def _packed(pairs: Sequence[Pair], members: np.ndarray, length: int, teacher_length: int) -> Arrays:
    """Placed by one size, the share of its row that an example takes on the side where it takes more.

    If the shares fit, both sides do, and little is lost, for one side takes the more in nearly all examples.
    """
    chosen = [pairs[member] for member in members.tolist()]
    sizes_E = np.asarray([len(pair.student.ids) - 1 for pair in chosen])
    teacher_sizes_E = np.asarray([len(pair.teacher_ids) - 1 for pair in chosen])
    unit = max(length, teacher_length)
    shares_E = np.maximum(-(-sizes_E * unit // length), -(-teacher_sizes_E * unit // teacher_length))
    row_E, along_E = place(shares_E.tolist(), unit)
    start_E, teacher_start_E = (_starts(row_E, along_E, sizes) for sizes in (sizes_E, teacher_sizes_E))
    student = {
        "tokens_BT": [pair.student.ids[:-1] for pair in chosen],
        "targets_BT": [pair.student.ids[1:] for pair in chosen],
        "weights_BT": [pair.student.counts[1:].astype(np.float32) for pair in chosen],
        "positions_BT": [np.arange(size, dtype=np.int32) for size in sizes_E],
        "segments_BT": [np.full(size, member + 1, np.int32) for size, member in zip(sizes_E, members, strict=True)],
        "teacher_at_BT": [
            np.where(pair.at_T < 0, -1, pair.at_T + start).astype(np.int32)
            for pair, start in zip(chosen, teacher_start_E, strict=True)
        ],
    }
    teacher = {
        "teacher_tokens_BS": [pair.teacher_ids[:-1] for pair in chosen],
        "teacher_positions_BS": [np.arange(size, dtype=np.int32) for size in teacher_sizes_E],
        "teacher_segments_BS": [
            np.full(size, member + 1, np.int32) for size, member in zip(teacher_sizes_E, members, strict=True)
        ],
    }
    arrays = {name: _filled(values, row_E, teacher_start_E, teacher_length) for name, values in teacher.items()}
    for name, values in student.items():
        arrays[name] = _filled(values, row_E, start_E, length, empty=-1 if name == "teacher_at_BT" else 0)
    return arrays


def _starts(row_E: np.ndarray, along_E: np.ndarray, sizes_E: np.ndarray) -> np.ndarray:
    """Where in its row each example starts, without gaps, in the order `along_E`."""
    by_row = np.lexsort((along_E, row_E))
    before = np.cumsum(sizes_E[by_row]) - sizes_E[by_row]
    _, first = np.unique(row_E[by_row], return_index=True)
    start_E = np.empty_like(sizes_E)
    start_E[by_row] = before - before[first][row_E[by_row]]
    return start_E


def _filled(
    values: Sequence[np.ndarray], row_E: np.ndarray, start_E: np.ndarray, width: int, empty: int = 0
) -> np.ndarray:
    """[rows, width] with the values of each example from its start on."""
    filled = np.full((int(row_E.max()) + 1, width), empty, values[0].dtype)
    for row, start, own in zip(row_E, start_E, values, strict=True):
        filled[row, start : start + len(own)] = own
    return filled


def _aligned(
    sides: Sequence[Sequence[Example]],
    texts: Sequence[str],
    student_tokenizer: Tokenizer,
    teacher_tokenizer: Tokenizer,
    on_bad_row: OnBadRow,
) -> tuple[list[Pair], list[str]]:
    """The examples that both tokenizers give back, aligned, and what is said of the others; `texts` are their own."""
    one_of("on_bad_row", on_bad_row, ["error", "skip"])
    student_V, teacher_V = token_bytes(student_tokenizer), token_bytes(teacher_tokenizer)
    pairs, skipped = [], []
    with progress("aligning tokens", len(texts), "text") as advance:
        for student, teacher, text in zip(*sides, texts, strict=True):
            advance()
            try:
                student_ends = _ends(student, text, student_V, "student")
                teacher_ends = _ends(teacher, text, teacher_V, "teacher")
            except UserError as error:
                if on_bad_row == "error":
                    raise UserError(f'{error}; leave it out with on_bad_row="skip"') from error
                skipped.append(str(error))
                continue
            place_of = {end: place for place, end in enumerate(teacher_ends)}
            places = np.asarray([place_of.get(end, -1) for end in student_ends])
            pairs.append(Pair(student, teacher.ids, _counted(student, places)))
    return pairs, skipped


def _ends(example: Example, text: str, bytes_V: list[bytes], side: str) -> list[tuple[int, int]]:
    """Where each token but the last ends (see `token_bytes.ends`)."""
    pieces = [bytes_V[index] for index in example.ids.tolist()]
    try:
        added = added_spaces(pieces, text)
    except UserError as error:
        raise UserError(f"{example.name}: the {side}'s tokenizer does not give it back: {error}") from error
    return ends(pieces, added)[:-1]


def _given(example: Example) -> int:
    """How many first ids are given."""
    return int(np.argmax(example.counts))


def _counted(example: Example, places_T: np.ndarray) -> np.ndarray:
    return np.where(example.counts[1:], places_T, -1).astype(np.int32)
