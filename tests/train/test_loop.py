"""Evaluations on the way, the best of them, ending early, and whose checkpoints these are."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.model.params import digest
from limbeck.train import loop
from limbeck.train.checkpoint import read_checkpoint, steps
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import Evaluation, fit
from limbeck.train.select import Selection

START = {"x": jnp.zeros(4), "y": jnp.zeros(2)}


def loss_fn(params, batch, key):
    """Draws x to the batch's number, through noise, so that the key matters."""
    goal = batch["goal"] + 0.1 * jax.random.normal(key, (4,))
    loss = jnp.square(params["x"] - goal).sum() + jnp.square(params["y"]).sum()
    return loss, {"loss": loss, "weight": jnp.float32(1)}


def batch_at(step):
    """x is drawn to 1 and then, from step 6 on, away from it."""
    return {"goal": np.float32(1 if step < 6 else -2), "tokens_BT": np.ones((1, 5), np.int32)}


def nearness(params) -> Evaluation:
    """How near x is to 1: best about step 6."""
    distance = float(jnp.abs(params["x"] - 1).mean())
    return Evaluation(-distance, {"distance": distance})


CONFIG = FitConfig(
    steps=12, optim=OptimConfig("sgd", learning_rate=0.1, b1=0.0, schedule="constant", warmup=0.0, clip=None),
    log_every=5, checkpoint_every=4, evaluate_every=2,
)  # fmt: skip


def test_evaluations_are_logged_with_their_step_and_the_last_step_has_one():
    rows = []
    fitted = fit(loss_fn, START, batch_at, dataclasses.replace(CONFIG, steps=11), evaluate=nearness, log=rows.append)
    assert [found["step"] for found in fitted.evaluations] == [2, 4, 6, 8, 10, 11]
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 8, 10, 11]
    assert [row["step"] for row in rows if "distance" in row] == [2, 4, 6, 8, 10, 11]
    assert rows[0].keys() == {
        "stage", "step", "loss", "weight", "grad_norm", "learning_rate", "tokens_per_second", "distance",
    }  # fmt: skip
    assert fitted.steps == 11


def test_donated_arrays_are_freed_once_they_train_and_nothing_else_is(tmp_path):
    selection = Selection(("x", "z"))
    right = fit(loss_fn, START | {"z": START["x"] + 1}, batch_at, CONFIG, selection=selection)
    teacher = jnp.ones(4)
    params = {name: leaf + 0 for name, leaf in START.items()} | {"z": teacher, "teacher/z": jax.device_put(teacher)}
    assert params["z"].unsafe_buffer_pointer() == params["teacher/z"].unsafe_buffer_pointer()
    still_there = []

    def seen(step):
        still_there.append({name for name, leaf in params.items() if not leaf.is_deleted()})
        return batch_at(step)

    settings = {"selection": selection, "checkpoints": tmp_path, "donate": True}
    found = fit(loss_fn, params, seen, CONFIG, **settings)
    assert [leaves for leaves in still_there[1:] if leaves != {"y", "z", "teacher/z"}] == []
    assert {name: leaf.tolist() for name, leaf in found.trainable.items()} == {
        name: leaf.tolist() for name, leaf in right.trainable.items()
    }
    assert found.frozen["teacher/z"].tolist() == [1, 1, 1, 1]
    with pytest.raises(RuntimeError, match="deleted"):
        fit(loss_fn, params, batch_at, CONFIG, **settings)


def test_an_array_may_stand_under_two_paths_that_train():
    one = jnp.zeros(4)
    fitted = fit(loss_fn, {"x": one, "again": one, "y": jnp.zeros(2)}, batch_at, CONFIG, donate=True)
    assert one.is_deleted() and fitted.trainable["again"].tolist() == [0, 0, 0, 0]


def in_memory(shape) -> int:
    """How many arrays of a shape there are; two of one memory are one."""
    return len({leaf.unsafe_buffer_pointer() for leaf in jax.live_arrays() if leaf.shape == shape})


def test_a_run_that_goes_on_never_holds_two_states(tmp_path, monkeypatch):
    """What a checkpoint is restored into has shapes alone."""
    size, held = (3, 100), []
    settings = dataclasses.replace(CONFIG, optim=OptimConfig("adamw"), keep="best")

    def far(params, batch, key):
        return loss_fn(params, batch, key)[0] + params["w"].sum(), loss_fn(params, batch, key)[1]

    def start():
        return START | {"w": jnp.ones(size)}

    def counted(checkpoint, like):
        held.append(in_memory(size))
        return read_checkpoint(checkpoint, like)

    whole = fit(far, start(), batch_at, settings, evaluate=nearness)
    fit(far, start(), batch_at, settings, evaluate=nearness, checkpoints=tmp_path)
    newest = tmp_path / str(max(steps(tmp_path)))
    shutil.rmtree(newest)
    before = in_memory(size)
    monkeypatch.setattr(loop, "read_checkpoint", counted)
    resumed = fit(far, start(), batch_at, settings, evaluate=nearness, checkpoints=tmp_path)
    assert held == [before + 1]  # what it began with, of which the digest is taken
    assert {name: leaf.tolist() for name, leaf in resumed.trainable.items()} == {
        name: leaf.tolist() for name, leaf in whole.trainable.items()
    }


@pytest.mark.parametrize("name", ["lion", "adamw"])
@pytest.mark.parametrize("spoilt", ["norm", "loss"])
def test_a_step_that_is_told_as_left_out_moved_nothing(name, spoilt):
    """Entries of 3e19 are numbers, the sum of their squares is none; a loss may be none where its gradient is."""

    def spoiling(params, batch, key):
        loss = params["x"].sum() * batch["goal"] + jnp.where(batch["goal"] > 1, jnp.inf, 0)
        return loss, {"loss": loss, "weight": jnp.float32(1)}

    def batch(step) -> dict:
        large = {"norm": 3e19, "loss": 2.0}[spoilt] if step == 3 else 1.0
        return {**batch_at(step), "goal": np.float32(large * (-1 if spoilt == "norm" else 1))}

    optim = OptimConfig(name, learning_rate=0.1, clip=None, skip=1, weight_decay=0.0, schedule="constant", warmup=0.0)
    settings = dataclasses.replace(CONFIG, optim=optim, evaluate_every=None)
    after = [fit(spoiling, START, batch, dataclasses.replace(settings, steps=steps)) for steps in (3, 4)]
    assert [len(fitted.skipped) for fitted in after] == [0, 1]
    one, other = (fitted.trainable["x"].tolist() for fitted in after)
    assert one == other != START["x"].tolist()


def test_a_score_that_is_no_number_is_worse_than_any():
    scores = iter([math.nan, 0.1, 0.5, 0.9, math.nan, 0.2])

    def evaluate(params):
        return Evaluation(next(scores), {"x": float(params["x"][0])})

    settings = dataclasses.replace(CONFIG, keep="best", patience=3)
    fitted = fit(loss_fn, START, batch_at, settings, evaluate=evaluate)
    assert len(fitted.evaluations) == 6
    assert fitted.evaluations[3]["x"] == float(fitted.trainable["x"][0]) != 0


def test_the_best_is_kept_where_it_is_asked_for():
    last = fit(loss_fn, START, batch_at, CONFIG, evaluate=nearness)
    best = fit(loss_fn, START, batch_at, dataclasses.replace(CONFIG, keep="best"), evaluate=nearness)
    assert last.evaluations == best.evaluations
    scores = {found["step"]: found["score"] for found in best.evaluations}
    assert max(scores, key=scores.__getitem__) == 6
    assert nearness(best.trainable).score == scores[6]
    assert nearness(last.trainable).score == scores[12] < scores[6]
    with pytest.raises(UserError, match="keep='best' needs evaluations"):
        fit(loss_fn, START, batch_at, dataclasses.replace(CONFIG, keep="best"))


def test_a_run_ends_after_so_many_evaluations_without_a_better_one():
    patient = dataclasses.replace(CONFIG, steps=100, patience=2, keep="best")
    fitted = fit(loss_fn, START, batch_at, patient, evaluate=nearness)
    assert [found["step"] for found in fitted.evaluations] == [2, 4, 6, 8, 10]
    assert fitted.steps == 10


@pytest.mark.parametrize("kill_at", [3, 7, 9, 11])
def test_evaluations_best_and_patience_survive_a_kill(tmp_path, kill_at):
    """With the average on as well: everything that the end depends on is in the checkpoint."""
    optim = dataclasses.replace(CONFIG.optim, average=0.8)
    settings = dataclasses.replace(CONFIG, steps=40, optim=optim, keep="best", patience=3)
    whole = fit(loss_fn, START, batch_at, settings, evaluate=nearness)

    def until_killed(step):
        if step == kill_at:
            raise KeyboardInterrupt
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        fit(loss_fn, START, until_killed, settings, evaluate=nearness, checkpoints=tmp_path)
    assert steps(tmp_path) == [step for step in (4, 8) if step <= kill_at]
    resumed = fit(loss_fn, START, batch_at, settings, evaluate=nearness, checkpoints=tmp_path)
    assert digest(resumed.trainable) == digest(whole.trainable)
    assert (resumed.evaluations, resumed.curve, resumed.steps) == (whole.evaluations, whole.curve, whole.steps)


def test_a_finished_run_is_not_run_again(tmp_path):
    first = fit(loss_fn, START, batch_at, CONFIG, checkpoints=tmp_path)
    seen = []

    def batch_seen(step):
        seen.append(step)
        return batch_at(step)

    again = fit(loss_fn, START, batch_seen, CONFIG, checkpoints=tmp_path)
    assert digest(again.trainable) == digest(first.trainable) and again.curve == first.curve
    assert seen == [0]  # by which the data is known


@pytest.mark.parametrize(
    "change, words",
    [
        ({"params": {**START, "y": jnp.ones(2)}}, "began with another model"),
        ({"selection": Selection(("x",))}, "trains other parameters, or with another optimiser"),
        ({"config": dataclasses.replace(CONFIG, optim=OptimConfig())}, "or with another optimiser"),
        ({"batch_at": lambda step: {**batch_at(step), "goal": np.float32(3)}}, "read other data"),
    ],
)
def test_the_checkpoints_of_another_run_are_refused(tmp_path, change, words):
    arguments = {"params": START, "batch_at": batch_at, "config": dataclasses.replace(CONFIG, steps=4)}
    fit(loss_fn, **arguments, checkpoints=tmp_path)
    with pytest.raises(UserError, match=words):
        fit(loss_fn, **{**arguments, **change}, checkpoints=tmp_path)


def test_a_checkpoint_holds_what_trains_alone(tmp_path):
    frozen = {"z": jnp.ones(1 << 18)}
    fit(loss_fn, START | frozen, batch_at, CONFIG, selection=Selection(("x",)), checkpoints=tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "12").rglob("*") if path.is_file())
    assert size < 1 << 17
    notes = json.loads((tmp_path / "12" / "notes.json").read_text())
    assert notes["run"]["base"] == digest(START | frozen)


def test_the_first_step_says_how_long_was_compiled(capsys):
    fit(loss_fn, START, batch_at, CONFIG)
    assert "train: first step after" in (said := capsys.readouterr().err)
    assert "s of it compiling, " in said and "of 1 programs from the cache" in said


def test_a_profile_is_of_a_few_steps(tmp_path):
    fit(loss_fn, START, batch_at, CONFIG, profile=tmp_path)
    assert [path.suffix for path in tmp_path.rglob("*.xplane.pb")] == [".pb"]


def test_the_share_of_the_machines_rate_is_logged_where_the_work_is_known():
    rows = []
    fit(loss_fn, START, batch_at, CONFIG, log=rows.append, flops_per_step=1e3)
    assert 0 < rows[-1]["mfu"] < 1
