"""The metrics that a task can name: what each measures with, which way is better, what it is for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from limbeck.model.errors import one_of
from limbeck.tasks.intervals import Score
from limbeck.tasks.label_metrics import accuracy, label_macro_f1, macro_f1, matthews, micro_f1
from limbeck.tasks.number_metrics import mse, pearson, spearman
from limbeck.tasks.text_metrics import bleu, chrf, exact_match, rouge_l, token_f1


class Metric(NamedTuple):
    """How predictions are scored against answers, and the kinds of task that this fits."""

    score: Callable[[Sequence[str], Sequence[str]], Score]
    kinds: tuple[str, ...]
    higher_is_better: bool = True


_DEFAULTS = {
    "generation": "accuracy",
    "classification": "accuracy",
    "multi_label": "micro_f1",
    "regression": "pearson",
}
_CLASSES = ("generation", "classification")  # a class may be generated too
METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, (*_CLASSES, "multi_label")),
    "macro_f1": Metric(macro_f1, _CLASSES),
    "matthews": Metric(matthews, _CLASSES),
    "micro_f1": Metric(micro_f1, ("multi_label",)),
    "label_macro_f1": Metric(label_macro_f1, ("multi_label",)),
    "pearson": Metric(pearson, ("regression",)),
    "spearman": Metric(spearman, ("regression",)),
    "mse": Metric(mse, ("regression",), higher_is_better=False),
    "exact_match": Metric(exact_match, ("generation",)),
    "token_f1": Metric(token_f1, ("generation",)),
    "rouge_l": Metric(rouge_l, ("generation",)),
    "bleu": Metric(bleu, ("generation",)),
    "chrf": Metric(chrf, ("generation",)),
}


def default_metric(kind: str) -> str:
    """The metric of a kind of task that names none. Raises UserError for a kind that there is not."""
    return _DEFAULTS[one_of("kind", kind, _DEFAULTS)]
