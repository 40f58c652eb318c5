from typing import Any

import pytest

from limbeck.evaluation.measure import all_metrics
from limbeck.model.errors import UserError
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.task import KINDS, Task, Template

ANSWERS = {
    "generation": (["a b", "c"], ["a b", "d"], None),
    "classification": (["good", "bad"], ["good", "good"], ("good", "bad")),
    "multi_label": (["joy, anger", "none"], ["joy", "none"], ("joy", "anger")),
    "regression": (["1", "2.5"], ["1", "3"], None),
}


def task_of(kind: Any, metric: Any = None) -> Task:
    _, right, options = ANSWERS[kind]
    splits = {
        split: tuple({"id": f"{split}/{i}", "input": f"x{i}", "output": answer} for i, answer in enumerate(right))
        for split in ("train", "test")
    }
    return Task("mine", splits, Template(), options, kind=kind, metric=metric)


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_of_the_kind_is_there_and_the_task_s_own_comes_first(kind):
    said, right, _ = ANSWERS[kind]
    fitting = [name for name, metric in METRICS.items() if kind in metric.kinds]
    for own in fitting:
        found = all_metrics(task_of(kind, own), said, right)
        assert list(found) == [own, *(name for name in fitting if name != own)]
    for name, entry in found.items():
        score = METRICS[name].score(said, right)
        assert entry == {"value": score.value, "ci95": list(score.ci95), "n": 2}


def test_no_records_have_no_metrics():
    with pytest.raises(UserError, match="0 records"):
        all_metrics(task_of("regression"), [], [])
