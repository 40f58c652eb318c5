"""The optimiser that a config describes, over the trainable parameters alone."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from limbeck.model.chosen import CHOSEN
from limbeck.model.params import Params, block_path
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
    """

    def decay_mask(params: Params) -> dict[str, bool]:
        # One list serves every selection of what trains, so a pattern without a leaf is no mistake here.
        # Chosen entries decay where the leaf that they are of would.
        return {
            path: any(re.fullmatch(pattern, path.removesuffix(CHOSEN)) for pattern in config.decays) for path in params
        }

    rate, decay = schedule(config, steps), config.weight_decay
    match config.name:
        case "adamw":
            rule = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=decay, mask=decay_mask)
        case "adafactor":
            rule = optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.add_decayed_weights(decay, decay_mask),
                optax.scale_by_learning_rate(rate),
            )
        case "lion":
            rule = optax.lion(rate, config.b1, config.b2, weight_decay=decay, mask=decay_mask)
        case "muon":
            rule = optax.contrib.muon(
                rate,
                weight_decay=decay,
                weight_decay_mask=decay_mask,
                adam_b1=config.b1,
                adam_b2=config.b2,
                adam_weight_decay=decay,
                adam_learning_rate=rate,
                # optax types this as a tree of arrays and documents it as a tree of MuonDimensionNumbers.
                muon_weight_dimension_numbers=_matrices,  # pyright: ignore[reportArgumentType]
                consistent_rms=0.2,
            )
        case "sgd":
            rule = optax.chain(optax.add_decayed_weights(decay, decay_mask), optax.sgd(rate, config.b1))
    parts = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    parts += [rule, _paced(config.rates)] if config.rates else [rule]
    parts += [averaging(config.average)] if config.average else []
    optimizer = optax.chain(*parts)
    # The loop counts what is left out and ends the run; optax itself would apply such an update after so many.
    return optax.apply_if_finite(optimizer, jnp.iinfo(jnp.int32).max) if config.skip else optimizer


def _paced(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the updates of the leaves that a pattern matches by its factor; the first that matches counts."""

    def factor(path: str) -> float:
        return next((factor for pattern, factor in rates if re.fullmatch(pattern, path)), 1.0)

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        return {path: factor(path) * u for path, u in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


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
