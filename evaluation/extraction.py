"""Memorised text: what a model, given a text's first tokens, writes on as it stands in the text (Carlini et al. 2021).

What it writes may also be right because it is predictable, so the same is asked of texts that the model never saw:
only what texts of its training have above these is memory.

Dimension key: `N` distinct windows, each the first tokens of a text or of several, `T` tokens of a document.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from limbeck.evaluation.bias.rows import BiasRow, share_row, verdict
from limbeck.evaluation.bias.scored import Model
from limbeck.inference.requests import ScoreRequest
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer
from limbeck.tasks.intervals import share_difference

Window = tuple[int, ...]

BUCKETS = {"1": (1, 1), "2-10": (2, 10), "more than 10": (11, math.inf)}
_ENCODED = 1000  # documents whose tokens are held at once
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


class Extraction(NamedTuple):
    """Whether each distinct window is extractable [N], the first text that begins with it, how many were too short."""

    extracted_N: np.ndarray
    first_N: np.ndarray
    left_out: int


def extraction(model: Model, texts: Sequence[str], *, prefix: int = 32, length: int = 32) -> Extraction:
    """Which texts a model continues word for word, greedily, from their first `prefix` tokens for `length` more.

    That is extractability with k tokens of context (Carlini et al. 2023, arXiv 2202.07646, definition 3.1), of one
    place in each text: its beginning. Texts that begin with the same tokens are one item, or copies would pass for
    evidence. A text shorter than both together is left out. Raises UserError where that leaves none, and for a window
    that the model has no room for.
    """
    windows = _windows(model.tokenizer, texts, prefix, length)
    first: dict[Window, int] = {}
    for i, window in enumerate(windows):
        if window:
            first.setdefault(window, i)
    if not first:
        raise UserError(
            f"none of {len(texts)} texts has {prefix + length} tokens (prefix={prefix}, length={length}): give longer "
            "texts, or a smaller prefix and length"
        )
    bos = model.tokenizer.bos_id
    # One pass says whether greedy writing would give these very tokens: each is the likeliest after those before it.
    scores = model.score([ScoreRequest((bos, *window[:prefix]), (window[prefix:],)) for window in first])
    extracted_N = np.array([each.greedy[0] for each in scores], bool)
    return Extraction(extracted_N, np.array(list(first.values())), windows.count(()))


def extraction_rows(
    model: Model,
    training: Sequence[str],
    held_out: Sequence[str],
    counts: Sequence[int] | None = None,
    *,
    prefix: int = 32,
    length: int = 32,
) -> list[BiasRow]:
    """The share of training texts that are extractable, that of texts never trained on, and what it has above them.

    An item is a distinct window, however many texts begin with it, and n is their number. `extracted` of either group
    has no ideal, `extracted_excess`, their difference, has 0; its interval is Newcombe's. With `counts` (`occurrences`
    of the training texts in the whole training set) `extracted_by_copies` is the share among windows that stand in so
    many training examples, where there are two windows or more: a model that is k-eidetic (Carlini et al. 2021, arXiv
    2012.07805, definition 2) knows texts with few copies. Texts that are too short are in no row. Raises UserError as
    `extraction` does, and for a training text whose count is 0.
    """
    memory = extraction(model, training, prefix=prefix, length=length)
    control = extraction(model, held_out, prefix=prefix, length=length)
    rows = [_share("training", memory.extracted_N), _share("held out", control.extracted_N)]
    rows.append(_excess(memory.extracted_N, control.extracted_N))
    if counts is not None:
        rows += _by_copies(memory, np.array([n for n, _ in zip(counts, training, strict=True)]))
    return rows


def occurrences(
    tokenizer: Tokenizer, texts: Sequence[str], corpus: Sequence[str], *, prefix: int = 32, length: int = 32
) -> list[int]:
    """In how many documents of a corpus the first `prefix + length` tokens of each text stand, anywhere in them.

    A document counts once however often it holds them; a text too short for a window has 0. The search is for tokens,
    so a string that is cut into other tokens where it stands is not found. It takes one pass over the corpus.
    """
    windows, size = _windows(tokenizer, texts, prefix, length), prefix + length
    counts = {window: 0 for window in windows if window}
    wanted = np.array([_hashes(np.array(window), size)[0] for window in counts], np.uint64)
    for start in range(0, len(corpus), _ENCODED):
        for ids in tokenizer.encode_batch(corpus[start : start + _ENCODED]):
            alike = np.flatnonzero(np.isin(_hashes(np.array(ids), size), wanted))
            for window in {tuple(ids[i : i + size]) for i in alike} & counts.keys():
                counts[window] += 1
    return [counts.get(window, 0) for window in windows]


def _windows(tokenizer: Tokenizer, texts: Sequence[str], prefix: int, length: int) -> list[Window]:
    """The first prefix + length tokens of each text; empty for a text that has fewer."""
    for name, value in (("prefix", prefix), ("length", length)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1 token")
    size = prefix + length
    return [tuple(ids[:size]) if len(ids) >= size else () for ids in tokenizer.encode_batch(texts)]


def _hashes(ids_T: np.ndarray, size: int) -> np.ndarray:
    """A number for each run of `size` tokens [T - size + 1], the same for the same run: a polynomial modulo 2^64.

    Every run is read off one running sum, whatever its size (Karp and Rabin 1987).
    """
    if len(ids_T) < size:
        return np.empty(0, np.uint64)
    powers_T = np.cumprod(np.full(len(ids_T), _BASE, np.uint64))
    sums_T = np.cumsum(np.concatenate([[np.uint64(0)], ids_T.astype(np.uint64) * powers_T]), dtype=np.uint64)
    runs = sums_T[size:] - sums_T[:-size]
    return runs * np.cumprod(np.full(len(runs), pow(_BASE, -1, 2**64), np.uint64))


def _share(group: str, extracted_N: np.ndarray) -> BiasRow:
    return share_row("extracted", np.where(extracted_N, 1, -1), group=group, ideal=None)


def _excess(memory_N: np.ndarray, control_N: np.ndarray) -> BiasRow:
    # Not the bootstrap: where no text is extracted each of its resamples would say 0, as if that were certain.
    found = share_difference(memory_N, control_N)
    trained_N = np.repeat([1.0, 0.0], [len(memory_N), len(control_N)])
    items_N2 = np.stack([trained_N, np.concatenate([memory_N, control_N])], axis=1)
    note = verdict(found.ci95, 0.0)
    return BiasRow("extracted_excess", "", found.value, found.ci95, found.n, 0.0, note, "difference", items_N2)


def _by_copies(memory: Extraction, counts: np.ndarray) -> list[BiasRow]:
    counts_N = counts[memory.first_N]
    if (counts_N < 1).any():
        text = int(memory.first_N[np.argmin(counts_N)]) + 1
        raise UserError(f"training text {text} stands in 0 training examples: count in the texts that were trained on")
    rows = []
    for copies, (least, most) in BUCKETS.items():
        among_N = (counts_N >= least) & (counts_N <= most)
        if among_N.sum() >= 2:
            signed_N = np.where(memory.extracted_N[among_N], 1, -1)
            rows.append(share_row("extracted_by_copies", signed_N, group=copies, ideal=None))
    return rows
