"""The one training step: full tuning, parameter-efficient tuning and distillation are its arguments, not its kinds."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from limbeck.model.params import Params, merge
from limbeck.train.loss import Batch, LossFn, Metrics


class State(NamedTuple):
    """All that a step changes, and all that a checkpoint holds."""

    step: jax.Array
    trainable: Params
    opt: optax.OptState


Step = Callable[[State, Params, Batch, jax.Array], tuple[State, Metrics]]


def init_state(optimizer: optax.GradientTransformation, trainable: Params) -> State:
    """Step 0, with arrays of its own: the step donates its state, and the caller's parameters must outlive that."""
    own = jax.tree.map(jnp.copy, trainable)
    return State(jnp.int32(0), own, optimizer.init(own))


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> Step:
    """`step(state, frozen, batch, key) -> (state, metrics)`, jitted, its state donated.

    Only `state.trainable` is differentiated: there is no gradient and no optimiser state of a frozen parameter.
    The key is folded with the step's number, so the caller passes the same one each time.
    """

    def step(state: State, frozen: Params, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        def objective(trainable: Params) -> tuple[jax.Array, Metrics]:
            return loss_fn(merge(trainable, frozen), batch, jax.random.fold_in(key, state.step))

        gradients, metrics = jax.grad(objective, has_aux=True)(state.trainable)
        updates, opt = optimizer.update(gradients, state.opt, state.trainable)
        trainable = cast(Params, optax.apply_updates(state.trainable, updates))
        metrics = {**metrics, "grad_norm": optax.tree.norm(gradients)}
        return State(state.step + 1, trainable, opt), metrics

    return jax.jit(step, donate_argnums=0)
