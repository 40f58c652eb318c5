"""How near a generated text is to the right one, in any script.

Dimension key: `N` records, `R` resamples, `K` counted kinds of n-grams.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from limbeck.tasks.intervals import Score, bootstrap_counts, mean, share, some
from limbeck.tasks.label_metrics import normalise
from limbeck.tasks.scripts import JOINERS, UNSPACED

_ARTICLES = {"a", "an", "the"}
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The share of answers met but for case, punctuation, English articles and white space; Wilson's interval.

    The rule of SQuAD (arXiv 1606.05250) for any script: punctuation is what Unicode calls so, and what ASCII has.
    Unlike there, a text that is nothing but punctuation or articles keeps them: "+" is not "-". No records is a
    UserError.
    """
    some(len(answers))
    return share([_content(p) == _content(a) for p, a in zip(predictions, answers, strict=True)])


def token_f1(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The mean over records of F1 of the bags of words, in the form of `exact_match`; bootstrap interval.

    SQuAD's. In scripts without white space each character is a word. No records is a UserError.
    """
    some(len(answers))
    return mean([_bag_f1(_content(p), _content(a)) for p, a in zip(predictions, answers, strict=True)])


def rouge_l(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The mean over records of F1 of the longest common subsequence of words (Lin 2004); bootstrap interval.

    Words are runs of letters and digits of any script, without regard to case and not stemmed; in scripts
    without white space each character is a word. No records is a UserError.
    """
    some(len(answers))
    return mean([_subsequence_f1(p, a) for p, a in zip(predictions, answers, strict=True)])


def bleu(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """BLEU of the corpus, 0 to 100, by sacrebleu at its defaults; bootstrap interval over records.

    Signature nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp, as most published numbers are. It separates ASCII
    punctuation only and takes words from white space: `chrf` is fairer to other scripts. No records is a UserError.
    """
    from sacrebleu.metrics.bleu import BLEU  # here, because it takes a tenth of a second

    return _corpus(BLEU(force=True), predictions, answers)  # force: no advice about white space on the terminal


def chrf(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """chrF2 of the corpus, 0 to 100, by sacrebleu at its defaults; bootstrap interval over records.

    F of character n-grams up to 6 with recall counted double (Popovi\u0107 2015): for any script. No records is a
    UserError.
    """
    from sacrebleu.metrics.chrf import CHRF

    return _corpus(CHRF(), predictions, answers)


def _corpus(metric, predictions: Sequence[str], answers: Sequence[str]) -> Score:
    n = some(len(answers))
    pairs = [(normalise(p), normalise(a)) for p, a in zip(predictions, answers, strict=True)]
    hypotheses, references = map(list, zip(*pairs, strict=True))
    # sacrebleu's own bootstrap gives a symmetric half-width only; its counts give quantiles, and are as old as 2.0.
    counts_NK = np.array(metric._extract_corpus_statistics(hypotheses, [references]), dtype=np.float64)

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        sums_RK = (counts_RN @ counts_NK).astype(np.int64).tolist()
        return np.array([metric._compute_score_from_stats(sums_K).score for sums_K in sums_RK])

    return Score(float(statistic(np.ones((1, n)))[0]), bootstrap_counts(n, statistic, n=1000), n)


def _folded(text: str) -> str:
    """Text without regard to case, in NFC, without what is invisible, such as marks of direction."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return "".join(char for char in folded if unicodedata.category(char) != "Cf" or char in JOINERS)


def _content(text: str) -> list[str]:
    """The words that `exact_match` compares; what would leave none of them is not taken away."""
    folded = _folded(text)
    bare = [char for char in folded if unicodedata.category(char)[0] != "P" and char not in string.punctuation]
    words = _split("".join(bare)) or _split(folded)
    return [word for word in words if word not in _ARTICLES] or words


def _split(text: str) -> list[str]:
    return [bare for word in text.split() if (bare := word.strip(JOINERS))]


def _bag_f1(predicted: list[str], right: list[str]) -> float:
    predicted, right = (_WORD.findall(" ".join(words)) for words in (predicted, right))
    return _f1((Counter(predicted) & Counter(right)).total(), len(predicted), len(right))


def _subsequence_f1(prediction: str, answer: str) -> float:
    predicted, right = words(prediction), words(answer)
    if not predicted and not right:  # nothing but punctuation
        return float(_content(prediction) == _content(answer))
    return _f1(_longest_common_subsequence(predicted, right), len(predicted), len(right))


def words(text: str) -> list[str]:
    kept = (char if unicodedata.category(char)[0] in "LMN" or char in JOINERS else " " for char in _folded(text))
    return _WORD.findall(" ".join(_split("".join(kept))))


def _f1(common: int, predicted: int, right: int) -> float:
    return 2 * common / (predicted + right) if predicted + right else 1.0


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    """Its length, a whole row of the table at once in the bits of one integer (Hyyr\u00f6 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = row = (1 << len(a)) - 1  # a 0 wherever the length grows from one place of `a` to the next
    for word in b:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & every
    return len(a) - row.bit_count()
