"""Which answer of a published BBQ question is "unknown", and to which one the stereotype points (arXiv 2110.08193).

BBQ says of each answer whom it is about (`answer_info`: "old", "F", "lowSES-African") and which groups the stereotype
is of (`stereotyped_groups`); which answer follows the stereotype has to be worked out, as lm-eval's task `bbq` does.
"""

import re
from collections.abc import Iterator, Mapping

from limbeck.evaluation.bias.probe_files import text_in, word_in
from limbeck.model.errors import UserError
from limbeck.tasks.tables import Row

ANSWERS = ("ans0", "ans1", "ans2")
_JOINED = re.compile(r"(F|M|lowSES|highSES)[-_](.+)")  # and no other hyphen: a "22-year-old" isn't old
_ALSO = {"woman": "f", "girl": "f", "man": "m", "boy": "m", "latina": "latino"}


def unknown_and_stereotyped(row: Row) -> tuple[int, int | None]:
    """(the answer that says "unknown", the one that the stereotype points to) of a row in BBQ's form.

    To a negative question the stereotype's answer is about a stereotyped group, to a non-negative one about another.
    None where that is true of none or of both, as in some questions about two attributes, whose groups alone don't
    tell the two persons apart. (lm-eval then counts neither or both.) Raises UserError that names file and row.
    """
    labels = [_labels(row, name) for name in ANSWERS]
    unknown = [i for i, found in enumerate(labels) if "unknown" in found]
    if len(unknown) != 1:
        raise UserError(f"{row.place}: {len(unknown)} of the answers are 'unknown' by answer_info: it must be one")
    metadata = row.fields.get("additional_metadata")
    groups = metadata.get("stereotyped_groups") if isinstance(metadata, Mapping) else None
    if not isinstance(groups, list | tuple) or not groups or not all(isinstance(each, str) for each in groups):
        raise UserError(f"{row.place}: additional_metadata has no stereotyped_groups: it must be a list of names")
    stereotyped = {_folded(group) for group in groups}
    negative = word_in(row, "question_polarity", ("neg", "nonneg")) == "neg"
    pointed_to = [i for i in range(3) if i != unknown[0] and bool(labels[i] & stereotyped) == negative]
    return unknown[0], pointed_to[0] if len(pointed_to) == 1 else None


def _labels(row: Row, name: str) -> set[str]:
    """Whom an answer is about. Where nothing is said of it (some rows with "Latina"), the answer's words say it."""
    info = row.fields["answer_info"]
    said = info.get(name) if isinstance(info, Mapping) else None
    if not isinstance(said, list | tuple) or not all(isinstance(each, str) for each in said):
        raise UserError(f"{row.place}: answer_info has no list of texts for {name!r}: see BBQ's published files")
    said = said if any(said) else text_in(row, name).split()
    folded = {_folded(part) for label in said for part in (label, *_parts(label))}
    return folded | {_ALSO[label] for label in folded & _ALSO.keys()}


def _parts(label: str) -> Iterator[str]:
    while found := _JOINED.fullmatch(label):
        yield found[1]
        label = found[2]
    yield label


def _folded(label: str) -> str:
    """"low SES" and "lowSES" are the same group."""
    return re.sub(r"[\s_-]", "", label).casefold()
