"""The honest baselines that a user would try first: the commonest answer, TF-IDF with a linear model, a compressor.

Dimension key: `N` records, `F` features.
"""

import bz2
import lzma
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from limbeck.evaluation.measure import all_metrics, median_ms
from limbeck.model.errors import UserError
from limbeck.tasks.label_metrics import join_labels
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields
from limbeck.tasks.text_metrics import words

_TIMED = 40  # records whose latency is measured, one at a time
_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of ridge regression
_COMPRESSED = 64_000_000  # bytes that a compressor reads
_BZ2_BLOCK = 890_000  # bytes that bzip2 sorts together: its 900,000 less what its run lengths may add

_Answers = Callable[[Sequence[Record]], list[str]]
_Features = Callable[[Sequence[Record]], Any]  # a scipy.sparse [N, F]


def baselines(task: Task) -> list[dict[str, Any]]:
    """A row of the report for each baseline that fits the task's kind: TF-IDF if no text is generated, the trivial."""
    if task.kind == "generation":
        return [commonest(task)]
    return [tfidf_ridge(task) if task.kind == "regression" else tfidf_logistic(task), commonest(task)]


def commonest(task: Task) -> dict[str, Any]:
    """The commonest answer of train (the first of equals) given to every question; the mean of a regression."""
    train, test = ([task.answer(record) for record in task.splits[split]] for split in ("train", "test"))
    name, answer = "commonest", Counter(train).most_common(1)[0][0]
    if task.kind == "regression":
        name, answer = "mean", f"{np.mean([float(text) for text in train]):.6g}"
    metrics = all_metrics(task, [answer] * len(test), test)
    return {"method": name, "metrics": metrics, "params_total": 0, "params_trainable": 0, "train_seconds": 0.0}


def tfidf_logistic(task: Task) -> dict[str, Any]:
    """Words and word pairs, sublinear TF-IDF, logistic regression, on the task's own split.

    Of a multi-label task, one regression for each label.
    """
    train, options = task.splits["train"], task.options or ()
    start = time.perf_counter()
    features = _bag(_WORD_PAIRS)(task, train)
    train_NF = features(train)
    if task.kind == "multi_label":
        labels = [task.labels(record) for record in train]
        models = [_logistic(train_NF, [option in chosen for chosen in labels]) for option in options]
    else:
        models = [_logistic(train_NF, [task.answer(record) for record in train])]
    seconds = time.perf_counter() - start

    def answers(records: Sequence[Record]) -> list[str]:
        test_NF = features(records)
        said = zip(*(predict(test_NF) for predict, _ in models), strict=True)
        if task.kind == "multi_label":
            return [join_labels([o for o, yes in zip(options, row, strict=True) if yes], options) for row in said]
        return [str(label) for (label,) in said]

    return _row("tfidf_logistic", task, answers, sum(params for _, params in models), seconds)


def tfidf_ridge(task: Task) -> dict[str, Any]:
    """TF-IDF of words and word pairs, or of 2 to 4 characters, and ridge regression.

    For a query of two texts there is also what compares them: the products and the absolute differences of the two
    texts' TF-IDF and their cosine, of words or of characters. Which features, and how much regularisation, is chosen
    on a tenth of train; the row, whose "chosen" says it, is of that choice fitted to all of train.
    """
    from sklearn.linear_model import Ridge

    train = task.splits["train"]
    kinds = {"words and their pairs": _bag(_WORD_PAIRS), "characters": _bag(_CHARACTERS)}
    if len(set(fields(task.template.query))) == 2:
        kinds |= {"words compared": _comparison(_WORDS), "characters compared": _comparison(_CHARACTERS)}
    start = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(train))
    tenth = max(len(train) // 10, 1)
    held = [train[i] for i in order[:tenth]]
    rest = [train[i] for i in order[tenth:]] or held
    errors = {}
    for name, kind in kinds.items():
        features = kind(task, rest)
        rest_NF, held_NF = features(rest), features(held)
        for alpha in _ALPHAS:
            model = Ridge(alpha).fit(rest_NF, _numbers(task, rest))
            errors[name, alpha] = np.mean((model.predict(held_NF) - _numbers(task, held)) ** 2)
    name, alpha = min(errors, key=lambda choice: errors[choice])
    features = kinds[name](task, train)
    model = Ridge(alpha).fit(features(train), _numbers(task, train))
    seconds = time.perf_counter() - start

    def answers(records: Sequence[Record]) -> list[str]:
        return [f"{value:.6g}" for value in model.predict(features(records))]

    row = _row("tfidf_ridge", task, answers, int(np.size(model.coef_)) + 1, seconds)
    return {**row, "chosen": f"{name}, alpha {alpha:g}"}


def compressed_bits_per_byte(train_text: bytes, validation_text: bytes) -> dict[str, float]:
    """{"xz", "bz2"}: bits that a byte of the validation text costs a compressor that has seen the training text.

    It is the difference of two compressed sizes, with the validation text and without. What a compressor remembers
    is limited: xz is shown the last 64 MB, bzip2 the last 0.89 MB, which is what it sorts at once (of a longer
    validation text it sees nothing else for most of it). Raises UserError for an empty validation text.
    """
    if not validation_text:
        raise UserError("the validation text is empty: hold out a larger part of the texts")
    text = validation_text[:_COMPRESSED]
    found = {}
    for name, compress, window in (("xz", _xz, _COMPRESSED), ("bz2", bz2.compress, _BZ2_BLOCK)):
        room = max(window - len(text), 0)
        seen = train_text[max(len(train_text) - room, 0) :]
        found[name] = 8 * (len(compress(seen + text)) - len(compress(seen))) / len(text)
    return found


def _xz(text: bytes) -> bytes:
    """xz at level 9, with a dictionary as long as the text: its memory is a dozen times that."""
    best = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(len(text), 4096)}
    return lzma.compress(text, format=lzma.FORMAT_RAW, filters=[best])


def _logistic(train_NF: Any, right: Sequence[Any]) -> tuple[Callable[[Any], list[Any]], int]:
    """(what it answers to features [N, F], its parameters); fitted to one class alone, it says that one."""
    from sklearn.linear_model import LogisticRegression

    if len(set(right)) == 1:
        return lambda test_NF: [right[0]] * test_NF.shape[0], 0
    model = LogisticRegression(C=10.0, max_iter=2000).fit(train_NF, right)
    return lambda test_NF: list(model.predict(test_NF)), int(np.size(model.coef_) + np.size(model.intercept_))


def _bag(terms: dict[str, Any]) -> Callable[[Task, Sequence[Record]], _Features]:
    def fitted(task: Task, train: Sequence[Record]) -> _Features:
        vectoriser = _vectoriser(terms, [task.query(record) for record in train])
        return lambda records: vectoriser.transform([task.query(record) for record in records])

    return fitted


def _comparison(terms: dict[str, Any]) -> Callable[[Task, Sequence[Record]], _Features]:
    def fitted(task: Task, train: Sequence[Record]) -> _Features:
        import scipy.sparse

        one, other = dict.fromkeys(fields(task.template.query))
        vectoriser = _vectoriser(terms, [record[name] for record in train for name in (one, other)])

        def features(records: Sequence[Record]) -> Any:
            a_NF, b_NF = (vectoriser.transform([record[name] for record in records]) for name in (one, other))
            product_NF = a_NF.multiply(b_NF)
            cosine_N1 = scipy.sparse.csr_matrix(product_NF.sum(axis=1))  # of rows of length one
            return scipy.sparse.hstack([product_NF, abs(a_NF - b_NF), cosine_N1], format="csr")

        return features

    return fitted


def _vectoriser(terms: dict[str, Any], texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(sublinear_tf=True, **terms)
    try:
        return vectoriser.fit(texts)
    except ValueError:  # not one term in any text
        return vectoriser.fit(["nothing"])


def _tokens(text: str) -> list[str]:
    """The words that scikit-learn takes by itself, of two letters and more; of other scripts what is a word there."""
    if text.isascii():
        return re.findall(r"\w\w+", text)
    return [word for word in words(text) if len(word) > 1 or word >= "\u0e00"]


_WORDS = {"tokenizer": _tokens, "token_pattern": None}
_WORD_PAIRS = {**_WORDS, "ngram_range": (1, 2)}
_CHARACTERS = {"analyzer": "char_wb", "ngram_range": (2, 4)}


def _numbers(task: Task, records: Sequence[Record]) -> np.ndarray:
    return np.array([task.number(record) for record in records])


def _row(method: str, task: Task, answers: _Answers, params: int, train_seconds: float) -> dict[str, Any]:
    test = task.splits["test"]
    return {
        "method": method,
        "metrics": all_metrics(task, answers(test), [task.answer(record) for record in test]),
        "params_total": params,
        "params_trainable": params,
        "train_seconds": train_seconds,
        "latency_ms_p50": median_ms(lambda record: answers([record]), test[:_TIMED]),
    }
