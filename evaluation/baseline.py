"""The honest baseline that a user would try first: TF-IDF with logistic regression, by scikit-learn."""

import time
from typing import Any

from limbeck.tasks.metrics import accuracy, macro_f1
from limbeck.tasks.task import Task


def tfidf_logistic(task: Task) -> dict[str, Any]:
    """Words and word pairs, sublinear TF-IDF, logistic regression at its defaults, on the task's own split.

    Returns the part of a report's row that it has.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, answers = (
        {split: [read(record) for record in task.splits[split]] for split in ("train", "test")}
        for read in (task.query, task.answer)
    )
    start = time.perf_counter()
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=2000)
    )
    model.fit(texts["train"], answers["train"])
    seconds = time.perf_counter() - start
    predicted = [str(label) for label in model.predict(texts["test"])]
    score = accuracy(predicted, answers["test"])
    return {
        "accuracy": score.value,
        "ci95": list(score.ci95),
        "n": score.n,
        "macro_f1": macro_f1(predicted, answers["test"]).value,
        "params_total": int(model[-1].coef_.size + model[-1].intercept_.size),
        "params_trainable": int(model[-1].coef_.size + model[-1].intercept_.size),
        "train_seconds": seconds,
    }
