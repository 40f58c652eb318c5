"""The one training step: full tuning, parameter-efficient tuning and distillation are its arguments, not its kinds."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

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

    A small update would be lost on bfloat16 parameters: these are the master weights, rounded anew in each pass. On a
    mesh a moment lies as the parameter does that it is of.
    """
    begin, where = partial(_begun, optimizer), _shardings(state_shapes(optimizer, trainable))
    return begin(trainable) if where is None else jax.jit(begin, out_shardings=where)(trainable)


def state_shapes(optimizer: optax.GradientTransformation, trainable: Mapping[str, Any]) -> State:
    """Shapes and types of `init_state`, and on a mesh where they lie, with nothing allocated.

    `trainable` are arrays, or their shapes, with a sharding each. What an optimiser keeps in another shape than its
    parameter has (Adafactor's rows and columns are small) is whole on every device.
    """
    state = jax.eval_shape(partial(_begun, optimizer), dict(trainable))
    lies = next((getattr(leaf, "sharding", None) for leaf in trainable.values()), None)
    if not isinstance(lies, NamedSharding):
        return state
    whole = NamedSharding(lies.mesh, PartitionSpec())

    def lying(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey) and key.key in trainable]
        beside = trainable[names[-1]] if names else None
        goes = beside.sharding if beside is not None and beside.shape == leaf.shape else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=goes)

    return jax.tree_util.tree_map_with_path(lying, state)


def _begun(optimizer: optax.GradientTransformation, trainable: Mapping[str, jax.Array]) -> State:
    own = {path: jnp.array(leaf, _master(leaf.dtype)) for path, leaf in trainable.items()}
    return State(jnp.int32(0), own, optimizer.init(own))


def _shardings(state: State | None) -> Any:
    """Where every leaf of a state lies; None without a mesh."""
    leaves = jax.tree.leaves(state)
    if not all(isinstance(leaf.sharding, NamedSharding) for leaf in leaves):
        return None
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def make_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, accumulate: int = 1, like: State | None = None
) -> Step:
    """`step(state, frozen, batch, key) -> (state, metrics)`, jitted, its state donated.

    Only `state.trainable` is differentiated: there is no gradient and no optimiser state of a frozen parameter.
    The key is folded with the step's number, so the caller passes the same one each time. With `accumulate` the batch
    is run in as many portions, whose gradients are put together by the portions' weights: the step is that of the
    whole batch, so long as the loss is a mean by `metrics["weight"]` (matched features are not). `like`, a state on a
    mesh or its shapes, says how the new states lie there: as it does, and gradients as their parameters; metrics are
    whole on every device. Metrics: the loss function's, `grad_norm`, and `grad_norms_P` of the leaves in order of
    their paths.
    """
    where = None if like is None else _shardings(like)
    guardable = optax.with_extra_args_support(optimizer)  # only one that leaves steps out asks whether a step is sound

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
        if where is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, where.trainable)
        norms_P = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(gradients[path]))) for path in sorted(gradients)])
        metrics = {**metrics, "grad_norm": jnp.linalg.norm(norms_P), "grad_norms_P": norms_P}
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        updates, opt = guardable.update(gradients, state.opt, state.trainable, sound=sound)
        trainable = cast(Params, optax.apply_updates(state.trainable, updates))
        return State(state.step + 1, trainable, opt), metrics

    if where is None:
        return jax.jit(step, donate_argnums=0)
    everywhere = NamedSharding(where.step.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(where, everywhere))


def _master(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
