"""A live teacher in the ordinary step: it gets no gradient, and the student comes to agree with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.loss import forward_kl
from limbeck.distill.teacher import STUDENT, distillation_loss, with_teacher, without_teacher
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.transformer import apply, init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.select import moved

TEACHER = ModelConfig(vocab_size=31, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16)
STUDENT_CONFIG = dataclasses.replace(TEACHER, depth=1, mlp_dim=16)
TEACHER_PARAMS = {path: 4 * leaf for path, leaf in init(TEACHER, jax.random.key(0)).items()}
PARAMS = with_teacher(init(STUDENT_CONFIG, jax.random.key(1)), TEACHER_PARAMS)


def batch_at(step: int) -> dict:
    tokens_BT = jax.random.randint(jax.random.key(step), (8, 9), 0, 31)
    return {
        "tokens_BT": tokens_BT[:, :-1],
        "targets_BT": tokens_BT[:, 1:],
        "weights_BT": jnp.ones((8, 8)).at[:, 5:].set(0),
        "positions_BT": jnp.tile(jnp.arange(8), (8, 1)),
        "segments_BT": jnp.ones((8, 8), jnp.int32),
    }


def divergence(params: dict) -> float:
    batch = batch_at(99)
    student_BTV, teacher_BTV = (
        apply(config, model, batch["tokens_BT"]).logits_BTV
        for config, model in ((STUDENT_CONFIG, params), (TEACHER, TEACHER_PARAMS))
    )
    return float(forward_kl(student_BTV, teacher_BTV, batch["weights_BT"]))


def test_the_loss_is_the_divergence_of_the_two_models():
    loss, metrics = distillation_loss(STUDENT_CONFIG, TEACHER)(PARAMS, batch_at(99), jax.random.key(0))
    assert float(loss) == pytest.approx(divergence(without_teacher(PARAMS)), rel=1e-5)
    assert metrics["weight"] == 40


def test_the_student_learns_and_the_teacher_stays_bitwise():
    settings = FitConfig(150, 8, 8, OptimConfig(learning_rate=1e-2, weight_decay=0.1), log_every=150)
    fitted = fit(distillation_loss(STUDENT_CONFIG, TEACHER), PARAMS, batch_at, settings, selection=STUDENT)
    assert fitted.trainable.keys() == without_teacher(PARAMS).keys()
    assert all(path.startswith("teacher/") for path in fitted.frozen)
    assert not any(moved({f"teacher/{path}": leaf for path, leaf in TEACHER_PARAMS.items()}, fitted.frozen).values())
    before, after = divergence(without_teacher(PARAMS)), divergence(fitted.trainable)
    assert after < 0.8 * before


def test_the_teacher_has_no_gradient():
    loss_fn = distillation_loss(STUDENT_CONFIG, TEACHER)
    gradients = jax.grad(lambda params: loss_fn(params, batch_at(0), jax.random.key(0))[0])(PARAMS)
    for path, gradient in gradients.items():
        assert np.any(gradient != 0) != path.startswith("teacher/"), path


def test_different_vocabularies_are_refused():
    with pytest.raises(UserError, match="vocab_size=30 is not the teacher's 31"):
        distillation_loss(dataclasses.replace(STUDENT_CONFIG, vocab_size=30), TEACHER)
