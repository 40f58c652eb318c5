"""Distillation over eight simulated devices: what one computes, with the teacher split as the student is."""

import dataclasses

import jax
import numpy as np
import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.features import add_matchers, matching
from limbeck.distill.match_config import MatchConfig
from limbeck.distill.teacher import STUDENT, distillation_loss, with_teacher
from limbeck.model.compiled import captured_warnings
from limbeck.model.config import ModelConfig
from limbeck.model.sharding import over, over_rows, placed, spread
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.data import Rows, batches
from limbeck.train.loop import fit
from limbeck.train.optim import make_optimizer
from limbeck.train.select import apply_selection
from limbeck.train.step import init_state, make_step

V = 96
TEACHER = ModelConfig(vocab_size=V, width=64, depth=3, num_heads=8, num_kv_heads=4, head_dim=8, mlp_dim=96, max_len=32)
CONFIG = dataclasses.replace(TEACHER, width=32, depth=2, mlp_dim=64)
MESHES = (("data=8",), ("data=2", "fsdp=2", "tensor=2"), ("fsdp=2", "tensor=4"))
# Not AdamW, which makes of a gradient that is all rounding a step as large as any (tests/train/test_mesh.py has it).
OPTIM = OptimConfig("sgd", learning_rate=0.3, weight_decay=0.1)
FIT = FitConfig(steps=3, batch_size=8, length=16, optim=OPTIM, log_every=1)
MATCH = MatchConfig(hidden=0.5)
WAYS = {
    "live": DistilConfig(hard_weight=0.3),
    "int8": DistilConfig(teacher_base="int8"),
    "cached": DistilConfig(cache="topk", hard_weight=0.3),
    "matched": DistilConfig(temperature=2.0),
}
CASES = [("live", mesh) for mesh in MESHES] + [(way, mesh) for way in WAYS if way != "live" for mesh in MESHES[1:]]


def stream(way):
    random = np.random.default_rng(0)
    tokens_BT = random.integers(1, V, (32, 17)).astype(np.int32)
    arrays = {
        "tokens_BT": tokens_BT[:, :-1],
        "targets_BT": tokens_BT[:, 1:],
        "weights_BT": random.integers(0, 2, (32, 16)).astype(np.float32),
        "positions_BT": np.tile(np.arange(16, dtype=np.int32), (32, 1)),
        "segments_BT": np.ones((32, 16), np.int32),
    }
    if way == "cached":
        p_BTV = random.dirichlet(np.full(V, 0.1), (32, 16)) + 1e-6
        ids_BTK = np.argsort(-p_BTV, axis=-1)[..., :4].astype(np.int32)
        logprobs_BTK = np.log(np.take_along_axis(p_BTV, ids_BTK, -1)).astype(np.float32)
        arrays |= {"teacher_ids_BTK": ids_BTK, "teacher_logprobs_BTK": logprobs_BTK}
    return batches(Rows((arrays,), np.array([b""])), 8, 0)


@pytest.fixture(scope="module")
def models():
    """(the student's parameters, the teacher's, which is surer of what it says than chance makes it)."""
    teacher = {path: 4 * leaf for path, leaf in init(TEACHER, jax.random.key(1)).items()}
    return init(CONFIG, jax.random.key(0)), teacher


def together(models, way):
    """Both models where they lie on the mesh, each by its own config, and the loss between them."""
    student, teacher = models
    config, matched = WAYS[way], None
    if way == "matched":
        student = add_matchers(MATCH, CONFIG, TEACHER, student, jax.random.key(2))
        matched = matching(MATCH, CONFIG, TEACHER)
    if not config.cache:
        student = with_teacher(student, placed(TEACHER, teacher), config.teacher_base)
    loss_fn = distillation_loss(CONFIG, None if config.cache else TEACHER, config, matching=matched)
    return placed(CONFIG, student), loss_fn


def fitted(models, way, settings=FIT, mesh=(), **more):
    with over(mesh):
        params, loss_fn = together(models, way)
        found = fit(loss_fn, params, stream(way), settings, selection=STUDENT, **more)
        return found, {path: jax.device_get(leaf) for path, leaf in found.trainable.items()}


@pytest.fixture(scope="module")
def alone(models):
    return {way: fitted(models, way) for way in WAYS}


@pytest.mark.parametrize(("way", "mesh"), CASES, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_a_mesh_distils_what_one_device_does(way, mesh, models, alone):
    right, right_leaves = alone[way]
    found, leaves = fitted(models, way, mesh=mesh)
    np.testing.assert_allclose([loss for _, loss in found.curve], [loss for _, loss in right.curve], atol=1e-5)
    assert leaves.keys() == right_leaves.keys()
    assert ("matcher/hidden_0/kernel" in leaves) == (way == "matched")
    for path, leaf in leaves.items():
        np.testing.assert_allclose(leaf, right_leaves[path], rtol=0, atol=1e-5, err_msg=path)
    began = jax.device_get(models[0])
    went = {path: np.abs(leaf - began[path]).max() for path, leaf in leaves.items() if path in began}
    assert min(went.values()) > 1e-3, went


@pytest.mark.parametrize("way", ["live", "int8"])
@pytest.mark.parametrize("mesh", MESHES[1:], ids=" ".join)
def test_every_device_has_its_part_of_the_teacher_alone(mesh, way, models):
    """Bytes, after steps as before them: of each kernel and the embedding one part; what is small is whole."""
    with over(mesh):
        params, loss_fn = together(models, way)
        parts = spread(("fsdp", "tensor"))
        after = fit(loss_fn, params, stream(way), FIT, selection=STUDENT).frozen
    assert all(path.startswith("teacher/") for path in after)
    cut = ("embedding", "kernel", "kernel_int8")
    for held in (params, after):
        theirs = {path: leaf for path, leaf in held.items() if path.startswith("teacher/")}
        assert len([path for path in theirs if path.endswith(cut)]) == 8
        for path, leaf in theirs.items():
            if path.endswith(cut):
                assert {each.data.nbytes for each in leaf.addressable_shards} == {leaf.nbytes // parts}, path
        here = sum(leaf.addressable_shards[0].data.nbytes for leaf in theirs.values())
        assert here < 1.25 * sum(leaf.nbytes for leaf in theirs.values()) / parts
    for path, leaf in after.items():
        assert leaf.sharding.is_equivalent_to(params[path].sharding, leaf.ndim), path
        np.testing.assert_array_equal(jax.device_get(leaf), jax.device_get(params[path]))


def test_a_distillation_goes_on_over_another_mesh_from_its_checkpoint(models, alone, tmp_path):
    """Eight devices, then 2 x 4, then one, with a live teacher: values equal to a run that was never stopped."""
    right = alone["live"][1]
    settings, began = dataclasses.replace(FIT, checkpoint_every=1), []

    class Enough(Exception):
        pass

    for stop, mesh in ((1, ("fsdp=8",)), (2, ("fsdp=2", "tensor=4")), (3, ())):
        steps = []

        def log(row, stop=stop, steps=steps):
            steps.append(row["step"])
            if row["step"] == stop + 1:
                raise Enough

        try:
            leaves = fitted(models, "live", settings, mesh, checkpoints=tmp_path, log=log)[1]
        except Enough:
            continue
        finally:
            began.append(steps[0])
    assert began == [1, 2, 3]
    for path, leaf in leaves.items():
        np.testing.assert_allclose(leaf, right[path], atol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=" ".join)
def test_nothing_is_gathered_whole_to_be_laid_out_anew(mesh, models):
    with over(mesh), captured_warnings() as warned:
        params, loss_fn = together(models, "live")
        trainable, frozen = apply_selection(STUDENT, params)
        optimizer = make_optimizer(FIT.optim, FIT.steps)
        state = init_state(optimizer, trainable)
        step = jax.jit(make_step(loss_fn, optimizer, like=state))
        step.lower(state, frozen, over_rows(stream("live")(0)), jax.random.key(0)).compile()
    assert not warned
