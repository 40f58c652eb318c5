"""A program by its shapes: what of it lies where on a mesh, and the bytes of one device. Nothing is allocated."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from limbeck.model.config import ModelConfig
from limbeck.model.sharding import fitted, spec

Shapes = dict[str, jax.ShapeDtypeStruct]


class Program(NamedTuple):
    """A program by its shapes.

    `model` is what a mesh cuts, the student of a distillation; `models` are those beside it, by the beginning of their
    leaves' paths. `tokens` and `flops` are of one run of the program, over all devices; `rows` what a mesh spreads.
    `lower(mesh)` traces it; `state(mesh)` is what it changes and gives back, as it lies there.
    """

    what: str
    model: ModelConfig
    trainable: Shapes
    frozen: Shapes
    models: Mapping[str, ModelConfig]
    rows: int
    tokens: int
    flops: float
    state: Callable[[Mesh | AbstractMesh], Any]
    lower: Callable[[Mesh], jax.stages.Lowered]
    attention: float = 0.0  # FLOPs of attention's kernel, of which the compiler does not know
    keeps_best: bool = False


class Lying(NamedTuple):
    """A parameter on a mesh; `nbytes` are those of one device."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    trains: bool
    nbytes: int


def table_of(plan: Program, mesh: Mesh | AbstractMesh) -> list[Lying]:
    """Every parameter of a program as it lies on a mesh, in order of their paths."""
    rows = []
    for trains, part in ((True, plan.trainable), (False, plan.frozen)):
        for path, leaf in laid(plan, part, mesh).items():
            where: Any = leaf.sharding
            rows.append(Lying(path, leaf.shape, str(leaf.dtype), where.spec, trains, _here(leaf)))
    return sorted(rows)


def bytes_of(plan: Program, mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """Bytes on one device of what a program keeps: `parameters` as they train, in float32, `optimizer` (moments), or
    the `cache` of answers, `frozen` parameters, `gradients`, and the `best` so far, where it is kept (of a run on one
    host in the host's memory)."""
    with jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh):
        state = plan.state(mesh)
    if not plan.trainable:
        return {"frozen": _sum(laid(plan, plan.frozen, mesh)), "cache": _sum(state)}
    return {
        "parameters": _sum(state.trainable),
        "optimizer": _sum(state.opt),
        "frozen": _sum(laid(plan, plan.frozen, mesh)),
        "gradients": _sum(state.trainable),
        "best": _sum(state.trainable) if plan.keeps_best else 0,
    }


def laid(plan: Program, leaves: Shapes, mesh: Mesh | AbstractMesh) -> Shapes:
    """The same shapes, each with where it lies; raises UserError for a parameter that no rule covers."""
    out = {}
    for path, leaf in leaves.items():
        whose = next((prefix for prefix in plan.models if path.startswith(prefix)), "")
        where = spec(path.removeprefix(whose), leaf.shape, mesh, plan.models.get(whose, plan.model))
        out[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, where))
    return out


def lying(shape: tuple[int, ...], dtype: Any, axes: tuple[Any, ...], mesh: Mesh | AbstractMesh) -> jax.ShapeDtypeStruct:
    """A shape with where it lies: over those axes of its first dimensions, as far as the mesh divides them."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, fitted(axes, shape)))


def _sum(tree: Any) -> int:
    return sum(map(_here, jax.tree.leaves(tree)))


def _here(leaf: Any) -> int:
    """Bytes of one device's part."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * jnp.dtype(leaf.dtype).itemsize
