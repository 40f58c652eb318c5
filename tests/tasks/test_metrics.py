"""What holds for every metric that a task can name."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.tasks.metrics import METRICS, default_metric

KINDS = ("generation", "classification", "multi_label", "regression")
TEXTS = {
    "generation": ["the plum falls from a tree", "a pear", "\u0633\u06cc\u0628 \u0633\u0631\u062e", "plum tree", "42"],
    "classification": ["drupe", "pome", "\u0633\u06cc\u0628"],
    "multi_label": ["none", "joy", "joy, \u0634\u0627\u062f\u06cc", "love"],
    "regression": ["1", "2.5", "\u06f3", "-4e1"],
}
every_metric = pytest.mark.parametrize("name", METRICS)


def pairs_for(name: str) -> st.SearchStrategy[list[tuple[str, str]]]:
    texts = st.sampled_from(TEXTS[METRICS[name].kinds[-1]])
    return st.lists(st.tuples(texts, texts), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_default_that_fits_it(kind: str) -> None:
    assert kind in METRICS[default_metric(kind)].kinds


def test_an_unknown_kind_has_none() -> None:
    with pytest.raises(UserError, match="unknown kind 'regresion': one of .*; did you mean 'regression'"):
        default_metric("regresion")


@every_metric
def test_the_better_way_is_the_right_way(name: str) -> None:
    metric = METRICS[name]
    assert metric.kinds and set(metric.kinds) <= set(KINDS)
    answers = TEXTS[metric.kinds[-1]] * 3
    right, wrong = metric.score(answers, answers), metric.score(answers[1:] + answers[:1], answers)
    assert (right.value > wrong.value) is metric.higher_is_better
    assert right.n == wrong.n == len(answers)


@every_metric
def test_no_records_have_no_score(name: str) -> None:
    with pytest.raises(UserError, match="0 records"):
        METRICS[name].score([], [])


@every_metric
def test_a_missing_prediction_is_our_mistake(name: str) -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        METRICS[name].score(["1"], ["1", "2"])


@every_metric
@settings(deadline=None, max_examples=15)
@given(data=st.data(), seed=st.integers(0, 9))
def test_the_order_of_records_does_not_matter(name: str, data: st.DataObject, seed: int) -> None:
    pairs = data.draw(pairs_for(name))
    shuffled = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    one, other = (METRICS[name].score(*zip(*these, strict=True)) for these in (pairs, shuffled))
    assert one.value == pytest.approx(other.value)


@every_metric
@settings(deadline=None, max_examples=12)
@given(garbage=st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_whatever_a_model_writes_has_a_score(name: str, garbage: list[str]) -> None:
    """A finite one, with its interval, the same each time, that a report can hold."""
    texts = TEXTS[METRICS[name].kinds[-1]]
    answers = [texts[i % len(texts)] for i in range(len(garbage))]
    score = METRICS[name].score(garbage, answers)
    assert score == METRICS[name].score(garbage, answers)
    assert score.ci95[0] <= score.ci95[1]
    assert json.loads(json.dumps([score.value, *score.ci95], allow_nan=False))


def test_the_table_is_read_at_once() -> None:
    """The command line checks the name of a metric before it runs anything."""
    code = "import sys, limbeck.tasks.metrics; print({'jax', 'sacrebleu', 'scipy', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
