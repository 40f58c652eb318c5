"""What the student writes itself takes the place of the answers, and nothing else changes."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.rows.on_policy import on_policy, prompted_rows, with_own
from limbeck.distill.schedules import scheduled
from limbeck.distill.teacher import STUDENT, distillation_loss, with_teacher
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import digest
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.data import batches, pad
from limbeck.train.examples import Example, example
from limbeck.train.loop import fit

V, STOP, PAD = 16, 9, 15
MODEL = ModelConfig(
    vocab_size=V, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=16,
    tied_embedding=False,
)  # fmt: skip
TEACHER = {path: 4 * leaf for path, leaf in init(MODEL, jax.random.key(0)).items()}
RANDOM = with_teacher({path: 2 * leaf for path, leaf in init(MODEL, jax.random.key(1)).items()}, TEACHER)
ANSWER = ("tokens_BT", "targets_BT", "weights_BT", "positions_BT", "segments_BT")


def rigged() -> dict[str, jax.Array]:
    """A student that writes after each token the next one, whatever was before."""
    params = init(MODEL, jax.random.key(2))
    silent = {path: leaf * 0 for path, leaf in params.items() if path.endswith(("o/kernel", "down/kernel"))}
    counting = {"embed/embedding": jnp.eye(V), "head/kernel": 20 * jnp.roll(jnp.eye(V), 1, axis=1)}
    return {**params, **silent, **counting}


COUNTING = with_teacher(rigged(), TEACHER)


def rows_of(*texts: tuple[list[int], list[int]], length: int = 10, new_tokens: int = 6) -> dict[str, np.ndarray]:
    """One batch: prompts and answers."""
    rows = prompted_rows([example(prompt + answer, len(prompt)) for prompt, answer in texts], [length], new_tokens)
    return rows.groups[0]


def own(batch, value=1.0):
    return {**batch, "own_B": np.full(len(batch["tokens_BT"]), value, np.float32)}


def wrapped(loss_fn, **settings):
    settings = {"new_tokens": 6, "temperature": 1.0, "stop_ids": (STOP,), "hard_weight": 0.0, **settings}
    return jax.jit(on_policy(loss_fn, MODEL, pad_id=PAD, **settings))


def seen(batch, params=RANDOM, key=0, **settings) -> dict[str, np.ndarray]:
    """The batch that the inner loss is given."""
    show = wrapped(lambda params, batch, key: (jnp.float32(0), dict(batch)), **settings)
    return jax.device_get(show(params, batch, jax.random.key(key))[1])


WRITTEN = [  # prompts of several lengths, ends by the stop, by new_tokens and by the row; what a counting student adds
    ([0, 2, 5], [6, 7, 8, 9]),
    ([8], [9]),
    ([1, 1, 1, 1, 0], [1, 2, 3, 4, 5, 6]),
    ([3, 3, 3, 3, 3, 3, 3, 3, 1], [2, 3]),
]
GIVEN = [(prompt, [4] * (1 + index)) for index, (prompt, _) in enumerate(WRITTEN[:3])] + [(WRITTEN[3][0], [4])]


def test_the_rows_are_those_of_what_the_student_writes():
    expected, found = rows_of(*WRITTEN), seen(own(rows_of(*GIVEN)), COUNTING)
    real = expected["segments_BT"] > 0
    for name in ANSWER:
        np.testing.assert_array_equal(found[name][real], expected[name][real], err_msg=name)
        assert found[name].dtype == expected[name].dtype
        if name not in ("tokens_BT", "targets_BT"):
            assert not found[name][~real].any()
    assert (found["tokens_BT"][~real] == PAD).all()
    for row, (prompt, answer) in enumerate(WRITTEN):
        assert found["weights_BT"][row].tolist() == [0] * (len(prompt) - 1) + [1] * len(answer) + [0] * (
            11 - len(prompt) - len(answer)
        )
    heavy = {**rows_of(*GIVEN)}
    heavy["weights_BT"] = heavy["weights_BT"] * np.float32(0.5)
    np.testing.assert_array_equal(seen(own(heavy), COUNTING)["weights_BT"], 0.5 * found["weights_BT"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_loss_is_the_off_policy_loss_on_what_the_student_writes(temperature):
    loss_fn = distillation_loss(MODEL, MODEL, DistilConfig("reverse_kl"))
    by_hand, _ = jax.jit(loss_fn)(COUNTING, rows_of(*WRITTEN), jax.random.key(0))
    loss, metrics = wrapped(loss_fn, temperature=temperature)(COUNTING, own(rows_of(*GIVEN)), jax.random.key(0))
    given, _ = jax.jit(loss_fn)(COUNTING, rows_of(*GIVEN), jax.random.key(0))
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
    assert abs(given - by_hand) > 1e-2 and metrics["own"] == 1


def gradients(loss_fn, batch, key=3):
    def loss(params):
        return loss_fn({**RANDOM, **params}, batch, jax.random.key(key))[0]

    return jax.jit(jax.value_and_grad(loss))({path: leaf for path, leaf in RANDOM.items() if "teacher" not in path})


def test_the_gradient_is_that_of_the_sampled_rows_as_fixed_data():
    loss_fn = distillation_loss(MODEL, MODEL, DistilConfig("generalized_jsd"))
    batch = own(rows_of(*GIVEN))
    fixed = {name: array for name, array in seen(batch, key=3).items() if name in ANSWER}
    assert (fixed["tokens_BT"] != batch["tokens_BT"]).any()
    sampled, by_hand = gradients(wrapped(loss_fn), batch), gradients(loss_fn, fixed)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), sampled, by_hand)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in sampled[1].values())


def test_other_batches_pass_as_they_are_and_pay_nothing():
    loss_fn = distillation_loss(MODEL, MODEL, DistilConfig(hard_weight=0.3))
    batch = rows_of(*GIVEN)
    plain = gradients(loss_fn, batch)
    for same in (batch, own(batch, 0.0)):
        jax.tree.map(np.testing.assert_array_equal, gradients(wrapped(loss_fn, hard_weight=0.3), same), plain)
    asked = jax.make_jaxpr(wrapped(loss_fn, hard_weight=0.3))(RANDOM, own(batch), jax.random.key(0))

    def loops(jaxpr, inside):
        """Whether each loop of the program is in a branch."""
        for equation in jaxpr.eqns:
            if equation.primitive.name == "while":
                yield inside
            for part in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    yield from loops(getattr(part, "jaxpr", part), inside or equation.primitive.name == "cond")

    assert list(loops(asked.jaxpr, False)) and all(loops(asked.jaxpr, False))


def test_own_answers_are_no_targets():
    """The hard-label term is 0 on them, and what the config says elsewhere, or the batch."""
    soft = distillation_loss(MODEL, MODEL)
    hard = distillation_loss(MODEL, MODEL, DistilConfig(hard_weight=0.3))
    mixed, plain, batch, key = wrapped(hard, hard_weight=0.3), jax.jit(hard), rows_of(*GIVEN), jax.random.key(0)
    share = {"hard_weight_B": np.full(4, 0.8, np.float32)}
    expected = wrapped(soft)(RANDOM, own(batch), key)[0]
    for asked in (own(batch), own(batch) | share):
        np.testing.assert_allclose(mixed(RANDOM, asked, key)[0], expected, rtol=1e-6)
    for off in ({}, share):
        expected = plain(RANDOM, batch | off, key)[0]
        np.testing.assert_allclose(mixed(RANDOM, own(batch, 0.0) | off, key)[0], expected, rtol=1e-6)


def test_samples_hang_on_the_key_and_temperature_0_on_nothing():
    batch = own(rows_of(*[([1, 2], [3])] * 4))
    first, again, other = (seen(batch, key=key, temperature=3.0)["tokens_BT"] for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and len({tuple(row) for row in first.tolist()}) > 1
    cold, again = (seen(batch, key=key, temperature=0.0)["tokens_BT"] for key in (0, 1))
    np.testing.assert_array_equal(cold, again)


def test_leaves_beside_the_student_and_virtual_tokens():
    """A matcher's leaves are no part of the student that writes; a soft prompt's are."""
    batch = own(rows_of(*GIVEN))
    plain = seen(batch, temperature=0.0)
    beside = {**RANDOM, "matcher/0/kernel": jnp.ones((3, 3)), "teacher1/embed/embedding": jnp.ones((2, 2))}
    jax.tree.map(np.testing.assert_array_equal, seen(batch, beside, temperature=0.0), plain)
    prompted = {**RANDOM, "prompt/embedding": 9 * jax.random.normal(jax.random.key(5), (3, 16))}
    assert (seen(batch, prompted, temperature=0.0)["tokens_BT"] != plain["tokens_BT"]).any()


EXAMPLES = [example([1, 2, n % 8, 5, 6, 7, n % 5][: 4 + n % 4], 2 + n % 2, f"سؤال {n}") for n in range(12)]


def test_a_share_of_the_steps_is_the_student_s_own():
    stream = batches(prompted_rows(EXAMPLES, [10], 5), 4, 0)
    for share in (0.0, 0.3, 1.0):
        made = with_own(stream, share, seed=1)
        owns = [made(step)["own_B"] for step in range(300)]
        assert all(own_B.dtype == np.float32 and own_B.shape == (4,) and len(set(own_B)) == 1 for own_B in owns)
        assert abs(np.mean(owns) - share) < 4 * (share * (1 - share) / 300) ** 0.5 + 1e-9
        for step in (7, 3):
            np.testing.assert_array_equal(made(step)["own_B"], owns[step])
            assert all((made(step)[name] == stream(step)[name]).all() for name in stream(step))
    first, other = ([with_own(stream, 0.3, seed)(step)["own_B"][0] for step in range(50)] for seed in (1, 2))
    assert first != other
    assert made.name(3) == stream.name(3)
    both = scheduled(made, DistilConfig(temperature_end=2.0), 10)(9)
    assert both["own_B"].all() and (both["temperature_B"] == 2).all()
    with pytest.raises(UserError, match="share=1.5 of steps .* from 0 to 1"):
        with_own(stream, 1.5, 0)


def test_cached_teachers_go_with_the_answers_that_they_were_asked_about():
    group = rows_of(*GIVEN)
    shape = (*group["tokens_BT"].shape, V)
    cached = {
        "teacher_ids_BTK": np.broadcast_to(np.arange(V, dtype=np.uint8), shape),
        "teacher_logprobs_BTK": np.full(shape, -np.log(V), np.float32),
    }
    rows = prompted_rows([example(prompt + answer, len(prompt)) for prompt, answer in GIVEN], [10], 6)
    stream = with_own(batches(rows._replace(groups=({**group, **cached},)), 4, 0), 0.5, 0)
    names = [("teacher_ids_BTK" in stream(step), bool(stream(step)["own_B"][0])) for step in range(20)]
    assert set(names) == {(True, False), (False, True)}
    loss_fn = wrapped(distillation_loss(MODEL, MODEL, DistilConfig(cache="topk")))
    metrics = {own: loss_fn(RANDOM, stream(names.index((not own, own))), jax.random.key(0))[1] for own in (True, False)}
    assert metrics[True]["divergence"] != metrics[False]["divergence"]


def test_resumed_equals_uninterrupted(tmp_path):
    stream = with_own(batches(prompted_rows(EXAMPLES, [10], 5), 4, 0), 0.5, seed=0)
    loss_fn = wrapped(distillation_loss(MODEL, MODEL), new_tokens=5)
    settings = FitConfig(8, 4, 10, OptimConfig(learning_rate=1e-2), log_every=1, checkpoint_every=3)
    rows = []
    whole = fit(loss_fn, RANDOM, stream, settings, selection=STUDENT, log=rows.append)
    assert {row["own"] for row in rows} == {0.0, 1.0}

    def until_killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return stream(step)

    with pytest.raises(KeyboardInterrupt):
        fit(loss_fn, RANDOM, until_killed, settings, selection=STUDENT, checkpoints=tmp_path)
    resumed = fit(loss_fn, RANDOM, stream, settings, selection=STUDENT, checkpoints=tmp_path)
    assert digest(resumed.trainable) == digest(whole.trainable) and resumed.curve == whole.curve
    other = fit(loss_fn, RANDOM, stream, settings, selection=STUDENT, seed=1)
    assert digest(other.trainable) != digest(whole.trainable)  # so the samples do hang on the key


def test_rows_have_room_for_an_answer_and_know_their_prompts():
    mixed = [*EXAMPLES, Example(np.arange(5, dtype=np.int32), np.zeros(5, bool), "nothing counts")]
    rows = prompted_rows(mixed, [12, 6, 8], new_tokens=5)
    of_pad = pad(mixed, [20])
    assert [group["tokens_BT"].shape[1] for group in rows.groups] == [6, 8]
    found = {}
    for group in rows.groups:
        length = group["tokens_BT"].shape[1]
        for row in range(len(group["tokens_BT"])):
            number = int(group["segments_BT"][row, 0]) - 1
            size = int((group["segments_BT"][row] > 0).sum())
            prompt = int(group["prompt_B"][row])
            name = rows.names_E[number].decode()
            assert (group["segments_BT"][row, :size] == number + 1).all() and prompt + 5 - 1 <= length
            assert group["weights_BT"][row].argmax() == prompt - 1 or name == "nothing counts"
            found[name] = group["tokens_BT"][row, :size].tolist()
    expected = {each.name: each.ids[:-1].tolist() for each in mixed}
    assert found == expected and group["prompt_B"].dtype == np.int32
    assert sum(len(group["tokens_BT"]) for group in rows.groups) == len(of_pad.groups[0]["tokens_BT"])
    tight = prompted_rows(mixed, [6], new_tokens=50)  # no more room than there is
    assert [group["tokens_BT"].shape for group in tight.groups] == [(len(mixed), 6)]


def test_an_example_too_long_for_any_row_is_named_or_left_out():
    long = [*EXAMPLES, example(range(10), 2, "دراز")]
    with pytest.raises(UserError, match="دراز: 9 tokens, where a row holds 8"):
        prompted_rows(long, [6, 8], 5)
    rows = prompted_rows(long, [6, 8], 5, "skip")
    assert rows.skipped == ("دراز: 9 tokens, where a row holds 8",)
    assert sum(len(group["tokens_BT"]) for group in rows.groups) == len(EXAMPLES)


@pytest.mark.parametrize(("settings", "words"), [
    ({"new_tokens": 0}, "new_tokens=0, temperature=1.0: must be at least 1 and 0"),
    ({"temperature": -1.0}, "temperature=-1.0: must be"),
    ({"stop_ids": (3, 16)}, "stop or pad token 16: the student's tokens are 0 to 15"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        wrapped(lambda *_: None, **settings)
    assert "\n" not in str(error.value)


def test_a_teacher_that_reads_rows_of_its_own_is_refused():
    batch = own(rows_of(*GIVEN)) | {"teacher_at_BT": np.zeros((4, 10), np.int32)}
    with pytest.raises(UserError, match="in which the student's own answers are not"):
        seen(batch)
