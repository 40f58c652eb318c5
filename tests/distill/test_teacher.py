"""Teachers in the ordinary step: live, several, cached, on rows of their own; they stay as they are."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.loss import forward_kl, generalized_jsd
from limbeck.distill.teacher import STUDENT, distillation_loss, student_only, with_teacher, without_teacher
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import merge
from limbeck.model.transformer import apply, classify, init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.select import Selection, apply_selection, lora_only, moved
from limbeck.train.step import init_state, make_step

V = 31
TEACHER = ModelConfig(vocab_size=V, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16)
STUDENT_CONFIG = dataclasses.replace(TEACHER, depth=1, mlp_dim=16)
TEACHER_PARAMS = {path: 4 * leaf for path, leaf in init(TEACHER, jax.random.key(0)).items()}
OTHER_PARAMS = {path: 4 * leaf for path, leaf in init(TEACHER, jax.random.key(5)).items()}
STUDENT_PARAMS = init(STUDENT_CONFIG, jax.random.key(1))
PARAMS = with_teacher(STUDENT_PARAMS, TEACHER_PARAMS)
KEY = jax.random.key(0)

close = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))


def batch_at(step: int) -> dict[str, Any]:
    """Rows whose tokens count unevenly, the last three places of each padding."""
    rng = np.random.default_rng(step)
    tokens_BT = rng.integers(0, V, (8, 9), np.int32)
    weights_BT = (rng.random((8, 8)) < np.where(np.arange(8) % 2, 0.3, 1.0)[:, None]).astype(np.float32)
    weights_BT[:, 5:] = 0
    return {
        "tokens_BT": tokens_BT[:, :-1],
        "targets_BT": tokens_BT[:, 1:],
        "weights_BT": weights_BT,
        "positions_BT": np.tile(np.arange(8, dtype=np.int32), (8, 1)),
        "segments_BT": np.tile((np.arange(8) < 5).astype(np.int32), (8, 1)),
    }


BATCH = batch_at(99)


def logits(config: ModelConfig, params: dict, batch: dict = BATCH) -> jax.Array:
    return _logits(config, params, *(batch[f"{name}_BT"] for name in ("tokens", "positions", "segments")))


@partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens_BT, positions_BT, segments_BT):
    return apply(config, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT).logits_BTV


def divergence(params: dict) -> float:
    return float(forward_kl(logits(STUDENT_CONFIG, params), logits(TEACHER, TEACHER_PARAMS), BATCH["weights_BT"]))


def run(loss_fn, student: dict = STUDENT_PARAMS, beside: dict = PARAMS, batch: dict = BATCH):
    """((loss, metrics), the student's gradient)."""
    frozen = {path: leaf for path, leaf in beside.items() if path not in student}

    @jax.jit
    def compiled(student, batch):
        return jax.value_and_grad(lambda own: loss_fn(merge(own, frozen), batch, KEY), has_aux=True)(student)

    return compiled(student, batch)


def test_the_loss_is_the_divergence_of_the_two_models():
    (loss, metrics), _ = run(distillation_loss(STUDENT_CONFIG, TEACHER))
    assert float(loss) == pytest.approx(divergence(STUDENT_PARAMS), rel=1e-5)
    assert metrics["weight"] == BATCH["weights_BT"].sum()
    assert metrics["loss"] == metrics["divergence"] == loss


def test_the_student_learns_and_the_teacher_stays_bitwise():
    settings = FitConfig(100, 8, 8, OptimConfig(learning_rate=1e-2, weight_decay=0.1), log_every=100)
    before = {path: jnp.array(leaf) for path, leaf in PARAMS.items()}
    fitted = fit(distillation_loss(STUDENT_CONFIG, TEACHER), PARAMS, batch_at, settings, selection=STUDENT)
    assert fitted.trainable.keys() == STUDENT_PARAMS.keys()
    assert all(path.startswith("teacher/") for path in fitted.frozen)
    assert fitted.frozen.keys() == PARAMS.keys() - STUDENT_PARAMS.keys()
    assert not any(moved(before, fitted.frozen).values())
    assert divergence(fitted.trainable) < 0.8 * divergence(STUDENT_PARAMS)


def test_the_teacher_has_no_gradient():
    loss_fn = distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig("generalized_jsd", hard_weight=0.5))
    gradients = jax.jit(jax.grad(lambda params: loss_fn(params, BATCH, KEY)[0]))(PARAMS)
    for path, gradient in gradients.items():
        assert np.any(gradient != 0) != path.startswith("teacher/"), path


def test_padding_changes_nothing_at_all():
    """Other tokens and targets where nothing counts leave every bit of loss and gradient."""
    loss_fn = distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig(temperature=2.0, hard_weight=0.3))
    padding = BATCH["segments_BT"] == 0
    other = {name: np.where(padding, 7, BATCH[name]) for name in ("tokens_BT", "targets_BT")}
    jax.tree.map(np.testing.assert_array_equal, run(loss_fn), run(loss_fn, batch=BATCH | other))


def test_an_accumulated_step_is_that_of_the_whole_batch():
    """Also where the teacher has nothing to say of some tokens, in some portions of more than in others."""
    rows = paired(BATCH)
    rows["teacher_at_BT"] = np.where(np.arange(8)[:, None] < 5, rows["teacher_at_BT"], -1)
    rows |= {"temperature_B": np.full(8, 2.0, np.float32), "hard_weight_B": np.full(8, 0.3, np.float32)}
    loss_fn, optimizer = distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig("generalized_jsd")), optax.sgd(1.0)
    trainable, frozen = apply_selection(STUDENT, PARAMS)
    (whole, metrics), (parts, part_metrics) = (
        make_step(loss_fn, optimizer, accumulate=portions)(init_state(optimizer, trainable), frozen, rows, KEY)
        for portions in (1, 4)
    )
    for path, leaf in whole.trainable.items():
        np.testing.assert_allclose(parts.trainable[path], leaf, atol=1e-6, err_msg=path)
    for name, value in metrics.items():
        np.testing.assert_allclose(part_metrics[name], value, rtol=2e-6, err_msg=name)


# Where the teacher's distribution comes from


def paired(batch: dict, shift: int = 0) -> dict[str, Any]:
    """The same rows as the teacher's own, `shift` tokens of another text before them."""
    prompt = {
        "tokens": np.full((8, shift), 3, np.int32),
        "positions": np.tile(np.arange(shift, dtype=np.int32), (8, 1)),
        "segments": np.ones((8, shift), np.int32),
    }
    own = {name: batch[f"{name}_BT"] for name in prompt} | {"positions": batch["positions_BT"] + shift}
    rows = {f"teacher_{name}_BS": np.concatenate([prompt[name], own[name]], 1) for name in prompt}
    at_BT = np.where(batch["segments_BT"] > 0, np.arange(8) + shift, -1).astype(np.int32)
    return batch | rows | {"teacher_at_BT": at_BT}


def test_paired_rows_are_plain_rows_where_the_teacher_reads_the_same():
    loss_fn = distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig(temperature=2.0, hard_weight=0.3))
    close(run(loss_fn, batch=paired(BATCH)), run(loss_fn))


def test_paired_rows_take_the_teacher_s_places():
    """The teacher reads a prompt before the student's text; tokens at -1 count in the hard term alone."""
    rows = paired(BATCH, shift=4)
    rows["teacher_at_BT"][2] = -1
    loss_fn = distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig(hard_weight=0.5))
    (loss, metrics), _ = run(loss_fn, batch=rows)
    theirs = {f"{name}_BT": rows[f"teacher_{name}_BS"] for name in ("tokens", "positions", "segments")}
    teacher = logits(TEACHER, TEACHER_PARAMS, theirs)[:, 4:]
    weights_BT = np.where(np.arange(8)[:, None] == 2, 0, BATCH["weights_BT"])
    kl = forward_kl(logits(STUDENT_CONFIG, STUDENT_PARAMS), teacher, jnp.asarray(weights_BT))
    expected = kl * weights_BT.sum() / BATCH["weights_BT"].sum()
    np.testing.assert_allclose(metrics["divergence"], expected, rtol=1e-5)
    log_q = jax.nn.log_softmax(logits(STUDENT_CONFIG, STUDENT_PARAMS))
    picked_BT = np.take_along_axis(np.asarray(log_q), BATCH["targets_BT"][..., None], 2)[..., 0]
    hard = -np.average(picked_BT, weights=BATCH["weights_BT"])
    np.testing.assert_allclose(loss, 0.5 * hard + 0.5 * expected, rtol=1e-5)


def with_entries(batch: dict, k: int = V) -> dict[str, Any]:
    logprobs = np.asarray(jax.nn.log_softmax(logits(TEACHER, TEACHER_PARAMS, batch)))
    ids = np.argsort(-logprobs, axis=-1)[..., :k].astype(np.int32)
    entries = {"teacher_ids_BTK": ids, "teacher_logprobs_BTK": np.take_along_axis(logprobs, ids, -1)}
    return batch | entries


@pytest.mark.parametrize(("cache", "temperature"), [("topk", 2.0), ("topk_tail", 1.0), ("sampled", 1.0)])
def test_a_cache_of_the_whole_vocabulary_is_the_live_teacher(cache, temperature):
    settings = {"temperature": temperature, "hard_weight": 0.3}
    from_cache = distillation_loss(STUDENT_CONFIG, None, DistilConfig(cache=cache, **settings))
    found = run(from_cache, beside=STUDENT_PARAMS, batch=with_entries(BATCH))
    close(found, run(distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig(**settings))))


def test_several_teachers_are_their_mixture():
    several = with_teacher(STUDENT_PARAMS, [TEACHER_PARAMS, OTHER_PARAMS])
    assert {path.split("/")[0] for path in several.keys() - STUDENT_PARAMS.keys()} == {"teacher0", "teacher1"}
    assert without_teacher(several).keys() == STUDENT_PARAMS.keys()
    trainable, _ = apply_selection(STUDENT, several)
    assert trainable.keys() == STUDENT_PARAMS.keys()
    assert with_teacher(STUDENT_PARAMS, [TEACHER_PARAMS]).keys() == PARAMS.keys()
    p, other = (jax.nn.softmax(logits(TEACHER, params) / 2) for params in (TEACHER_PARAMS, OTHER_PARAMS))
    for weights, share in (((), 0.5), ((1.0, 3.0), 0.25)):
        config = DistilConfig("generalized_jsd", temperature=2.0, teacher_weights=weights)
        (loss, _), _ = run(distillation_loss(STUDENT_CONFIG, [TEACHER, TEACHER], config), beside=several)
        mixture = 2 * jnp.log(share * p + (1 - share) * other)
        student = logits(STUDENT_CONFIG, STUDENT_PARAMS)
        expected = generalized_jsd(student, mixture, BATCH["weights_BT"], temperature=2.0)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    with pytest.raises(UserError, match="there are 2 teachers"):
        distillation_loss(STUDENT_CONFIG, [TEACHER, TEACHER], DistilConfig(teacher_weights=(1.0,)))


@pytest.mark.parametrize("wide", ["teacher", "student"])
def test_vocabularies_padded_differently(wide):
    """Models of one tokenizer: rows of the embedding beyond its tokens change neither distribution."""

    def padded(params):
        table = params["embed/embedding"]
        return params | {"embed/embedding": jnp.concatenate([table, 3 * jnp.ones((9, table.shape[1]))])}

    config = DistilConfig(temperature=2.0)
    student, teacher, params, theirs = STUDENT_CONFIG, TEACHER, STUDENT_PARAMS, TEACHER_PARAMS
    if wide == "student":
        student, params = dataclasses.replace(student, vocab_size=V + 9), padded(params)
    else:
        teacher, theirs = dataclasses.replace(teacher, vocab_size=V + 9), padded(theirs)
    (loss, _), gradient = run(distillation_loss(student, teacher, config), params, with_teacher(params, theirs))
    (expected, _), plain = run(distillation_loss(STUDENT_CONFIG, TEACHER, config))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient["embed/embedding"][:V], plain["embed/embedding"], atol=1e-6)
    assert not np.any(gradient["embed/embedding"][V:])


def test_capped_logits():
    student, teacher = (dataclasses.replace(config, logit_softcap=3.0) for config in (STUDENT_CONFIG, TEACHER))
    (loss, _), _ = run(distillation_loss(student, teacher))
    expected = forward_kl(logits(student, STUDENT_PARAMS), logits(teacher, TEACHER_PARAMS), BATCH["weights_BT"])
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss) != pytest.approx(divergence(STUDENT_PARAMS), rel=1e-2)


def test_schedules_in_the_batch_take_the_place_of_the_config_s_numbers():
    batch = BATCH | {"temperature_B": np.full(8, 2.0, np.float32), "hard_weight_B": np.full(8, 0.3, np.float32)}
    found = run(distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig(temperature=5.0)), batch=batch)
    close(found, run(distillation_loss(STUDENT_CONFIG, TEACHER, DistilConfig(temperature=2.0, hard_weight=0.3))))


def test_a_teacher_in_fewer_bits():
    half = with_teacher(STUDENT_PARAMS, TEACHER_PARAMS, "bfloat16")
    assert {leaf.dtype for path, leaf in half.items() if path.startswith("teacher/")} == {jnp.dtype(jnp.bfloat16)}
    coded = with_teacher(STUDENT_PARAMS, TEACHER_PARAMS, "int8")
    assert coded["teacher/blocks/mlp/up/kernel_int8"].dtype == jnp.int8
    for params in (half, coded):
        assert all(params[path] is leaf for path, leaf in STUDENT_PARAMS.items())
        (loss, _), _ = run(distillation_loss(STUDENT_CONFIG, TEACHER), beside=params)
        assert float(loss) == pytest.approx(divergence(STUDENT_PARAMS), rel=0.1)


def test_a_way_of_tuning_never_names_the_teacher():
    params = PARAMS | {"blocks/attn/q/lora_a": jnp.zeros((1, 16, 2)), "teacher/blocks/attn/q/lora_a": jnp.zeros(3)}
    trainable, _ = apply_selection(student_only(Selection((*lora_only().patterns, ".*norm/scale"))), params)
    assert "blocks/attn/q/lora_a" in trainable and "norm/scale" in trainable
    assert not any(path.startswith("teacher") for path in trainable)


# Heads

LABELS = ("no", "perhaps", "yes")


def headed(config: ModelConfig, labels: tuple[str, ...], seed: int) -> tuple[ModelConfig, dict]:
    config = dataclasses.replace(config, labels=labels)
    return config, {path: 2 * leaf for path, leaf in init(config, jax.random.key(seed)).items()}


def texts(options: int) -> dict[str, Any]:
    """Each row a text of five tokens, of which the last one counts."""
    rng = np.random.default_rng(0)
    last = np.zeros((8, 8), bool)
    last[:, 4] = True
    values_BTC = np.where(last[..., None], rng.integers(0, 2, (8, 8, options)), 0).astype(np.float32)
    targets_BT = np.where(last, rng.integers(0, options, (8, 8)), 0).astype(np.int32)
    return BATCH | {"weights_BT": last.astype(np.float32), "targets_BT": targets_BT, "values_BTC": values_BTC}


@pytest.mark.parametrize("kind", ["classification", "multi_label", "regression"])
def test_heads(kind):
    labels = LABELS if kind != "regression" else ("score",)
    (student, params), (teacher, theirs) = headed(STUDENT_CONFIG, labels, 2), headed(TEACHER, labels, 3)
    temperature = 1.0 if kind == "regression" else 2.0
    config = DistilConfig(temperature=temperature, hard_weight=0.3)
    batch = texts(len(labels))
    (loss, metrics), gradient = run(
        distillation_loss(student, teacher, config, kind=kind), params, with_teacher(params, theirs), batch
    )
    lengths_B = jnp.full(8, 5)
    ours, taught = (
        np.asarray(jax.jit(classify, static_argnums=0)(config, model, batch["tokens_BT"], lengths_B), np.float64)
        for config, model in ((student, params), (teacher, theirs))
    )
    values = batch["values_BTC"][:, 4]
    if kind == "classification":
        p, q, plain = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (taught / 2, ours / 2, ours))
        soft = 4 * (p * np.log(p / q)).sum(-1).mean()
        hard = -np.log(np.take_along_axis(plain, batch["targets_BT"][:, 4:5], 1)).mean()
    elif kind == "multi_label":
        p, q, plain = (1 / (1 + np.exp(-x)) for x in (taught / 2, ours / 2, ours))
        soft = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1).mean()
        hard = -(values * np.log(plain) + (1 - values) * np.log(1 - plain)).sum(-1).mean()
    else:
        soft, hard = ((ours - taught) ** 2).sum(-1).mean(), ((ours - values) ** 2).sum(-1).mean()
    np.testing.assert_allclose(metrics["divergence"], soft, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.3 * hard + 0.7 * soft, rtol=1e-4)
    assert metrics["weight"] == 8 and np.any(gradient["score/kernel"])


def test_heads_that_do_not_fit_are_refused():
    student, teacher = (dataclasses.replace(config, labels=LABELS) for config in (STUDENT_CONFIG, TEACHER))
    turned = dataclasses.replace(teacher, labels=LABELS[::-1])
    for kind in ("classification", "multi_label"):
        with pytest.raises(UserError, match="yes, perhaps, no, the student's no, perhaps, yes"):
            distillation_loss(student, turned, kind=kind)
    with pytest.raises(UserError, match="student's head gives no, perhaps, yes"):
        distillation_loss(student, teacher)
    with pytest.raises(UserError, match="teacher has no head"):
        distillation_loss(student, TEACHER, kind="classification")
    with pytest.raises(UserError, match="a number is one"):
        distillation_loss(student, teacher, kind="regression")
    one, other = (dataclasses.replace(config, labels=(name,)) for config, name in ((student, "a"), (teacher, "b")))
    distillation_loss(one, other, kind="regression")
    for config in (DistilConfig(temperature=2.0), DistilConfig(temperature_end=2.0), DistilConfig("reverse_kl")):
        with pytest.raises(UserError, match="squared distance"):
            distillation_loss(one, other, config, kind="regression")
    with pytest.raises(UserError, match="cache=topk"):
        distillation_loss(student, None, DistilConfig(cache="topk"), kind="multi_label")


# Features, and rows that do not fit


class Matched(NamedTuple):
    names: tuple[str, ...] = ("hidden",)

    def loss(self, params, student, teacher, batch):
        difference = (student["hidden"][-1] - teacher["hidden"][-1]) * params["matcher/scale"]
        value = jnp.where(jnp.asarray(batch["weights_BT"])[..., None] > 0, difference**2, 0).mean()
        return value, {"matched": value}


def test_matched_features_are_added_and_their_projections_train():
    loss_fn = distillation_loss(STUDENT_CONFIG, TEACHER, matching=Matched())  # pyright: ignore[reportArgumentType]
    student = STUDENT_PARAMS | {"matcher/scale": jnp.float32(0.5)}
    (loss, metrics), gradient = run(loss_fn, student)
    assert float(metrics["divergence"]) == pytest.approx(divergence(STUDENT_PARAMS), rel=1e-5)
    assert float(metrics["matched"]) > 0
    np.testing.assert_allclose(loss, metrics["divergence"] + metrics["matched"], rtol=1e-6)
    assert gradient["matcher/scale"] != 0
    trainable, _ = apply_selection(STUDENT, student | PARAMS)
    assert "matcher/scale" in trainable and "matcher/scale" not in without_teacher(trainable)


def test_rows_with_another_source_than_was_said_are_refused():
    cached_rows, live = with_entries(BATCH, 3), distillation_loss(STUDENT_CONFIG, TEACHER)
    with pytest.raises(UserError, match="there is no teacher"):
        distillation_loss(STUDENT_CONFIG, None)
    with pytest.raises(UserError, match="say what of it"):
        live(PARAMS, cached_rows, KEY)
    from_samples = distillation_loss(STUDENT_CONFIG, None, DistilConfig(cache="sampled"))
    with pytest.raises(UserError, match="no cached teacher"):
        from_samples(STUDENT_PARAMS, BATCH, KEY)
    with pytest.raises(UserError, match="drawn at temperature 1"):
        from_samples(STUDENT_PARAMS, cached_rows | {"temperature_B": np.ones(8, np.float32)}, KEY)
    matched = distillation_loss(STUDENT_CONFIG, TEACHER, matching=Matched())  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="other rows"):
        matched(PARAMS, paired(BATCH), KEY)
    with pytest.raises(UserError, match="with one live teacher, and there are 2"):
        distillation_loss(STUDENT_CONFIG, [TEACHER] * 2, matching=Matched())  # pyright: ignore[reportArgumentType]
