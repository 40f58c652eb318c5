"""Plain text in the tokens of two tokenizers: all of it is aligned, where of a task's records only the answer is."""

from collections.abc import Sequence

from limbeck.distill.rows import paired
from limbeck.model.tokenizer import Tokenizer
from limbeck.tasks.tables import OnBadRow
from limbeck.train.data import Rows
from limbeck.train.examples import documents


def paired_texts(
    texts: Sequence[str],
    student: Tokenizer,
    teacher: Tokenizer,
    *,
    length: int,
    teacher_length: int,
    places: Sequence[str] = (),
    on_bad_row: OnBadRow = "error",
) -> Rows:
    sides = [documents(texts, tokenizer, places) for tokenizer in (student, teacher)]
    pairs, skipped = paired._aligned(sides, texts, student, teacher, on_bad_row)
    return paired.pack_pairs(pairs, length, teacher_length, on_bad_row, skipped)
