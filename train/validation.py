"""The loss over data that is not trained on."""

from collections.abc import Callable

import jax
import numpy as np

from limbeck.model.params import Params
from limbeck.model.sharding import over_rows
from limbeck.train.data import Rows
from limbeck.train.loss import LossFn


def losses(loss_fn: LossFn, rows: Rows, batch_size: int) -> Callable[[Params], list[dict[str, float]]]:
    """A function of all parameters: the metrics of `loss_fn` for every batch, in order.

    The last batch of a length is filled up with rows that weigh nothing.
    """
    metrics_of = jax.jit(lambda params, batch: loss_fn(params, batch, jax.random.key(0))[1])

    def evaluate(params: Params) -> list[dict[str, float]]:
        found = []
        for group in rows.groups:
            for start in range(0, len(group["tokens_BT"]), batch_size):
                batch = {name: _filled(array[start : start + batch_size], batch_size) for name, array in group.items()}
                found.append({name: float(value) for name, value in metrics_of(params, over_rows(batch)).items()})
        return found

    return evaluate


def mean_loss(loss_fn: LossFn, rows: Rows, batch_size: int) -> Callable[[Params], dict[str, float]]:
    """A function of all parameters: the metrics of `loss_fn`, each the mean over all rows by their weights.

    `weight` is the sum of the weights.
    """
    of_batches = losses(loss_fn, rows, batch_size)

    def evaluate(params: Params) -> dict[str, float]:
        found = of_batches(params)
        weight = sum(each["weight"] for each in found)
        names = [name for name in found[0] if name != "weight"]
        means = {name: sum(each[name] * each["weight"] for each in found) / weight for name in names}
        return means | {"weight": weight}

    return evaluate


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))
