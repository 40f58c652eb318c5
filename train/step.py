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
    """Step 0, with arrays of its own, since the step donates its state, and in float32 whatever the model computes in.

    A small update would be lost on bfloat16 parameters: these are the master weights, rounded anew in each pass.
    """
    own = {path: jnp.array(leaf, _master(leaf.dtype)) for path, leaf in trainable.items()}
    return State(jnp.int32(0), own, optimizer.init(own))


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, *, accumulate: int = 1) -> Step:
    """`step(state, frozen, batch, key) -> (state, metrics)`, jitted, its state donated.

    Only `state.trainable` is differentiated: there is no gradient and no optimiser state of a frozen parameter.
    The key is folded with the step's number, so the caller passes the same one each time. With `accumulate` the batch
    is run in as many portions, whose gradients are put together by the portions' weights: the step is that of the
    whole batch. Metrics: the loss function's, `grad_norm`, and `grad_norms_P` of the leaves in order of their paths.
    """

    def gradients_of(trainable: Params, frozen: Params, batch: Batch, key: jax.Array) -> tuple[Params, Metrics]:
        return jax.grad(lambda own: loss_fn(merge(own, frozen), batch, key), has_aux=True)(trainable)

    def accumulated(trainable: Params, frozen: Params, batch: Batch, key: jax.Array) -> tuple[Params, Metrics]:
        # Each portion takes rows from all over the batch: contiguous ones would each lie on one of several devices.
        portions = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), dict(batch))

        def portion(index: jax.Array, part: Batch) -> tuple[jax.Array, tuple[Params, Metrics]]:
            gradients, metrics = gradients_of(trainable, frozen, part, jax.random.fold_in(key, index))
            weight = metrics.pop("weight")
            return weight, jax.tree.map(lambda x: weight * x, (gradients, metrics))

        def add(sums, numbered):
            return jax.tree.map(jnp.add, sums, portion(*numbered)), None

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(portion, 0, jax.tree.map(lambda x: x[0], portions)))
        (weight, sums), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), portions))
        gradients, metrics = jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), sums)
        return gradients, {**metrics, "weight": weight}

    def step(state: State, frozen: Params, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        compute = gradients_of if accumulate == 1 else accumulated
        gradients, metrics = compute(state.trainable, frozen, batch, jax.random.fold_in(key, state.step))
        updates, opt = optimizer.update(gradients, state.opt, state.trainable)
        trainable = cast(Params, optax.apply_updates(state.trainable, updates))
        norms_P = jnp.stack([jnp.linalg.norm(gradients[path].reshape(-1)) for path in sorted(gradients)])
        metrics = {**metrics, "grad_norm": jnp.linalg.norm(norms_P), "grad_norms_P": norms_P}
        return State(state.step + 1, trainable, opt), metrics

    return jax.jit(step, donate_argnums=0)


def _master(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
