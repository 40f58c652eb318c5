"""What a model would have answered had the text spoken of others: a task's own records with words of groups swapped.

Counterfactual fairness (Kusner et al. 2017, arXiv 1703.06856) of text, as the counterfactual token fairness of Garg et
al. 2019 (arXiv 1809.10610) has it. Dimension key: `N` records that change, `O` options.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from os import PathLike
from typing import NamedTuple

import numpy as np

from limbeck.evaluation.bias.mentions import check_word, fold, tab_rows, whole_words
from limbeck.evaluation.bias.rows import BiasRow, row, share_row, unsigned
from limbeck.inference.classify import answer
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.model.tokenizer import Tokenizer
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import predict
from limbeck.prompting.scores import log_probabilities
from limbeck.tasks.label_metrics import normalise
from limbeck.tasks.number_metrics import number
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields

CAVEATS = (
    "A swapped text can be one that nobody would write, and its right answer can be another one: look at the records "
    "that change. Any model that reads the words moves a little, so compare shifts between models, not with 0."
)

Ask = Callable[[Sequence[Record]], tuple[Sequence[str], np.ndarray | None]]  # answers [N], probabilities [N, O]

_FEWEST = 10  # records of a label that have rows of their own
_BEFORE_NOUN = {"her": "his", "his": "her"}
# Words that go on after "her" the object: "gave her the", "saw her and". Before any other word it is "his".
_AFTER_HIM = """
    a about after again against all although always an and any anyway are around as at away be because been
    before behind being but by can could did do does down during each either enough even every everything except
    for from had has have here how i if in inside instead into is it just later like may might more much must near
    never no nor not nothing now of off often on once or out outside over quite rather regarding said shall she
    should since so some something soon still such than that the them then there these they this those though
    through till to today together tomorrow tonight too toward towards under unless until up upon was we were what
    whatever when whenever where whether which while who whom whose why will with within without would yesterday
    yet you
"""


class Swaps(NamedTuple):
    """Which word stands for which; words are as `mentions.fold` has them.

    `side` says which words are of side a (the built-in list: he) and of side b (she). `before_noun` is what stands
    for a word before a noun instead, where the list swaps English pronouns: her is his or him, his is her or hers.
    """

    to: Mapping[str, str]
    side: Mapping[str, str]
    before_noun: Mapping[str, str]
    found: re.Pattern[str]


def load_swaps() -> Swaps:
    """The built-in words: English pronouns, kinship, titles and callings that say a gender."""
    text = (files("limbeck.evaluation.bias") / "swap_words.tsv").read_text(encoding="utf-8")
    return _swaps([(a, b) for a, b in (line.split("\t") for line in text.splitlines())], {})


def read_swaps(*paths: str | PathLike[str]) -> Swaps:
    """The words of tab-separated files of two columns, one direction or both, as WinoBias has them.

    What stands on the left is swapped as the first row with it says; what stands on the right alone is swapped back.
    A word that the built-in list knows is of its side; of others the left one, where they first stand, is of side a.
    Raises UserError, by file and row, for what is not of that form, and where there is no row.
    """
    pairs = []
    for path in paths:
        for place, cells in tab_rows(path):
            if len(cells) != 2:
                raise UserError(f"{place} has {len(cells)} columns: write one word, a tab and the word that it becomes")
            a, b = (cell.removesuffix(".") for cell in cells)  # "mr." is found in "Mr. Lee" and in "Mr Lee"
            for word in (a, b):
                check_word(place, word)
            if fold(a) == fold(b):
                raise UserError(f"{place}: {a!r} would become itself: give another word or take the row out")
            pairs.append((a, b))
    if not pairs:
        raise UserError(f"no words to swap in {', '.join(map(str, paths)) or 'no file'}: write rows of two words")
    return _swaps(pairs, load_swaps().side)


def swapped(text: str, swaps: Swaps) -> str:
    """The text with every word of the list swapped, its letter case kept; all else stays as it was, byte by byte.

    Twice swapped it is the same again where words map one to one. "her" becomes "his" before a word that may be a
    noun or stand before one, which is any word after a space but some (the, and, to, was, ...), else "him"; "his"
    becomes "her" there and else "hers". "They saw her work" is his work to this rule, whoever worked.
    """

    def other(match: re.Match[str]) -> str:
        word = fold(match[0])
        if word in swaps.before_noun and _before_noun(text, match.end()):
            return _like(match[0], swaps.before_noun[word])
        return _like(match[0], swaps.to.get(word, match[0]))  # not there: ignoring case, "hıs" is found as "his"

    return swaps.found.sub(other, text)


def changed(task: Task, records: Sequence[Record], swaps: Swaps) -> list[tuple[Record, Record]]:
    """The records whose query is another one when its fields are swapped, each with the swapped one.

    The id stays, so that both get the same examples, and so does the field by which a task is grouped.
    """
    names = set(fields(task.template.query)) - {task.group_field}
    pairs = [(each, {**each, **{name: swapped(each[name], swaps) for name in names}}) for each in records]
    return [(before, after) for before, after in pairs if task.query(before) != task.query(after)]


def counterfactual_rows(task: Task, ask: Ask, records: Sequence[Record], swaps: Swaps) -> list[BiasRow]:
    """What changes of the answers to the records that `changed` finds; no rows for fewer than two.

    `swap_flips`: the share whose answer is another one, Wilson's interval; of a written answer any other text.
    `swap_shift`: the mean |change| of the right answer's probability. `swap_lean`: its mean change from the version
    with words of side a to the one with words of side b, of records that have words of one side alone. Ideal 0 each.
    Without probabilities there are flips alone. A regression has no flips; its shift and lean are of the number, and
    an answer that is no number counts as unmoved. The labels of a classification have flips and lean of their own
    (group) where ten records with that right answer change: a lean towards one label cancels out in the whole.
    """
    pairs = changed(task, records, swaps)
    if len(pairs) < 2:
        return []
    before, after = zip(*pairs, strict=True)
    answers, probability_NO = ask([*before, *after])  # at once: calibrated on a batch, both are on the same
    right = [task.answer(record) for record in before]
    toward_b_N = np.array([_toward_b(task, record, swaps) for record in before])
    flips_N = np.array([normalise(a) != normalise(b) for a, b in zip(*_halves(answers), strict=True)])
    change_N = _changes(task, before, answers, probability_NO)
    parts = {"": np.ones(len(pairs), bool)}
    if task.kind == "classification":
        parts |= {label: np.array([each == label for each in right]) for label in task.options or ()}
    rows = []
    for group, member_N in parts.items():
        if group and member_N.sum() < _FEWEST:
            continue
        if task.kind != "regression":
            rows.append(share_row("swap_flips", 2 * flips_N[member_N] - 1.0, group=group, ideal=0.0))
        if change_N is not None and not group:
            rows.append(unsigned(row("swap_shift", np.abs(change_N))))
        one_sided_N = member_N & (toward_b_N != 0)
        if change_N is not None and one_sided_N.sum() >= 2:
            rows.append(row("swap_lean", (toward_b_N * change_N)[one_sided_N], group=group))
    return rows


def ask_prompted(task: Task, engine: Engine, prompt: PromptConfig = PromptConfig()) -> Ask:
    """What asks a prompted model: probabilities are those of the scores by which options are compared, if they are."""

    def ask(records: Sequence[Record]) -> tuple[Sequence[str], np.ndarray | None]:
        found = predict(task, engine, records, prompt)
        if not all(each.scores for each in found.asked):
            return found.answers, None
        return found.answers, np.exp(log_probabilities([each.scores["score"] for each in found.asked]))

    return ask


def ask_head(task: Task, config: ModelConfig, params: Params, tokenizer: Tokenizer) -> Ask:
    """What asks a model with a head; of several labels each has a probability of its own."""

    def ask(records: Sequence[Record]) -> tuple[Sequence[str], np.ndarray | None]:
        found = answer(task, config, params, tokenizer, records)
        if task.kind == "regression":
            return found.answers, None
        if task.kind == "multi_label":
            return found.answers, 0.5 * (1 + np.tanh(found.scores_NC.astype(np.float64) / 2))
        return found.answers, np.exp(log_probabilities(found.scores_NC))

    return ask


def _swaps(pairs: Sequence[tuple[str, str]], known: Mapping[str, str]) -> Swaps:
    to: dict[str, str] = {}
    side: dict[str, str] = {}
    for a, b in (*pairs, *((b, a) for a, b in pairs)):  # what the list says itself goes before what follows from it
        to.setdefault(fold(a), b)
    opposite = {"a": "b", "b": "a"}
    for a, b in ((fold(a), fold(b)) for a, b in pairs):
        of_b = known.get(b) or side.get(b) or "b"
        side.setdefault(a, known.get(a) or opposite[of_b])
        side.setdefault(b, known.get(b) or opposite[side[a]])
    pronouns = "her" in (to.get("him"), to.get("his")) or to.get("her") in ("him", "his")
    if pronouns:
        to |= {"him": "her", "her": "him", "his": "hers", "hers": "his"}
        side |= {"him": "a", "his": "a", "her": "b", "hers": "b"}
    return Swaps(to, side, _BEFORE_NOUN if pronouns else {}, whole_words(_spellings(to), re.IGNORECASE))


def _spellings(words: Iterable[str]) -> set[str]:
    """A word as texts may have it: composed or not, with either apostrophe."""
    forms = {unicodedata.normalize(form, word) for word in words for form in ("NFC", "NFD")}
    return forms | {word.replace("'", "’") for word in forms}


def _before_noun(text: str, end: int) -> bool:
    following = re.compile(r"[ \t]+(\w+)").match(text, end)
    return following is not None and following[1].casefold() not in _AFTER_HIM.split()


def _like(found: str, other: str) -> str:
    """`other` in the letter case of `found`: THE MOTHER, Mother, mother."""
    if found.islower():
        return other.lower()
    if found.isupper() and len(found) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if found[:1].isupper() else other


def _toward_b(task: Task, record: Record, swaps: Swaps) -> int:
    """1 for a record with words of side a alone, which swapping takes to side b; -1 for b alone, else 0."""
    text = "\n".join(record[name] for name in fields(task.template.query))
    sides = {swaps.side.get(fold(match[0])) for match in swaps.found.finditer(text)}
    return 1 if sides == {"a"} else -1 if sides == {"b"} else 0


def _changes(
    task: Task, records: Sequence[Record], answers: Sequence[str], probability_NO: np.ndarray | None
) -> np.ndarray | None:
    """Swapped less original [N]: the right answer's probability, or the number of a regression; None without either."""
    if task.kind == "regression":
        numbers = [[number(text) for text in half] for half in _halves(answers)]
        return np.array([0.0 if a is None or b is None else b - a for a, b in zip(*numbers, strict=True)])
    if probability_NO is None or task.options is None:
        return None
    right_NO = np.array([[option in task.labels(record) for option in task.options] for record in records])
    before_NO, after_NO = np.split(np.asarray(probability_NO, np.float64), 2)
    if task.kind == "classification":
        return ((after_NO - before_NO) * right_NO).sum(axis=1)
    before_N, after_N = (np.where(right_NO, p_NO, 1 - p_NO).prod(axis=1) for p_NO in (before_NO, after_NO))
    return after_N - before_N


def _halves(answers: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    return answers[: len(answers) // 2], answers[len(answers) // 2 :]
