"""Losses across vocabularies against independent numpy, and what must not change them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paired_texts import paired_texts

from limbeck.distill.across import Across, across, across_loss
from limbeck.distill.chunked import chunked_loss
from limbeck.distill.rows.token_bytes import NO_BYTE, first_byte_V
from limbeck.distill.teacher import with_teacher, without_teacher
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import train_bpe
from limbeck.model.transformer import apply, init
from limbeck.train.data import batches
from limbeck.train.step import init_state, make_step

N, V, U = 7, 9, 13
FIRST_V = np.asarray([NO_BYTE, 97, 97, 98, 32, 32, 99, 99, NO_BYTE])
FIRST_U = np.asarray([32, 98, 98, 97, 97, 99, NO_BYTE, 97, 32, 99, 99, 32, 32])
KEYS = jax.random.split(jax.random.key(0), 3)
LOGITS_NV, LOGITS_NU = (3 * jax.random.normal(key, (N, size)) for key, size in zip(KEYS, (V, U), strict=False))
WEIGHTS_N = jnp.asarray([1, 0.5, 0, 2, 1, 1, 0], jnp.float32)
TAUGHT_N = jnp.asarray([True, True, True, False, True, False, False])
TARGETS_N = jnp.asarray([0, 3, 8, 2, 2, 1, 7])
EVENTS: dict[Across, tuple] = {"uld": (), "bytes": (FIRST_V, FIRST_U)}
every_kind = pytest.mark.parametrize("kind", EVENTS)


def softmax64(logits, temperature=1.0):
    scaled = np.asarray(logits, np.float64) / temperature
    exp = np.exp(scaled - scaled.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def uld(p, q):
    """Token by token, the likeliest first; what one has none of is 0."""
    width = max(len(p), len(q))
    p, q = (sorted([*x, *[0.0] * (width - len(x))], reverse=True) for x in (p, q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


def byte_kl(p, q):
    total = 0.0
    for event in {*FIRST_U.tolist(), *FIRST_V.tolist()}:
        of_teacher, of_student = p[event == FIRST_U].sum(), q[event == FIRST_V].sum()
        total += of_teacher * np.log(of_teacher / of_student)
    return total


CLOSED = {"uld": uld, "bytes": byte_kl}


def closed_form(kind, logits_NV, temperature, hard_weight):
    weights = np.asarray(WEIGHTS_N, np.float64)
    q, p = softmax64(logits_NV, temperature), softmax64(LOGITS_NU, temperature)
    soft = [CLOSED[kind](p[n], q[n]) if TAUGHT_N[n] and weights[n] else 0.0 for n in range(N)]
    hard = -np.log(softmax64(logits_NV)[np.arange(N), np.asarray(TARGETS_N)])
    hard, soft = (weights @ hard) / weights.sum(), temperature**2 * (weights @ soft) / weights.sum()
    return hard_weight * hard + (1 - hard_weight) * soft, hard, soft


def chunked(kind, logits_NV, logits_NU=LOGITS_NU, temperature=1.0, hard_weight=0.0, chunk=None, weights_N=WEIGHTS_N):
    """The logits stand for hidden states, of which the head makes what they are."""
    source = across(kind, logits_NU, jnp.eye(U), TAUGHT_N, V, temperature, EVENTS[kind])
    settings = {"temperature": temperature, "hard_weight": hard_weight, "chunk": chunk}
    return chunked_loss(source, logits_NV, jnp.eye(V), TARGETS_N, weights_N, **settings)


def numerical_gradient(f, x, step=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient


@every_kind
@pytest.mark.parametrize(("temperature", "hard_weight"), [(1.0, 0.0), (0.7, 0.3), (3.0, 0.5)])
def test_value_and_gradient_are_the_closed_form_s(kind, temperature, hard_weight):
    def both(logits_NV):
        return chunked(kind, logits_NV, temperature=temperature, hard_weight=hard_weight, chunk=3)

    (value, metrics), gradient = jax.jit(jax.value_and_grad(both, has_aux=True))(LOGITS_NV)
    expected, hard, soft = closed_form(kind, LOGITS_NV, temperature, hard_weight)
    assert float(value) == pytest.approx(expected, rel=2e-6)
    assert float(metrics["cross_entropy"]) == pytest.approx(hard, rel=2e-6)
    assert float(metrics["divergence"]) == pytest.approx(soft, rel=2e-6)
    numerical = numerical_gradient(
        lambda x: closed_form(kind, x, temperature, hard_weight)[0], np.asarray(LOGITS_NV, np.float64)
    )
    np.testing.assert_allclose(gradient, numerical, atol=2e-6)


@every_kind
def test_chunks_of_any_size_give_the_same(kind):
    results = [
        jax.jit(jax.value_and_grad(lambda x, n=n: chunked(kind, x, hard_weight=0.4, chunk=n)[0]))(LOGITS_NV)
        for n in (1, 2, N, None)
    ]
    for value, gradient in results[1:]:
        assert float(value) == pytest.approx(float(results[0][0]), rel=1e-6)
        np.testing.assert_allclose(gradient, results[0][1], atol=1e-6)


@every_kind
def test_what_weighs_nothing_or_has_no_teacher_may_hold_anything(kind):
    loss = jax.jit(jax.value_and_grad(lambda x, y: chunked(kind, x, y, hard_weight=0.4)[0]))
    value, gradient = loss(LOGITS_NV, LOGITS_NU)
    silent_N1 = ((WEIGHTS_N == 0) | ~TAUGHT_N)[:, None]
    garbage = [jnp.where(c, jnp.nan, x) for c, x in (((WEIGHTS_N == 0)[:, None], LOGITS_NV), (silent_N1, LOGITS_NU))]
    other_value, other_gradient = loss(*garbage)
    assert np.asarray(other_value).tobytes() == np.asarray(value).tobytes()
    assert np.asarray(other_gradient).tobytes() == np.asarray(gradient).tobytes()
    assert not np.asarray(gradient)[np.asarray(WEIGHTS_N) == 0].any()
    assert float(chunked(kind, LOGITS_NV, weights_N=0 * WEIGHTS_N)[0]) == 0


def test_sorted_probabilities_do_not_ask_for_the_same_words_and_bytes_do():
    same = jnp.asarray([[5.0, 1.0, 0.0]])
    turned = same[:, ::-1]
    tables = [np.asarray([97, 98, 99])] * 2
    for kind in EVENTS:
        for logits_NV, expected in ((same, True), (turned, kind == "uld")):
            events = tuple(tables) if kind == "bytes" else ()
            source = across(kind, same, jnp.eye(3), jnp.ones(1, bool), 3, 1.0, events)
            value, _ = chunked_loss(source, logits_NV, jnp.eye(3), jnp.zeros(1, int), jnp.ones(1))
            assert (float(value) == pytest.approx(0, abs=1e-7)) == expected, kind


def test_a_byte_that_the_student_cannot_write_costs_a_finite_sum():
    tables = (np.asarray([97, 97]), np.asarray([97, 98]))
    source = across("bytes", jnp.zeros((1, 2)), jnp.eye(2), jnp.ones(1, bool), 2, 1.0, tables)

    def loss(logits_NV):
        return chunked_loss(source, logits_NV, jnp.eye(2), jnp.zeros(1, int), jnp.ones(1))[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray([[300.0, -300.0]]))
    assert float(value) == pytest.approx(-np.log(2) + 0.5 * 126 * np.log(2), rel=1e-5)
    assert np.isfinite(gradient).all()


TEXTS = ["The lemon is a hesperidium.", "گلابی میوه است", "The plum is a drupe,\nthe lime too.", "میوه"] * 2
SMALL, LARGE = train_bpe(TEXTS * 4, 275), train_bpe(TEXTS * 4, 310)
SHAPE = ModelConfig(SMALL.vocab_size, 16, 1, 2, 1, 8, 24, max_len=64)
CONFIGS = (SHAPE, dataclasses.replace(SHAPE, vocab_size=LARGE.vocab_size, width=24))
FIRST = (first_byte_V(SMALL), first_byte_V(LARGE))
PARAMS = with_teacher(
    init(CONFIGS[0], jax.random.key(1)),
    {path: 3 * leaf for path, leaf in init(CONFIGS[1], jax.random.key(2)).items()},
)
ROWS = paired_texts(TEXTS, SMALL, LARGE, length=56, teacher_length=44)
BATCH = batches(ROWS, 4, seed=0)(0)


TEACHER_PARAMS = {path.removeprefix("teacher/"): PARAMS[path] for path in PARAMS if path.startswith("teacher/")}


def value(loss_fn, params=PARAMS, batch=BATCH):
    return jax.jit(lambda *given: loss_fn(*given, jax.random.key(0)))(params, batch)


def both_logits(configs, batch):
    """What each model says of its own rows, in float64."""

    @partial(jax.jit, static_argnums=0)
    def run(config, params, tokens_BT, positions_BT, segments_BT):
        return apply(config, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT).logits_BTV

    sides = (("{}_BT", without_teacher(PARAMS)), ("teacher_{}_BS", TEACHER_PARAMS))
    for config, (name, params) in zip(configs, sides, strict=True):
        rows = (batch[name.format(part)] for part in ("tokens", "positions", "segments"))
        yield np.asarray(run(config, params, *rows), np.float64)


@pytest.fixture(scope="module")
def losses():
    return {kind: across_loss(*CONFIGS, kind, hard_weight=0.05, temperature=1.5, first_bytes=FIRST) for kind in EVENTS}


@pytest.fixture(scope="module")
def gradients_of(losses):
    """Of each kind, one compiled program: (params, batch) -> ((loss, metrics), gradients)."""

    def compiled(loss_fn):
        return jax.jit(jax.value_and_grad(lambda *given: loss_fn(*given, jax.random.key(0)), has_aux=True))

    return {kind: compiled(loss_fn) for kind, loss_fn in losses.items()}


@every_kind
def test_the_loss_of_a_batch_is_the_closed_form_of_the_two_models(gradients_of, kind):
    student_BTV, teacher_BSU = both_logits(CONFIGS, BATCH)
    hard = soft = aligned = 0.0
    for row, place in zip(*np.nonzero(BATCH["weights_BT"]), strict=True):
        hard -= np.log(softmax64(student_BTV[row, place])[BATCH["targets_BT"][row, place]])
        at = BATCH["teacher_at_BT"][row, place]
        if at >= 0:
            aligned += 1
            q, p = softmax64(student_BTV[row, place], 1.5), softmax64(teacher_BSU[row, at], 1.5)
            if kind == "uld":
                soft += uld(p, q)
            else:
                masses = [np.bincount(first, weights=x, minlength=257) for first, x in zip(FIRST, (q, p), strict=True)]
                real = masses[1] > 0
                soft += (masses[1][real] * np.log(masses[1][real] / masses[0][real])).sum()
    total = BATCH["weights_BT"].sum()
    assert 0.2 < aligned / total < 0.95  # both sorts of place are there
    (loss, metrics), _ = gradients_of[kind](PARAMS, BATCH)
    expected = {"cross_entropy": hard / total, "divergence": 1.5**2 * soft / total, "aligned": aligned / total}
    expected |= {"weight": total, "loss": 0.05 * hard / total + 0.95 * expected["divergence"]}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-5)
    assert float(loss) == float(metrics["loss"])


@every_kind
def test_the_teacher_has_no_gradient_and_all_of_the_student_has(gradients_of, kind):
    for path, gradient in gradients_of[kind](PARAMS, BATCH)[1].items():
        assert np.any(gradient != 0) != path.startswith("teacher/"), path


@every_kind
def test_padding_changes_nothing_at_all(gradients_of, kind):
    (loss, _), gradients = gradients_of[kind](PARAMS, BATCH)
    changed = {name: np.array(array) for name, array in BATCH.items()}
    empty_BT, teacher_empty_BS = changed["segments_BT"] == 0, changed["teacher_segments_BS"] == 0
    assert empty_BT.any() and teacher_empty_BS.any()
    for name in ("tokens_BT", "targets_BT", "positions_BT"):
        changed[name][empty_BT] = 7
    for name in ("teacher_tokens_BS", "teacher_positions_BS"):
        changed[name][teacher_empty_BS] = 9
    (other, _), others = gradients_of[kind](PARAMS, changed)
    assert float(other) == float(loss)
    for path, gradient in gradients.items():
        assert np.asarray(gradient).tobytes() == np.asarray(others[path]).tobytes(), path


@every_kind
def test_a_place_without_a_teacher_counts_in_the_cross_entropy_alone(gradients_of, kind):
    alone = {**BATCH, "teacher_at_BT": np.full_like(BATCH["teacher_at_BT"], -1)}
    (loss, metrics), _ = gradients_of[kind](PARAMS, alone)
    (_, usual), _ = gradients_of[kind](PARAMS, BATCH)
    assert float(metrics["divergence"]) == float(metrics["aligned"]) == 0
    assert float(metrics["cross_entropy"]) == pytest.approx(float(usual["cross_entropy"]), rel=1e-6)
    assert float(loss) == pytest.approx(0.05 * float(metrics["cross_entropy"]), rel=1e-6)


@pytest.fixture(scope="module")
def steps(losses):
    """Of each kind, the step over a whole batch and over two portions of it."""
    return {kind: [make_step(loss_fn, OPTIMIZER, accumulate=n) for n in (1, 2)] for kind, loss_fn in losses.items()}


OPTIMIZER = optax.sgd(1.0)
FROZEN = {f"teacher/{path}": leaf for path, leaf in TEACHER_PARAMS.items()}


@every_kind
def test_portions_of_a_batch_add_up_to_it(steps, kind):
    uneven = {**BATCH, "teacher_at_BT": BATCH["teacher_at_BT"].copy(), "weights_BT": BATCH["weights_BT"].copy()}
    uneven["teacher_at_BT"][0] = -1  # the portions differ in how much is aligned
    uneven["weights_BT"][1, 5:] = 0
    (whole, one), (parts, two) = (
        step(init_state(OPTIMIZER, without_teacher(PARAMS)), FROZEN, uneven, jax.random.key(0)) for step in steps[kind]
    )
    for path, leaf in whole.trainable.items():
        np.testing.assert_allclose(parts.trainable[path], leaf, atol=2e-6, err_msg=path)
    for name in ("loss", "divergence", "cross_entropy", "aligned", "weight"):
        assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5), name


@every_kind
def test_a_student_comes_nearer_to_a_teacher_of_other_tokens(steps, kind):
    stream = batches(ROWS, 4, seed=1)
    state, seen = init_state(OPTIMIZER, without_teacher(PARAMS)), []
    for number in range(60):
        state, metrics = steps[kind][0](state, FROZEN, stream(number), jax.random.key(0))
        seen.append(float(metrics["divergence"] / metrics["aligned"]))
    assert np.mean(seen[-8:]) < 0.8 * np.mean(seen[:8])


@every_kind
def test_equal_distributions_have_no_divergence(kind):
    tables = (FIRST_V, FIRST_V) if kind == "bytes" else ()
    source = across(kind, LOGITS_NV, jnp.eye(V), TAUGHT_N, V, 2.0, tables)

    def loss(logits_NV):
        return chunked_loss(source, logits_NV, jnp.eye(V), TARGETS_N, WEIGHTS_N, temperature=2.0)[0]

    divergence, gradient = jax.jit(jax.value_and_grad(loss))(LOGITS_NV)
    assert float(divergence) == pytest.approx(0, abs=1e-6)
    if kind == "bytes":  # sum |p - q| has a kink there, on either side of which rounding may lie
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_teacher_with_the_student_s_tokenizer_reads_the_student_s_rows():
    rows = paired_texts(TEXTS, SMALL, SMALL, length=56, teacher_length=56)
    batch = batches(rows, 4, seed=0)(0)
    assert (batch["teacher_tokens_BS"] == batch["tokens_BT"]).all()
    assert (batch["teacher_at_BT"] == np.where(batch["segments_BT"] > 0, np.arange(56), -1)).all()
    student = {path: 3 * leaf for path, leaf in without_teacher(PARAMS).items()}
    loss_fn = across_loss(SHAPE, SHAPE, "bytes", first_bytes=(FIRST[0], FIRST[0]))
    loss, metrics = value(loss_fn, with_teacher(student, student), batch)
    assert float(loss) == pytest.approx(0, abs=1e-6) and float(metrics["aligned"]) == 1


def test_schedules_take_the_place_of_the_numbers(losses):
    scheduled = {**BATCH, "temperature_B": np.full(4, 1.5, np.float32), "hard_weight_B": np.full(4, 0.05, np.float32)}
    loss, metrics = value(across_loss(*CONFIGS, "bytes", first_bytes=FIRST), batch=scheduled)
    expected, _ = value(losses["bytes"])
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert abs(float(metrics["divergence"]) - float(loss)) > 0.01


def test_ids_beyond_the_tokenizer_write_nothing():
    padded = [dataclasses.replace(config, vocab_size=config.vocab_size + 5) for config in CONFIGS]
    params = with_teacher(init(padded[0], jax.random.key(0)), init(padded[1], jax.random.key(1)))
    tables = (np.append(FIRST[0], [NO_BYTE] * 5), np.append(FIRST[1], [NO_BYTE] * 5))
    short, full = (
        value(across_loss(padded[0], padded[1], "bytes", first_bytes=first), params)[0] for first in (FIRST, tables)
    )
    assert float(short) == float(full)


def test_capped_logits():
    capped = [dataclasses.replace(config, logit_softcap=cap) for config, cap in zip(CONFIGS, (0.2, 0.3), strict=True)]
    loss, metrics = value(across_loss(capped[0], capped[1], "uld", hard_weight=0.5))
    hard = soft = 0.0
    student_BTV, teacher_BSU = both_logits(capped, BATCH)
    for row, place in zip(*np.nonzero(BATCH["weights_BT"]), strict=True):
        at, q = BATCH["teacher_at_BT"][row, place], softmax64(student_BTV[row, place])
        hard -= np.log(q[BATCH["targets_BT"][row, place]])
        soft += uld(softmax64(teacher_BSU[row, at]), q) if at >= 0 else 0.0
    total = BATCH["weights_BT"].sum()
    assert np.abs(student_BTV).max() > 0.15 and np.abs(teacher_BSU).max() > 0.25  # the caps are felt
    assert float(metrics["cross_entropy"]) == pytest.approx(hard / total, rel=1e-5)
    assert float(loss) == pytest.approx(0.5 * (hard + soft) / total, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "first_bytes", "said"),
    [
        ("ulb", None, "unknown divergence across vocabularies 'ulb': one of uld, bytes; did you mean 'uld'?"),
        ("bytes", None, "give first_bytes"),
        ("bytes", FIRST[::-1], "the student's tokenizer has 310 ids, its model vocab_size=275"),
    ],
)
def test_what_does_not_fit_is_refused(kind, first_bytes, said):
    with pytest.raises(UserError) as error:
        across_loss(*CONFIGS, kind, first_bytes=first_bytes)
    assert said in str(error.value)


def test_a_head_of_labels_is_refused():
    with pytest.raises(UserError, match="next tokens"):
        across_loss(dataclasses.replace(CONFIGS[0], labels=("a", "b")), CONFIGS[1], "uld")
