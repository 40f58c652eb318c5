"""Schedules in the batch: where they begin and end, and that everything else of the stream is as it was."""

import numpy as np
import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.schedules import scheduled
from limbeck.train.data import Rows, Stream


def batch_at(step: int) -> dict:
    return {"tokens_BT": np.full((4, 3), step)}


STREAM = Stream(batch_at, (Rows((), np.asarray([b"first", b"second"], np.bytes_)),))


def test_linear_from_the_first_step_to_the_last():
    config = DistilConfig(temperature=4.0, temperature_end=1.0, hard_weight=0.0, hard_weight_end=0.5)
    stream = scheduled(STREAM, config, steps=11)
    for step, temperature, hard_weight in ((0, 4.0, 0.0), (5, 2.5, 0.25), (10, 1.0, 0.5)):
        batch = stream(step)
        np.testing.assert_array_equal(batch["tokens_BT"], np.full((4, 3), step))
        np.testing.assert_array_equal(batch["temperature_B"], np.full(4, temperature, np.float32))
        np.testing.assert_array_equal(batch["hard_weight_B"], np.full(4, hard_weight, np.float32))
        assert batch["temperature_B"].dtype == np.float32
    assert stream(25)["temperature_B"][0] == 1.0  # a step behind the run's last
    assert stream.name(1) == "second"


def test_only_what_changes_is_in_the_batch():
    stream = scheduled(STREAM, DistilConfig(hard_weight_end=1.0), steps=5)
    assert stream(0).keys() == {"tokens_BT", "hard_weight_B"}
    assert scheduled(STREAM, DistilConfig(temperature=3.0), steps=5) is STREAM


@pytest.mark.parametrize("steps", [1, 2])
def test_short_runs(steps):
    stream = scheduled(STREAM, DistilConfig(temperature=4.0, temperature_end=1.0), steps)
    assert stream(0)["temperature_B"][0] == 4.0
    assert stream(1)["temperature_B"][0] == 1.0
