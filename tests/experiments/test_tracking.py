"""Rows reach every place that they should, also after a run was interrupted."""

import json
import sys
from dataclasses import dataclass

import pytest

from limbeck.experiments.tracking import tracking
from limbeck.model.errors import UserError


@dataclass(frozen=True)
class Config:
    seed: int = 0


def scalars(folder) -> dict[tuple[str, int], float]:
    """(name, step) -> value, over all event files, the later file winning."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found = {}
    for path in sorted(folder.rglob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            at += 16 + size
    return found


def test_rows_are_in_the_log_and_in_tensorboard(tmp_path):
    with tracking(tmp_path, Config()) as log:
        log({"stage": "tune", "step": 1, "loss": 2.5, "texts": [{"prompt": "Once", "text": " روزی"}]})
        log({"stage": "tune", "step": 2, "loss": 1.5, "validation_accuracy": 0.75})
    with tracking(tmp_path, Config()) as log:  # the run went on from step 1
        log({"stage": "tune", "step": 2, "loss": 1.25})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.5), (2, 1.25)]
    found = scalars(tmp_path / "tensorboard" / "tune")
    assert found["loss", 1] == 2.5 and found["loss", 2] == 1.25 and found["validation_accuracy", 2] == 0.75
    assert any(tag.startswith("text 0") for tag, _ in found)


def test_nothing_is_sent_anywhere_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    with tracking(tmp_path, Config()) as log:
        log({"stage": "tune", "step": 1, "loss": 2.5})
    with (
        pytest.raises(UserError, match="wandb='mine': .* is not installed; `pip install wandb`"),
        tracking(tmp_path, Config(), "mine"),
    ):
        pass


def test_weights_and_biases_gets_the_numbers_under_one_id(tmp_path, monkeypatch):
    class Wandb:
        runs, rows = [], []

        def init(self, **settings):
            self.runs.append(settings)
            return self

        def log(self, row):
            self.rows.append(row)

        def finish(self):
            self.rows.append("finished")

    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
        with tracking(tmp_path, Config(), "mine") as log:
            log({"stage": "tune", "step": step, "loss": 2.5})
    assert wandb.rows == [{"tune/loss": 2.5}, "finished"] * 2
    assert wandb.runs[0] == wandb.runs[1]
    assert wandb.runs[0]["project"] == "mine" and wandb.runs[0]["config"] == {"seed": 0}
