"""The optimiser that a config describes, over the trainable parameters alone."""

import jax
import jax.numpy as jnp
import optax

from limbeck.model.params import Params, first_match
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
    """Clip, then AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) or momentum SGD, decaying what `decays` names."""

    def decay_mask(params: Params) -> dict[str, bool]:
        # One list serves every selection of what trains, so a pattern without a leaf is no mistake here.
        matches = first_match(config.decays, params, strict=False)
        return {path: hits[0] is not None for path, hits in matches.items()}

    rate = schedule(config, steps)
    if config.name == "adamw":
        rule = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)
    else:
        rule = optax.chain(optax.add_decayed_weights(config.weight_decay, decay_mask), optax.sgd(rate, config.b1))
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(clip, rule)


def optimizer_bytes(optimizer: optax.GradientTransformation, trainable: Params) -> int:
    """Bytes of the optimiser's state for these parameters, with nothing allocated."""
    state = jax.eval_shape(optimizer.init, trainable)
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))
