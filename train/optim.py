"""The optimiser that a config describes, over the trainable parameters alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from limbeck.model.chosen import CHOSEN
from limbeck.model.errors import UserError
from limbeck.model.params import Dead, Params, block_path, first_match
from limbeck.train.config import OptimConfig


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine, linear or no decay to `final` times the peak."""
    warmup = max(1, round(config.warmup * steps))
    rest = max(1, steps - warmup)
    peak, end = config.learning_rate, config.learning_rate * config.final
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final),
        "linear": optax.linear_schedule(peak, end, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1)), after], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip, then the rule, decaying what `decays` names; then the average, and the guard, where asked for.

    AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) without
    momentum and without scaling by the parameters, so that AdamW's learning rates carry over; Lion (Chen et al. 2023,
    arXiv 2302.06675; its learning rates are 3 to 10 times smaller); momentum SGD; or Muon (Jordan et al. 2024) for the
    kernels inside the blocks, its updates scaled to AdamW's size (arXiv 2502.16982), and AdamW for every other leaf.

    Its `init` raises UserError for a pattern that is no regular expression, and for one of `rates` that no leaf
    answers to. With `skip` its `update` takes `sound`, as `make_step` gives it.
    """
    decayed = _decayed(config.decays, config.weight_decay)
    match config.name:
        case "adamw":
            rule = [optax.scale_by_adam(config.b1, config.b2, config.eps), decayed]
        case "adafactor":
            rule = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), decayed]
        case "lion":
            rule = [optax.scale_by_lion(config.b1, config.b2), decayed]
        case "muon":
            # optax's own decay heeds no mask outside of Muon's leaves. -1: the direction alone, uphill as the others.
            muon = optax.contrib.muon(
                -1.0,
                eps=config.eps,
                adam_b1=config.b1,
                adam_b2=config.b2,
                # optax types this as a tree of arrays and documents it as a tree of MuonDimensionNumbers.
                muon_weight_dimension_numbers=_matrices,  # pyright: ignore[reportArgumentType]
                consistent_rms=0.2,
            )
            rule = [muon, decayed]
        case "sgd":
            rule = [decayed, optax.trace(config.b1)]
    parts = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    parts += [*rule, optax.scale_by_learning_rate(schedule(config, steps))]
    parts += [_paced(config.rates)] if config.rates else []
    parts += [averaging(config.average)] if config.average else []
    optimizer = optax.chain(*parts)
    return _guarded(optimizer) if config.skip else optimizer


def _decayed(patterns: Sequence[str], decay: float) -> optax.GradientTransformation:
    """Adds `decay` times the parameter to the updates of the leaves, or of their layers, that a pattern matches."""
    rules = [(pattern, decay) for pattern in patterns]

    def one(path: str, update: jax.Array, leaf: jax.Array) -> jax.Array:
        # Chosen entries decay where the leaf that they are of would: they have its layers.
        factor = _by_layer(rules, path.removesuffix(CHOSEN), leaf, otherwise=0.0)
        return update + factor * leaf if np.any(factor) else update

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        return {path: one(path, u, params[path]) for path, u in updates.items()}, state

    # One list serves every selection of what trains, so a pattern without a leaf is no mistake here.
    return optax.GradientTransformation(lambda params: _checked("decays", rules, params, dead="allowed"), update)


def _paced(rates: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the updates of the leaves, or of their layers, by the factor of the first pattern that matches."""

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        return {path: _by_layer(rates, path, u, otherwise=1.0) * u for path, u in updates.items()}, state

    return optax.GradientTransformation(lambda params: _checked("rates", rates, params, dead="refused"), update)


_Rules = Sequence[tuple[str, float]]


def _checked(setting: str, rules: _Rules, params: Params, dead: Dead) -> optax.EmptyState:
    """No state; raises UserError for patterns that are none."""
    try:
        first_match([pattern for pattern, _ in rules], params, dead=dead)
    except UserError as error:
        raise UserError(f"{setting}, among what trains: {error}") from error
    return optax.EmptyState()


def _by_layer(rules: _Rules, path: str, leaf: jax.Array, *, otherwise: float) -> float | np.ndarray:
    """What the first pattern that matches a leaf says: a number, or where its layers differ [L, 1, ...]."""
    hits = first_match([pattern for pattern, _ in rules], {path: leaf}, dead="allowed")[path]
    values = [otherwise if hit is None else rules[hit][1] for hit in hits]
    if len(set(values)) == 1:
        return values[0]
    return np.array(values, leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))


def _guarded(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same, but a step that is not `sound` (an argument of `update`) changes neither parameters nor state.

    `optax.apply_if_finite` looks at the gradient's entries alone: their norm, and the loss, may be infinite.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, sound: jax.Array | bool = True, **_: Any
    ) -> tuple[Any, Any]:
        moves, new = optimizer.update(updates, state, params)
        moves = jax.tree.map(lambda move: jnp.where(sound, move, jnp.zeros_like(move)), moves)
        return moves, jax.tree.map(lambda one, other: jnp.where(sound, one, other), new, state)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


class Average(NamedTuple):
    """State of `averaging`: how many steps went in, and the moving average of the parameters."""

    count: jax.Array
    average: Params


def averaging(decay: float) -> optax.GradientTransformation:
    """Changes no update; keeps the exponential moving average of the parameters that come of them.

    The decay begins small, min(decay, (1 + t) / (10 + t)), so that a short run does not remember its start.
    """

    def init(params: Any) -> Average:
        return Average(jnp.int32(0), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: Average, params: Any = None) -> tuple[Any, Average]:
        kept = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        moved = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.average, moved)
        return updates, Average(state.count + 1, average)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def average_of(opt: optax.OptState) -> Params | None:
    """The moving average of the parameters that an optimiser's state holds, if it was asked to keep one."""
    states = jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, Average))
    return next((state.average for state in states if isinstance(state, Average)), None)


def _matrices(params: Params) -> dict[str, MuonDimensionNumbers | None]:
    """Which axes of a leaf are a matrix: the last two of a stack of kernels; None for what Muon is not for."""
    kernel = MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {path: kernel if block_path(path) and path.endswith("/kernel") else None for path in params}


def optimizer_bytes(optimizer: optax.GradientTransformation, trainable: Params) -> int:
    """Bytes of the optimiser's state for these parameters, with nothing allocated."""
    state = jax.eval_shape(optimizer.init, trainable)
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))
