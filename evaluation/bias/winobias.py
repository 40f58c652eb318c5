"""Pro- and anti-stereotyped sentences of WinoBias (arXiv 1804.06876), scored as sentences.

WinoBias asks a coreference system whom a pronoun stands for, and compares its F1 on the two sets. Nothing is resolved
here: a language model is asked which of two sentences is likelier that differ in the pronoun alone. So these rows are
no coreference F1 and cannot be set beside one.

Dimension key: `N` pairs, `2` the pro- and the anti-stereotyped sentence.
"""

import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from limbeck.evaluation.bias.pairs import at_least_two, perplexity_row, preference_rows
from limbeck.evaluation.bias.probe_files import numbered_lines
from limbeck.evaluation.bias.rows import BiasRow
from limbeck.evaluation.bias.scored import Model, sentence_logprobs
from limbeck.model.errors import UserError

KINDS = ("type 1", "type 2")
SPLITS = ("dev", "test")
CAVEATS = (
    "Sentences are scored and no pronoun is resolved: this is no coreference F1. Which occupations count as a"
    " stereotype follows labour statistics of the United States. Forty occupations come up again and again, so the"
    " sentences are less independent than the intervals suppose."
)
_HE_TO_SHE = {("he", "she"), ("him", "her"), ("his", "her"), ("his", "hers"), ("himself", "herself")}


class WinoPair(NamedTuple):
    """One sentence whose pronoun follows the stereotype of an occupation, and the same with the other pronoun.

    `kind` is "type 1", where only knowledge of the world says whom the pronoun means, or "type 2", where grammar does.
    """

    pro: str
    anti: str
    kind: str


class WinoBias(NamedTuple):
    """Pairs in the order of their files, and one line for each pair that was left out."""

    pairs: list[WinoPair]
    skipped: tuple[str, ...]


def read_winobias(folder: str | os.PathLike[str]) -> WinoBias:
    """The pairs of a folder with the published files, such as pro_stereotyped_type1.txt.dev, of dev, test or both.

    A line is "1 [The developer] argued with the designer because [she] did ...": its number and the brackets are left
    out, and a space before "'s", a comma or a full stop. The sentences of one line must differ in pronouns alone, all
    of them "he" in one and "she" in the other; others differ by a slip in more than that and are left out and listed.
    Raises UserError: a file without its counterpart or of other length, none at all, not UTF-8, no pair left.
    """
    folder = Path(folder)
    pairs: list[WinoPair] = []
    skipped: list[str] = []
    for kind in KINDS:
        for split in SPLITS:
            pro, anti = (
                folder / f"{side}_stereotyped_{kind.replace(' ', '')}.txt.{split}" for side in ("pro", "anti")
            )
            if not pro.is_file() and not anti.is_file():
                continue
            for line, pro_sentence, anti_sentence in _sentences(pro, anti):
                if _differ_in_pronoun(pro_sentence, anti_sentence):
                    pairs.append(WinoPair(pro_sentence, anti_sentence, kind))
                else:
                    skipped.append(f"{pro}, line {line}: differs from {anti.name} in more than the pronoun")
    if not pairs:
        raise UserError(
            f"no pairs in {folder}: it must hold WinoBias' pro_stereotyped_type1.txt.dev,"
            " anti_stereotyped_type1.txt.dev and so on, as published"
        )
    return WinoBias(pairs, tuple(skipped))


def winobias_rows(model: Model, pairs: Sequence[WinoPair]) -> list[BiasRow]:
    """Which sentence of a pair a model finds likelier: no coreference F1.

    `winobias_preference`: share of pairs whose pro-stereotyped sentence is the likelier, equals counting half, ideal
    0.5; `winobias_difference`: mean of log p(pro) - log p(anti) in nats, ideal 0; of all pairs, of type 1 and of type
    2. A type that is all the pairs, or fewer than two, has no rows. A mere liking for "he" cancels out as far as as
    many pro-stereotyped sentences have "he" as "she", as in the published files. Last the perplexity of all sentences.
    Fewer than two pairs are a UserError.
    """
    at_least_two(len(pairs), "pairs")
    logprob_2N, tokens_2N = sentence_logprobs(model, [pair.pro for pair in pairs] + [pair.anti for pair in pairs])
    logprob_N2, tokens_N2 = (np.stack(np.split(each_2N, 2), axis=1) for each_2N in (logprob_2N, tokens_2N))
    out = [*preference_rows(logprob_N2[:, 0], logprob_N2[:, 1], "winobias")]
    for kind in KINDS:
        of_kind_N2 = logprob_N2[[pair.kind == kind for pair in pairs]]
        if 2 <= len(of_kind_N2) < len(pairs):
            out += preference_rows(of_kind_N2[:, 0], of_kind_N2[:, 1], "winobias", kind)
    return [*out, perplexity_row(logprob_N2, tokens_N2)]


def _sentences(pro: Path, anti: Path) -> list[tuple[int, str, str]]:
    """(line, pro, anti) of two files, line by line."""
    for one, other in ((pro, anti), (anti, pro)):
        if not one.is_file():
            raise UserError(f"{other} has no counterpart {one.name}: put it beside it")
    lines = [numbered_lines(path) for path in (pro, anti)]
    for a, b in zip_longest(*lines):
        if a is None or b is None or a[0] != b[0]:
            ends = " and ".join(f"{path.name} has {len(each)}" for path, each in zip((pro, anti), lines, strict=True))
            raise UserError(f"{pro.parent}: {ends} sentences, on other lines: a pair stands on the same line of both")
    return [(number, _plain(a), _plain(b)) for (number, a), (_, b) in zip(*lines, strict=True)]


def _plain(line: str) -> str:
    """The sentence of a published line."""
    words = " ".join(re.sub(r"[\[\]]", "", re.sub(r"^\d+\s", "", line)).split())
    return re.sub(r" (?='s\b|[,.])", "", words)


def _differ_in_pronoun(pro: str, anti: str) -> bool:
    words = [re.findall(r"\w+|\S", sentence.casefold()) for sentence in (pro, anti)]
    if len(words[0]) != len(words[1]):
        return False
    changes = {(a, b) for a, b in zip(*words, strict=True) if a != b}
    return bool(changes) and (changes <= _HE_TO_SHE or {(b, a) for a, b in changes} <= _HE_TO_SHE)
