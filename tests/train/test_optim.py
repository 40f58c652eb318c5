"""The optimiser: what is named decays and is paced, layer by layer, however the stack is cut; else it is optax's."""

import dataclasses
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from limbeck.model.errors import UserError
from limbeck.model.params import Params, block_path, cut, join
from limbeck.model.sharding import fitted, make_mesh
from limbeck.train.config import OptimConfig, Optimizer
from limbeck.train.optim import average_of, make_optimizer, optimizer_bytes, schedule
from limbeck.train.select import Selection, apply_selection
from limbeck.train.step import init_state, state_shapes

NAMES = get_args(Optimizer)
RATE, DECAY = 0.1, 0.5
SHAPES = {
    "blocks/mlp/up/kernel": (3, 4, 6),
    "blocks/mlp/down/kernel": (3, 6, 4),
    "blocks/attn/q/kernel_chosen": (3, 5),
    "blocks/attn/q/bias": (3, 8),
    "blocks/attn_norm/scale": (3, 4),
    "embed/embedding": (8, 4),
    "embed/embedding_chosen": (5,),
    "norm/scale": (4,),
    "norm/bias": (4,),
    "head/kernel": (4, 8),
}
MATRICES = {"blocks/mlp/up/kernel", "blocks/mlp/down/kernel"}  # what Muon itself takes
EVERYWHERE = (True, True, True)
CUTS = [[], [1]]
# By patterns: the leaves that they name, and of a stack which layers.
DECAYS = {
    OptimConfig().decays: {
        "blocks/mlp/up/kernel": EVERYWHERE, "blocks/mlp/down/kernel": EVERYWHERE,
        "blocks/attn/q/kernel_chosen": EVERYWHERE, "embed/embedding": True, "embed/embedding_chosen": True,
        "head/kernel": True,
    },
    ("blocks/mlp/.*/kernel",): {"blocks/mlp/up/kernel": EVERYWHERE, "blocks/mlp/down/kernel": EVERYWHERE},
    ("blocks/(0|2)/.*/kernel", "norm/scale"): {
        "blocks/mlp/up/kernel": (True, False, True), "blocks/mlp/down/kernel": (True, False, True),
        "blocks/attn/q/kernel_chosen": (True, False, True), "norm/scale": True,
    },
    ("blocks/1/attn_norm/.*", "blocks/2/mlp/up/kernel"): {
        "blocks/attn_norm/scale": (False, True, False), "blocks/mlp/up/kernel": (False, False, True),
    },
    ("blocks/7/.*", "score/kernel"): {},
}  # fmt: skip


def tree(seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}


def plain(name: str, **more: Any) -> OptimConfig:
    """A rate that stays, nothing clipped."""
    settings: dict[str, Any] = {
        "learning_rate": RATE, "schedule": "constant", "warmup": 0.0, "weight_decay": DECAY, "clip": None, **more
    }  # fmt: skip
    return OptimConfig(cast(Optimizer, name), **settings)


def updates_of(config: OptimConfig, params: Params, gradients: Params) -> Params:
    optimizer = make_optimizer(config, 10)
    return cast(Params, optimizer.update(gradients, optimizer.init(params), params)[0])


def along(path: str, values: Any, leaf: jax.Array) -> np.ndarray:
    """A number, or one for each layer, over a leaf."""
    values = np.asarray(values, np.float32)
    return np.broadcast_to(values.reshape(*values.shape, *(1,) * (leaf.ndim - values.ndim)), leaf.shape)


@pytest.mark.parametrize("boundaries", CUTS)
@pytest.mark.parametrize("decays", DECAYS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_is_named_decays(name, decays, boundaries):
    whole = tree()
    params = cut(whole, boundaries)
    updates = join(updates_of(plain(name, decays=decays), params, jax.tree.map(jnp.zeros_like, params)))
    assert updates.keys() == whole.keys()
    for path, leaf in whole.items():
        named = along(path, DECAYS[decays].get(path, False), leaf)
        np.testing.assert_allclose(updates[path], -RATE * DECAY * named * leaf, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("boundaries", CUTS)
@pytest.mark.parametrize(
    "rates, factors",
    [
        ((("blocks/0/.*", 0.0),), {path: (0, 1, 1) for path in SHAPES if block_path(path)}),
        ((("blocks/mlp/.*", 3.0),), {"blocks/mlp/up/kernel": 3, "blocks/mlp/down/kernel": 3}),
        (
            (("blocks/2/mlp/up/.*", 5.0), ("blocks/(1|2)/mlp/.*", 2.0), ("norm/.*", 0.5)),
            {
                "blocks/mlp/up/kernel": (1, 2, 5), "blocks/mlp/down/kernel": (1, 2, 2),
                "norm/scale": 0.5, "norm/bias": 0.5,
            },
        ),
        (((".*_chosen", 4.0),), {"blocks/attn/q/kernel_chosen": 4, "embed/embedding_chosen": 4}),
        ((("blocks/1/.*_chosen", 4.0),), {"blocks/attn/q/kernel_chosen": (1, 4, 1)}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["adafactor", "muon", "sgd"])
def test_exactly_what_is_named_has_its_own_rate_and_the_first_pattern_counts(name, rates, factors, boundaries):
    whole = tree()
    params, gradients = cut(whole, boundaries), cut(tree(1), boundaries)
    config = plain(name, decays=("blocks/1/.*", "norm/.*"))
    found, right = (
        join(updates_of(dataclasses.replace(config, rates=own), params, gradients)) for own in (rates, ())
    )
    for path, leaf in right.items():
        np.testing.assert_allclose(
            found[path], along(path, factors.get(path, 1), leaf) * leaf, rtol=1e-6, err_msg=path
        )
        assert np.abs(leaf).min() > 0


def as_optax_has_it(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The rules by optax's own names, everything decaying."""
    rate, decay = schedule(config, steps), config.weight_decay
    match config.name:
        case "adamw":
            return optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=decay)
        case "adafactor":
            parts = optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.add_decayed_weights(decay)
            return optax.chain(*parts, optax.scale_by_learning_rate(rate))
        case "lion":
            return optax.lion(rate, config.b1, config.b2, weight_decay=decay)
        case "muon":
            matrix = optax.contrib.MuonDimensionNumbers(1, 2)
            numbers: Any = lambda params: {path: matrix if path in MATRICES else None for path in params}  # noqa: E731
            return optax.contrib.muon(
                rate, eps=config.eps, weight_decay=decay, adam_b1=config.b1, adam_b2=config.b2,
                adam_weight_decay=decay, muon_weight_dimension_numbers=numbers, consistent_rms=0.2,
            )  # fmt: skip
        case "sgd":
            return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, config.b1))


def run(optimizer: optax.GradientTransformation, params: Params, compiled: bool) -> Params:
    """Three steps along the same gradients."""
    update, state = jax.jit(optimizer.update) if compiled else optimizer.update, optimizer.init(params)
    for step in range(3):
        gradients = {path: leaf for path, leaf in tree(step + 1).items() if path in params}
        updates, state = update(gradients, state, params)
        params = cast(Params, optax.apply_updates(params, updates))
    return params


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("name", NAMES)
def test_where_all_or_nothing_decays_the_bits_are_those_of_optax(name, eps, decay, compiled):
    decays = (".*",) if decay else OptimConfig().decays
    config = OptimConfig(name, learning_rate=0.1, weight_decay=decay, decays=decays, clip=None, eps=eps)
    found, right = (run(make(config, 8), tree(), compiled) for make in (make_optimizer, as_optax_has_it))
    for path, leaf in right.items():
        assert np.asarray(found[path]).tobytes() == np.asarray(leaf).tobytes(), path


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_epsilon_is_heeded_in_every_leaf(name):
    usual, huge = (updates_of(plain(name, weight_decay=0.0, eps=eps), tree(), tree(1)) for eps in (1e-8, 1e9))
    for path in SHAPES:
        assert np.abs(usual[path]).max() > 1e-3 and np.abs(huge[path]).max() < 1e-5, path


@pytest.mark.parametrize("pattern", ["blocks/mlp/.*", "norm/.*|.*/bias", "blocks/1/mlp/up/.*"])
@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_leaves_is_trained_as_it_is_among_all(name, pattern):
    """Muon's leaves alone, none of them, and a piece of one."""
    config = plain(name, decays=("blocks/mlp/.*", "norm/scale"))
    own, _ = apply_selection(Selection((pattern,)), tree())
    gradients, _ = apply_selection(Selection((pattern,)), tree(1))
    part, _ = apply_selection(Selection((pattern,)), updates_of(config, tree(), tree(1)))
    for path, update in updates_of(config, own, gradients).items():
        # Adafactor clips by the norm of what is one leaf.
        if name != "adafactor" or path in SHAPES:
            np.testing.assert_allclose(update, part[path], rtol=1e-5, atol=1e-7, err_msg=path)
    assert optimizer_bytes(make_optimizer(config, 4), own) > 0


@pytest.mark.parametrize("name", NAMES)
def test_layers_apart_train_compiled_and_on_a_mesh_as_they_do_alone(name):
    config = plain(
        name, decays=("blocks/1/.*", "norm/.*"), rates=(("blocks/2/mlp/.*", 0.25), ("embed/.*", 2.0)), clip=1.0,
        average=0.9, skip=1,
    )  # fmt: skip
    optimizer = make_optimizer(config, 8)

    def three(trainable: Params) -> tuple[Params, Params]:
        shapes, state = state_shapes(optimizer, trainable), init_state(optimizer, trainable)
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, shapes)
        moved, opt = state.trainable, state.opt
        for step in range(3):
            updates, opt = jax.jit(optimizer.update)(tree(step + 1), opt, moved)
            moved = cast(Params, optax.apply_updates(moved, updates))
        return moved, cast(Params, average_of(opt))

    right = three(tree())
    with jax.set_mesh(mesh := make_mesh(["data=2", "fsdp=2", "tensor=2"])):
        axes = (None, "fsdp", "tensor")
        lying = {path: NamedSharding(mesh, fitted(axes[: len(shape)], shape)) for path, shape in SHAPES.items()}
        found = three({path: jax.device_put(leaf, lying[path]) for path, leaf in tree().items()})
    assert not found[0]["head/kernel"].sharding.is_fully_replicated
    for ours, theirs in zip(found, right, strict=True):
        for path, leaf in theirs.items():
            np.testing.assert_allclose(ours[path], leaf, atol=2e-4 if name == "muon" else 1e-5, err_msg=path)


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("blocks/0/mlp/up/kernal", "matches no parameter; did you mean 'blocks/0/mlp/up/kernel'"),
        ("blocks/3/.*/kernel", "matches no parameter"),
        ("blocks/0:1/.*", "matches no parameter"),
    ],
)
def test_a_rate_of_no_leaf_is_refused_when_the_optimiser_begins(pattern, words):
    for more in ({}, {"skip": 1, "average": 0.9}):
        optimizer = make_optimizer(plain("muon", rates=((".*/kernel", 2.0), (pattern, 3.0)), **more), 4)
        for begin in (optimizer.init, jax.jit(optimizer.init), lambda own, o=optimizer: state_shapes(o, own)):
            with pytest.raises(UserError, match=words) as told:
                begin(cut(tree(), [1]))
            assert "\n" not in str(told.value) and str(told.value).startswith("rates, ")


def test_a_pattern_behind_another_that_takes_all_its_leaves_is_no_mistake():
    config = plain("sgd", b1=0.0, weight_decay=0.0, rates=((".*", 2.0), ("norm/.*", 3.0)))
    np.testing.assert_allclose(updates_of(config, tree(), tree(1))["norm/scale"], -0.2 * tree(1)["norm/scale"])


@pytest.mark.parametrize("more", [{"decays": (".*", "(")}, {"rates": ((".*", 1.0), ("(", 2.0))}], ids=str)
def test_what_is_no_pattern_is_refused(more):
    with pytest.raises(UserError, match=rf"^{next(iter(more))}, among .*'\(' is not a regular expression: missing \)"):
        make_optimizer(plain("lion", **more), 4).init(tree())
