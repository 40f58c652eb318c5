"""The honest baseline that a user would try first: TF-IDF with logistic regression, by scikit-learn."""

import time
from typing import Any

import numpy as np

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
    classifier = LogisticRegression(C=10.0, max_iter=2000)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), classifier)
    model.fit(texts["train"], answers["train"])
    seconds = time.perf_counter() - start
    predicted = [str(label) for label in model.predict(texts["test"])]
    score = accuracy(predicted, answers["test"])
    params = int(np.size(classifier.coef_) + np.size(classifier.intercept_))
    return {
        "accuracy": score.value,
        "ci95": list(score.ci95),
        "n": score.n,
        "macro_f1": macro_f1(predicted, answers["test"]).value,
        "params_total": params,
        "params_trainable": params,
        "train_seconds": seconds,
    }
