"""The optimiser that a config describes, over the trainable parameters alone."""

import re

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

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
    """Clip, then the rule, decaying what `decays` names.

    AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); momentum SGD; or Muon (Jordan et al. 2024) for the kernels
    inside the blocks, its updates scaled to AdamW's size (arXiv 2502.16982) so that learning rates carry over, and
    AdamW for every other leaf.
    """

    def decay_mask(params: Params) -> dict[str, bool]:
        # One list serves every selection of what trains, so a pattern without a leaf is no mistake here.
        return {path: any(re.fullmatch(pattern, path) for pattern in config.decays) for path in params}

    rate = schedule(config, steps)
    if config.name == "adamw":
        rule = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)
    elif config.name == "muon":
        rule = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            weight_decay_mask=decay_mask,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            adam_learning_rate=rate,
            # optax types this as a tree of arrays and documents it as a tree of MuonDimensionNumbers.
            muon_weight_dimension_numbers=_matrices,  # pyright: ignore[reportArgumentType]
            consistent_rms=0.2,
        )
    else:
        rule = optax.chain(optax.add_decayed_weights(config.weight_decay, decay_mask), optax.sgd(rate, config.b1))
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(clip, rule)


def _matrices(params: Params) -> dict[str, MuonDimensionNumbers | None]:
    """Which axes of a leaf are a matrix: the last two of a stack of kernels; None for what Muon is not for."""
    kernel = MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {path: kernel if block_path(path) and path.endswith("/kernel") else None for path in params}


def optimizer_bytes(optimizer: optax.GradientTransformation, trainable: Params) -> int:
    """Bytes of the optimiser's state for these parameters, with nothing allocated."""
    state = jax.eval_shape(optimizer.init, trainable)
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))
