"""What is cached is what the teacher says: against the whole softmax in numpy, the live loss, the laws of chance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from limbeck.distill.config import DistilConfig
from limbeck.distill.rows import spans, teacher_cache
from limbeck.distill.rows.teacher_cache import bytes_per_token, cached_teacher
from limbeck.distill.teacher import distillation_loss, with_teacher
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.transformer import apply, classify, init
from limbeck.train.data import Rows, batches, pack, pad
from limbeck.train.examples import example

V = 31
TEACHER = ModelConfig(vocab_size=V, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16)
PARAMS = {path: 4 * leaf for path, leaf in init(TEACHER, jax.random.key(0)).items()}
STUDENT = dataclasses.replace(TEACHER, mlp_dim=8)
STUDENT_PARAMS = init(STUDENT, jax.random.key(1))


def examples():
    rng = np.random.default_rng(0)
    return [example(rng.integers(0, V, n).tolist(), 3, f"متن {n}") for n in (4, 5, 9, 12, 7, 13, 6, 9, 10)]


PACKED, PADDED = pack(examples(), 16), pad(examples(), [8, 16])


def ask(
    folder, rows=PACKED, config=TEACHER, params=PARAMS, tokenizer="t", *, kind: Any = "topk", k=5, batch_size=2, **more
):
    return cached_teacher(folder, rows, config, params, tokenizer, kind=kind, k=k, batch_size=batch_size, **more)


def teacher_logprobs(group, params=PARAMS):
    places = {name: group[f"{name}_BT"] for name in ("positions", "segments")}
    out = jax.jit(lambda tokens_BT, positions_BT, segments_BT: apply(
        TEACHER, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT
    ).logits_BTV)(group["tokens_BT"], places["positions"], places["segments"])  # fmt: skip
    logits = np.asarray(out, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def teacher_arrays(rows: Rows) -> list[np.ndarray]:
    return [group[name] for group in rows.groups for name in (teacher_cache.IDS, teacher_cache.LOGPROBS)]


def assert_same(got: Rows, expected: Rows) -> None:
    for array, other in zip(teacher_arrays(got), teacher_arrays(expected), strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("rows", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("k", [1, 5, 99])
def test_the_likeliest_with_their_log_probabilities(tmp_path, rows, k):
    found = ask(tmp_path, rows, k=k)
    assert found.names_E is rows.names_E and len(found.groups) == len(rows.groups)
    for group, before in zip(found.groups, rows.groups, strict=True):
        ids_BTK, logprobs_BTK = group["teacher_ids_BTK"], group["teacher_logprobs_BTK"]
        assert ids_BTK.shape == logprobs_BTK.shape == (*group["tokens_BT"].shape, min(k, V))
        assert (ids_BTK.dtype, logprobs_BTK.dtype) == (np.uint8, np.float32)
        learned_BT = group["weights_BT"] > 0
        logprobs_NV = teacher_logprobs(group)[learned_BT]
        order_NK = np.argsort(-logprobs_NV, -1)[:, :k]
        np.testing.assert_array_equal(ids_BTK[learned_BT], order_NK)
        np.testing.assert_allclose(logprobs_BTK[learned_BT], np.take_along_axis(logprobs_NV, order_NK, -1), atol=2e-5)
        assert not ids_BTK[~learned_BT].any() and not logprobs_BTK[~learned_BT].any()
        assert all(group[name] is before[name] for name in before)
    learned = sum(int(group["weights_BT"].sum()) for group in rows.groups)
    places = sum(group["weights_BT"].size for group in rows.groups)
    assert bytes_per_token(found) == places * min(k, V) * 5 / learned and bytes_per_token(rows) == 0


def test_the_batch_size_changes_nothing_and_a_first_pass_is_the_only_one(tmp_path, monkeypatch):
    for kind in ("topk", "sampled"):
        first = ask(tmp_path / "a", PADDED, kind=kind)
        other = ask(tmp_path / "b", PADDED, kind=kind, batch_size=7)
        for array, same in zip(teacher_arrays(first), teacher_arrays(other), strict=True):
            np.testing.assert_allclose(array, same, rtol=0, atol=1e-5 * (kind == "topk"))
        with monkeypatch.context() as patch:
            patch.setattr(teacher_cache, "_answers", None)
            assert_same(ask(tmp_path / "a", PADDED, kind=kind, batch_size=3), first)


@pytest.mark.parametrize(("cache", "dtype", "close"), [
    ("topk", "float32", 1e-6), ("topk_tail", "float32", 1e-6), ("topk", "float16", 1e-4)
])  # fmt: skip
def test_with_the_whole_vocabulary_the_loss_is_that_of_the_live_teacher(tmp_path, cache, dtype, close):
    rows = ask(tmp_path, kind=cache, k=V, dtype=dtype)
    batch, plain = batches(rows, 4, 0)(0), batches(PACKED, 4, 0)(0)
    np.testing.assert_array_equal(batch["tokens_BT"], plain["tokens_BT"])

    def loss(config, teacher, params, batch):
        loss_fn = distillation_loss(STUDENT, teacher, config)
        return jax.jit(jax.value_and_grad(lambda own: loss_fn({**params, **own}, batch, jax.random.key(0))[0]))(
            STUDENT_PARAMS
        )

    live = loss(DistilConfig(hard_weight=0.3), TEACHER, with_teacher({}, PARAMS), plain)
    cached = loss(DistilConfig(hard_weight=0.3, cache=cache), None, {}, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=close, atol=close), cached, live)


@pytest.mark.parametrize("wide", ["teacher", "student"])
@pytest.mark.parametrize("cache", ["topk", "topk_tail"])
def test_vocabularies_of_two_sizes_are_cut_alike_live_and_cached(tmp_path, cache, wide):
    """The larger one's own logits are far from small, so that leaving them in either softmax would be seen."""
    sizes = {"teacher": TEACHER.vocab_size, "student": STUDENT.vocab_size, wide: V + 9}
    teacher, student = (dataclasses.replace(TEACHER, vocab_size=sizes["teacher"]),
                        dataclasses.replace(STUDENT, vocab_size=sizes["student"]))  # fmt: skip
    theirs = {path: 4 * leaf for path, leaf in init(teacher, jax.random.key(0)).items()}
    own = {path: 4 * leaf for path, leaf in init(student, jax.random.key(1)).items()}
    smallest = min(sizes.values())
    rows = ask(tmp_path, PACKED, teacher, theirs, kind=cache, k=99, vocab_size=smallest)
    assert rows.groups[0]["teacher_ids_BTK"].shape[-1] == V == smallest

    def loss(loss_fn, batch, frozen):
        of_own = jax.value_and_grad(lambda own: loss_fn({**frozen, **own}, batch, jax.random.key(0)), has_aux=True)
        return jax.jit(of_own)(own)

    live = distillation_loss(student, teacher, DistilConfig(hard_weight=0.3))
    config = DistilConfig(hard_weight=0.3, cache=cache)
    from_cache = distillation_loss(student, None, config, cached_vocab_size=teacher.vocab_size)
    expected = loss(live, PACKED.groups[0], with_teacher({}, theirs))
    found = loss(from_cache, rows.groups[0], {})
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5), found, expected)


def test_draws_are_distinct_tokens_and_their_shares(tmp_path):
    for k in (6, 2 * V):
        group = ask(tmp_path, kind="sampled", k=k).groups[0]
        learned_BT = group["weights_BT"] > 0
        ids_NK, logprobs_NK = group["teacher_ids_BTK"][learned_BT], group["teacher_logprobs_BTK"][learned_BT]
        assert ids_NK.shape[1] == min(k, V)
        counts_NK = np.exp(logprobs_NK.astype(np.float64)) * k
        np.testing.assert_allclose(counts_NK, np.round(counts_NK), atol=1e-4)
        np.testing.assert_allclose(counts_NK.sum(-1), k, atol=1e-4)
        used_NK = np.isfinite(logprobs_NK)
        assert not ids_NK[~used_NK].any() and not used_NK.all()
        assert all(len(set(ids[used])) == used.sum() for ids, used in zip(ids_NK, used_NK, strict=True))
    one, other = (ask(tmp_path, kind="sampled", k=6, seed=seed).groups[0] for seed in (0, 1))
    assert (one["teacher_ids_BTK"] != other["teacher_ids_BTK"]).any()


@pytest.mark.parametrize(("k", "count"), [(3, 1500), (4000, 2)])
def test_draws_come_as_often_as_the_teacher_says(tmp_path, k, count):
    """Over many places with few draws each, and over many draws of one place; chi-squared with the true shares."""
    rows = pad([example([7, 3, 11], 1, str(n)) for n in range(count)], [2])
    group = ask(tmp_path, rows, kind="sampled", k=k, batch_size=count, seed=1).groups[0]
    ids_B2K, shares_B2K = group["teacher_ids_BTK"], np.exp(group["teacher_logprobs_BTK"].astype(np.float64))
    p_V = np.exp(teacher_logprobs({name: array[:1] for name, array in rows.groups[0].items()}))[0, 1]
    counts_V = np.zeros(V)
    np.add.at(counts_V, ids_B2K[:, 1], shares_B2K[:, 1] * k)
    rare_V = p_V * k * count < 5
    observed, true = (np.append(x[~rare_V], x[rare_V].sum()) for x in (counts_V, p_V * k * count))
    observed, true = observed[true > 0], true[true > 0]
    assert len(true) > 5 and stats.chisquare(observed, true * observed.sum() / true.sum()).pvalue > 1e-3
    if count > 2:  # draws of different places are different
        assert len({tuple(ids) for ids in ids_B2K[:, 1].tolist()}) > 20


def test_the_gradient_of_few_draws_is_right_on_the_average_and_that_of_the_likeliest_is_not(tmp_path):
    rows = pad([example([7, 3, 11], 1, str(n)) for n in range(1500)], [2])

    def gradient(rows, teacher, config):
        loss_fn, frozen = distillation_loss(STUDENT, teacher, config), with_teacher({}, PARAMS) if teacher else {}

        def loss(own, batch):
            return loss_fn({**STUDENT_PARAMS, **frozen, **own}, batch, jax.random.key(0))[0]

        own = {"embed/embedding": STUDENT_PARAMS["embed/embedding"]}
        return jax.jit(jax.grad(loss))(own, rows.groups[0])["embed/embedding"]

    live = gradient(rows, TEACHER, DistilConfig())
    kinds: list[tuple[Any, int, float, float]] = [
        ("sampled", 3, 0.03, 0.15), ("sampled", 2 * V, 0, 0.03), ("topk", 8, 0.3, 9)
    ]  # fmt: skip
    for kind, k, low, high in kinds:
        cached = ask(tmp_path, rows, kind=kind, k=k, batch_size=1500, seed=1)
        found = gradient(cached, None, DistilConfig(cache=kind))
        assert low <= jnp.linalg.norm(found - live) / jnp.linalg.norm(live) < high, (kind, k)


def test_another_question_is_another_entry_and_the_same_is_not(tmp_path, monkeypatch):
    entries = set()

    def entry(**changes):
        before = len(entries)
        ask(tmp_path, **changes)
        return len(entries) > before

    def named(entry, sheets, *others):
        entries.add(entry)
        return [{} for _ in sheets]

    monkeypatch.setattr(teacher_cache, "kept", named)

    def changed(name, change, rows=PACKED):
        group = {**rows.groups[0], name: change(rows.groups[0][name])}
        return rows._replace(groups=(group,))

    bumped = changed("tokens_BT", lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, (x + 1) % V, x))
    assert entry() and entry(kind="sampled")
    for change in (
        {"params": {**PARAMS, "norm/scale": PARAMS["norm/scale"] * 1.5}},
        {"weights_digest": "another"},
        {"config": dataclasses.replace(TEACHER, norm_eps=1e-3)},
        {"config": dataclasses.replace(TEACHER, dtype="bfloat16")},
        {"tokenizer": "u"},
        {"rows": bumped},
        {"rows": changed("weights_BT", lambda x: x * (np.arange(16) > 8))},
        {"rows": changed("positions_BT", lambda x: x // 2)},
        {"rows": changed("segments_BT", lambda x: x // 2)},
        {"rows": PADDED},
        {"k": 6},
        {"vocab_size": 30},
        {"dtype": "float16"},
        {"kind": "sampled", "seed": 1},
        {"kind": "sampled", "k": 6},
        {"kind": "sampled", "k": 2 * V},
        {"kind": "sampled", "k": 3 * V},
    ):
        assert entry(**change), change
    for change in (
        {},
        {"kind": "topk_tail"},
        {"seed": 5},
        {"batch_size": 3},
        {"config": dataclasses.replace(TEACHER, scan=False, remat="full", family="x")},
        {"rows": changed("weights_BT", lambda x: x * 0.5)},
        {"rows": changed("targets_BT", lambda x: x * 0)},
    ):
        assert not entry(**change), change


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_killed_between_spans_it_goes_on_to_the_same(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(spans, "_SPAN_BYTES", 1)
    whole = ask(tmp_path / "whole", PADDED, kind=kind)
    real, asked = teacher_cache._answers, []

    def until_killed(*args):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(1)
        return real(*args)

    monkeypatch.setattr(teacher_cache, "_answers", until_killed)
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "killed", PADDED, kind=kind)
    monkeypatch.setattr(teacher_cache, "_answers", lambda *args: asked.append(1) or real(*args))
    assert_same(ask(tmp_path / "killed", PADDED, kind=kind), whole)
    assert len(asked) == sum(-(-len(group["tokens_BT"]) // 2) for group in PADDED.groups)


@pytest.mark.parametrize("small_disk", ["16k"], indirect=True)
def test_a_full_disk_is_one_line(small_disk):
    with pytest.raises(UserError, match="the disk is full; free some space") as error:
        ask(small_disk, k=V, dtype="float32", rows=pad(examples() * 9, [16]))
    assert "\n" not in str(error.value)


def test_rows_of_the_teacher_s_own_are_asked_about_and_replaced(tmp_path):
    """The teacher reads other rows: what it says at its own places stands at the student's."""
    group = PACKED.groups[0]
    theirs = {
        f"teacher_{name}_BS": np.pad(group[f"{name}_BT"][::-1], [(0, 0), (0, 0)]) for name in ("tokens", "positions")
    }
    theirs["teacher_segments_BS"] = group["segments_BT"][::-1].copy()
    rng = np.random.default_rng(1)
    at_BT = rng.integers(-1, 16, group["tokens_BT"].shape).astype(np.int32)
    rows = PACKED._replace(groups=({**group, **theirs, "teacher_at_BT": at_BT},))
    found = ask(tmp_path, rows).groups[0]
    assert found.keys() == {*group, "teacher_ids_BTK", "teacher_logprobs_BTK"}
    reversed_group = {name: array[::-1] for name, array in group.items()}
    logprobs_BSV = teacher_logprobs(reversed_group)
    seen = none = 0
    for row, place in zip(*np.nonzero(group["weights_BT"]), strict=True):
        got = found["teacher_logprobs_BTK"][row, place]
        if at_BT[row, place] < 0:
            none += 1
            assert (got == -np.inf).all()
        else:
            seen += 1
            np.testing.assert_allclose(got, np.sort(logprobs_BSV[row, at_BT[row, place]])[:-6:-1], atol=2e-5)
    assert seen and none


def test_a_padded_vocabulary_is_cut_and_a_classifier_s_labels_are_one(tmp_path):
    group = ask(tmp_path, vocab_size=20, k=99).groups[0]
    learned_BT = group["weights_BT"] > 0
    assert group["teacher_ids_BTK"].shape[-1] == 20 and group["teacher_ids_BTK"].max() == 19
    np.testing.assert_allclose(np.exp(group["teacher_logprobs_BTK"][learned_BT]).sum(-1), 1, rtol=1e-5)

    config = dataclasses.replace(TEACHER, labels=("نه", "بله", "شاید"))
    params = {path: 4 * leaf for path, leaf in init(config, jax.random.key(2)).items()}
    rows = pad([example([5, 4, 3], 2, "x"), example([1, 2, 3, 4, 5], 4, "y")], [6])
    group = ask(tmp_path, rows, config, params, k=9).groups[0]
    for row, length in enumerate((2, 4)):
        tokens_BT = jnp.asarray(rows.groups[0]["tokens_BT"])
        scores = np.asarray(jax.jit(classify, static_argnums=0)(config, params, tokens_BT, jnp.full(2, length)))[row]
        ids, logprobs = (group[name][row, length - 1] for name in ("teacher_ids_BTK", "teacher_logprobs_BTK"))
        np.testing.assert_allclose(logprobs, (scores - np.log(np.exp(scores).sum()))[ids], atol=2e-5)


def test_ids_hold_the_vocabulary_s_size_too(tmp_path):
    """So that whoever compares ids with it does not overflow their type."""
    for size, dtype in ((255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32)):
        config = dataclasses.replace(TEACHER, vocab_size=size, width=8, num_heads=1, mlp_dim=8)
        shapes = jax.eval_shape(lambda config=config: init(config, jax.random.key(0)))
        params = {path: jnp.ones(shape.shape) for path, shape in shapes.items()}
        rows = pad([example([1, 2, 3], 1, "x")], [2])
        group = ask(tmp_path, rows, config, params, k=1).groups[0]
        assert group["teacher_ids_BTK"].dtype == dtype


def test_no_logits_of_a_batch_exist():
    vocab, tokens, width = 4096, 4096, 8
    config = dataclasses.replace(TEACHER, vocab_size=vocab, width=width, max_len=tokens)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    tokens_BT = jax.ShapeDtypeStruct((64, tokens // 64), jnp.int32)
    flat_N = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    keep = teacher_cache._Kept(vocab, 8, None)
    lowered = teacher_cache._ask.lower(
        config, params, *[tokens_BT] * 3, *[flat_N] * 3, jax.ShapeDtypeStruct((), jnp.int32), key, keep=keep, chunk=128
    )
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < tokens * vocab * 4 / 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "top"}, "unknown kind of cached teacher 'top': one of topk, topk_tail, sampled; did you mean 'topk'"),
        ({"dtype": "bfloat16"}, "unknown dtype of a cached teacher 'bfloat16': one of float32, float16"),
        ({"k": 0}, "k=0: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"config": dataclasses.replace(TEACHER, labels=("value",))}, "gives a number .value., which needs no cache"),
        ({"config": dataclasses.replace(TEACHER, vocab_size=12)}, "the rows hold token 30, .* ends at 11: make them"),
        ({"params": {**PARAMS, "norm/scale": PARAMS["norm/scale"] * np.nan}}, "the teacher's output is no number"),
        ({"params": {**PARAMS, "norm/scale": PARAMS["norm/scale"] * np.nan}, "kind": "sampled"}, "is no number"),
        ({"config": dataclasses.replace(TEACHER, max_len=12)}, "16 tokens in a row, but the model has max_len=12"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        ask(tmp_path, **changes)
    assert "\n" not in str(error.value)
