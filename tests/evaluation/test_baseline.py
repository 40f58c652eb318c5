"""The baselines against scikit-learn's own pipelines, on small data whose structure is known, and on odd data."""

import random
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from limbeck.evaluation.baseline import (
    _tokens,
    baselines,
    commonest,
    compressed_bits_per_byte,
    tfidf_logistic,
    tfidf_ridge,
)
from limbeck.model.errors import UserError
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

FEELING = ["good", "great", "loved", "bad", "poor", "hated"]
WORDS = ["a", "film", "of", "the", "dull", "bright", "plot", "actor", "scene", "never", "isn't", "i", *FEELING]
PAIR = Template("{one}\n{other}\nscore:", " {output}")


def task_of(train, test, options=None, template=None, kind: Any = None) -> Task:
    """`train` and `test` are [({field: text}, answer)]."""
    splits = {
        split: tuple({"id": f"{split}/{i}", **asked, "output": answer} for i, (asked, answer) in enumerate(rows))
        for split, rows in (("train", train), ("test", test))
    }
    return Task("mine", splits, template or Template("{input}", " {output}"), options, kind=kind)


def texts(n: int, seed: int, k: int = 8) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=k)) for _ in range(n)]


def asked(texts):
    return [{"input": text} for text in texts]


def feeling(text: str) -> str:
    balance = sum((word in ("good", "great", "loved")) - (word in ("bad", "poor", "hated")) for word in text.split())
    return "up" if balance > 0 else "down" if balance < 0 else "level"


def test_classification_is_scikit_learn_s_pipeline():
    train, test = texts(300, 0), texts(200, 1)
    right = [feeling(text) for text in test]
    row = tfidf_logistic(
        task_of(
            list(zip(asked(train), map(feeling, train), strict=True)), list(zip(asked(test), right, strict=True)),
            ("up", "level", "down"),
        )
    )
    model = LogisticRegression(C=10.0, max_iter=2000)
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model)
    said = [str(label) for label in pipeline.fit(train, [feeling(text) for text in train]).predict(test)]
    for name in ("accuracy", "macro_f1", "matthews"):
        assert row["metrics"][name]["value"] == pytest.approx(METRICS[name].score(said, right).value)
    assert row["metrics"]["accuracy"]["value"] > 0.6
    assert row["params_total"] == row["params_trainable"] == np.size(model.coef_) + 3
    assert row["train_seconds"] > 0 and row["latency_ms_p50"] > 0


def test_many_labels_are_scikit_learn_s_one_against_the_rest():
    options = ("love", "hate", "never met")
    member = {"love": ("loved", "great"), "hate": ("hated", "poor")}

    def labels(text):
        return [name for name in options if set(member.get(name, ())) & set(text.split())]

    train, test = texts(300, 2, k=4), texts(200, 3, k=4)
    joined = [[", ".join(labels(text)) or "none" for text in part] for part in (train, test)]
    known, new = (list(zip(asked(part), right, strict=True)) for part, right in zip((train, test), joined, strict=True))
    task = task_of(known, new, options, kind="multi_label")
    row = tfidf_logistic(task)
    model = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=2000))
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model)
    met = options[:2]
    pipeline.fit(train, np.array([[name in labels(text) for name in met] for text in train], dtype=int))
    said = [", ".join(np.array(met)[chosen > 0]) or "none" for chosen in pipeline.predict(test)]
    assert row["metrics"]["micro_f1"]["value"] == pytest.approx(METRICS["micro_f1"].score(said, joined[1]).value)
    assert row["metrics"]["micro_f1"]["value"] > 0.9
    assert [row["method"] for row in baselines(task)] == ["tfidf_logistic", "commonest"]


def pairs(n: int, seed: int, score) -> list:
    one, other = texts(n, seed), texts(n, seed + 100)
    drawn = random.Random(seed)
    mixed = [
        " ".join(a if drawn.random() < share else b for a, b in zip(x.split(), y.split(), strict=True))
        for x, y, share in zip(one, other, np.linspace(0, 1, n), strict=True)
    ]
    return [({"one": x, "other": y}, f"{score(x, y):.3f}") for x, y in zip(one, mixed, strict=True)]


def overlap(x: str, y: str) -> float:
    return float(np.mean([a == b for a, b in zip(x.split(), y.split(), strict=True)]))


def loves(x: str, y: str) -> float:
    return float((x + " " + y).split().count("loved"))


@pytest.mark.parametrize(("score", "compared"), [(overlap, True), (loves, False)])
def test_a_regression_takes_the_features_that_its_data_asks_for(score, compared):
    row = tfidf_ridge(task_of(pairs(300, 0, score), pairs(100, 1, score), template=PAIR, kind="regression"))
    assert ("compared" in row["chosen"]) == compared
    assert row["metrics"]["pearson"]["value"] > 0.7
    assert list(row["metrics"]) == ["pearson", "spearman", "mse"]


def test_nothing_of_the_test_split_is_looked_at_before_it_is_answered():
    train, test = pairs(100, 0, overlap), pairs(50, 1, overlap)
    other = [(fields, f"{-float(answer):.3f}") for fields, answer in test]
    rows = [tfidf_ridge(task_of(train, part, template=PAIR, kind="regression")) for part in (test, other)]
    assert rows[0]["chosen"] == rows[1]["chosen"] and rows[0]["params_total"] == rows[1]["params_total"]
    values = [row["metrics"]["pearson"]["value"] for row in rows]
    assert values[0] == pytest.approx(-values[1]) and values[0] > 0.5


def test_the_trivial_answers():
    rows = [({"input": f"x {i}"}, answer) for i, answer in enumerate(["b", "a", "a", "b", "c"])]
    row = commonest(task_of(rows, rows, ("a", "b", "c")))
    assert row["method"] == "commonest" and row["metrics"]["accuracy"]["value"] == 0.4  # the first of equals: b
    assert row["params_total"] == 0 and "latency_ms_p50" not in row
    numbers = [({"input": f"x {i}"}, str(i)) for i in range(5)]
    row = commonest(task_of(numbers, numbers, kind="regression"))
    assert row["method"] == "mean" and row["metrics"]["mse"]["value"] == pytest.approx(2.0)  # the variance
    assert row["metrics"]["pearson"]["value"] == 0
    assert [row["method"] for row in baselines(task_of(rows, rows, kind="generation"))] == ["commonest"]
    assert [row["method"] for row in baselines(task_of(numbers, numbers, kind="regression"))] == ["tfidf_ridge", "mean"]


@pytest.mark.parametrize("text", ["? !", "x", "", "这部电影很好", "فیلمِ خوبی بود", "हिन्दी में लिखा"])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_odd_data_has_its_baselines_too(text, count):
    rows = [({"input": f"{text} {'.' * i}"}, "a") for i in range(count)]
    for task in (
        task_of(rows, rows, ("a", "b")),
        task_of(rows, rows, ("a", "b"), kind="multi_label"),
        task_of([(fields, str(i)) for i, (fields, _) in enumerate(rows)], [(rows[0][0], "3")], kind="regression"),
    ):
        for row in baselines(task):
            assert all(np.isfinite(entry["value"]) for entry in row["metrics"].values())
            if task.kind == "classification":
                assert row["metrics"]["accuracy"]["value"] == 1


def test_words_are_scikit_learn_s_in_latin_and_words_in_other_scripts():
    usual = TfidfVectorizer().build_tokenizer()
    for text in ("I don't like under_scores, 3 or 42!", "Über naïve Cafés", "فیلم خوبی بود"):
        assert _tokens(text.lower()) == usual(text.lower())
    assert _tokens("हिन्दी में") == ["हिन्दी", "में"] != usual("हिन्दी में")
    assert _tokens("می\u200cخواهم") == ["می\u200cخواهم"]
    assert _tokens("电影好") == ["电", "影", "好"]


def test_a_compressor_that_has_seen_the_text_needs_little_and_of_noise_needs_all():
    noise, other = (random.Random(seed).randbytes(20_000) for seed in (0, 1))
    for name in ("xz", "bz2"):
        assert compressed_bits_per_byte(noise, other)[name] == pytest.approx(8, rel=0.02)
        assert compressed_bits_per_byte(noise, noise[:5_000])[name] < (0.6 if name == "xz" else 5)
        alone, told = (compressed_bits_per_byte(seen, b"The film was good. " * 9)[name] for seen in (b"", b"The film"))
        assert 0 < told < alone


def test_a_compressor_reads_the_end_of_a_long_text():
    near = random.Random(0).randbytes(2_000)
    assert compressed_bits_per_byte(bytes(2_000_000) + near, near)["bz2"] < 5
    assert compressed_bits_per_byte(near + bytes(2_000_000), near)["bz2"] > 7.9
    assert compressed_bits_per_byte(near + bytes(2_000_000), near)["xz"] < 0.1  # it remembers further back


def test_no_validation_text_is_the_user_s_mistake():
    with pytest.raises(UserError, match="validation text is empty"):
        compressed_bits_per_byte(b"text", b"")


@pytest.mark.shared
def test_real_pairs_are_compared(shared_data):
    described = {"kind": "regression", "output": "score", "template": {"query": "{sentence1}\n{sentence2}\nscore:"}}
    task = load_task(shared_data / "stsb", description=described)
    train = task.splits["train"][::6]
    task = Task("stsb", {**task.splits, "train": train}, task.template, None, answer_field="score", kind="regression")
    row = tfidf_ridge(task)
    assert "compared" in row["chosen"] and row["metrics"]["pearson"]["value"] > 0.68
