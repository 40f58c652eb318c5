"""Several devices as one: a mesh, and what of each parameter and each activation lies where.

A mesh has three axes, each of one or more devices:

- `data`: whole copies of the model, each with its rows of a batch;
- `fsdp`: rows of a batch, too, but each device keeps a part of every parameter, which the others fetch where a layer
  needs it (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3);
- `tensor`: attention heads, the MLP's units and the vocabulary (Shoeybi et al. 2019, arXiv 1909.08053).

The code is that of one device. Under `over(mesh)` parameters are laid out by RULES, activations are held to a layout
at a few places (`constrain`), and the compiler does the rest. An axis that does not divide what it should split leaves
it whole. Without a mesh nothing here does anything.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.params import Params, block_path

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what the rows of a batch are spread over
Axis = str | tuple[str, ...] | None

_SPREADS = r"blocks/(attn/[qkv]|mlp/(up|gate))/"  # modules whose outputs are spread over `tensor`
_GATHERS = r"blocks/(attn/o|mlp/down)/"  # and those whose inputs are
_KERNEL = r"kernel(_int8|_nf4)?"

# Patterns of paths in order, the first that matches counts, and the axes of a leaf's last dimensions.
RULES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"embed/embedding", ("tensor", "fsdp")),
    (r"positions/embedding", (None, "fsdp")),
    (r"head/kernel", ("fsdp", "tensor")),
    (_SPREADS + _KERNEL, ("fsdp", "tensor")),
    (_GATHERS + _KERNEL, ("tensor", "fsdp")),
    (_SPREADS + "lora_a", ("fsdp", None)),
    (_SPREADS + "lora_b", (None, "tensor")),
    (_GATHERS + "lora_a", ("tensor", None)),
    (_GATHERS + "lora_b", (None, "fsdp")),
    (_SPREADS + r"(bias|kernel_scale|lora_bias|lora_magnitude|vera_b|ia3_out)", ("tensor",)),
    (_GATHERS + "ia3_in", ("tensor",)),
    (r"blocks/attn/prefix_[kv]", ("tensor", None)),
    (r"embed/lora_a", ("tensor", None)),
    # What is small, or is taken up whole by every device.
    (r"(blocks/.*|norm)/(scale|bias|\w+_scale|lora_\w+|vera_\w+|ia3_\w+)|embed/lora_\w+|score/kernel", ()),
    (r"blocks/(attn|mlp)_adapter/.*|(prompt|prefix|vera|matcher)/.*|prefix_used", ()),
    (r".*_(chosen|index)", ()),
)


def make_mesh(sizes: Sequence[str], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of "data=2", "fsdp=4", "tensor=2" over those devices, or those there are; an axis not named has one.

    Raises UserError for an axis there is not, one named twice, a size that is no number, and a mesh that is not all
    devices.
    """
    shape, found = mesh_shape(sizes), jax.devices() if devices is None else devices
    if math.prod(shape) != len(found):
        raise UserError(
            f"mesh {' '.join(sizes)} is of {math.prod(shape)} devices, and there are {len(found)}: the sizes multiply "
            "to all devices (XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight of a CPU)"
        )
    # Not `jax.make_mesh`, which refuses to split an axis of a TPU's torus between two of the mesh.
    placed_devices = create_device_mesh(shape, found, allow_split_physical_axes=True)
    return Mesh(placed_devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Sequence[str]) -> tuple[int, ...]:
    """How many devices each of AXES has; raises UserError as `make_mesh` does."""
    found: dict[str, int] = {}
    for each in sizes:
        name, _, size = each.partition("=")
        one_of("axis of the mesh", name, AXES)
        if name in found or not re.fullmatch(r"[1-9]\d{0,5}", size):
            raise UserError(f"mesh {' '.join(sizes)}: say each axis once, with its devices, such as {name}=2")
        found[name] = int(size)
    return tuple(found.get(axis, 1) for axis in AXES)


@contextlib.contextmanager
def over(sizes: Sequence[str]) -> Iterator[None]:
    """What is inside runs over the mesh of those sizes, as `make_mesh` takes them; without any as it is."""
    if not sizes:
        yield
        return
    with jax.set_mesh(make_mesh(sizes)):
        yield


def spec(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh, config: ModelConfig) -> PartitionSpec:
    """How a parameter is laid out; what `tensor` would cut within a head is whole.

    Raises UserError for a parameter that no rule covers.
    """
    axes, name = _rule(path)
    if axes is None:
        raise UserError(f"parameter {path!r}: no rule says how it lies on a mesh; they stand in model/sharding.py")
    in_heads = re.match(r"blocks/attn/([qkvo])/", name)
    heads = config.num_kv_heads if in_heads and in_heads[1] in "kv" else config.num_heads
    if in_heads and heads % mesh.shape["tensor"]:
        axes = tuple(None if axis == "tensor" else axis for axis in axes)
    return _fitting((*(None,) * (len(shape) - len(axes)), *axes), shape, mesh.shape)


def _rule(path: str) -> tuple[tuple[Axis, ...] | None, str]:
    """(the axes that the first rule for a path gives, the path without its layers)."""
    parsed = block_path(path)
    name = f"blocks/{parsed[1]}" if parsed else path
    return next((axes for pattern, axes in RULES if re.fullmatch(pattern, name)), None), name


def layout(config: ModelConfig) -> Callable[[str, tuple[int, ...]], NamedSharding] | None:
    """Where a parameter of that path and shape goes; None without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:  # may be asked while a function is traced, the other may not
        return None
    mesh = jax.sharding.get_mesh()
    return lambda path, shape: NamedSharding(mesh, spec(path, shape, mesh, config))


def placed(config: ModelConfig, params: Mapping[str, Any]) -> Params:
    """The parameters, each device with its part of them; as they are without a mesh.

    They may be arrays of any kind that every process has whole. What no rule covers, and lies on the mesh already, is
    another model's (a teacher's) and stays there. Raises UserError as `spec` does.
    """
    goes = layout(config)
    if goes is None:
        return dict(params)
    out: Params = {}
    mesh = jax.sharding.get_mesh()
    for path, leaf in params.items():
        lies = getattr(leaf, "sharding", None)
        if _rule(path)[0] is None and isinstance(lies, NamedSharding) and lies.mesh == mesh:
            out[path] = leaf
            continue
        where = goes(path, leaf.shape)
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == where.device_set:
            out[path] = jax.device_put(leaf, where)
            continue
        out[path] = _laid(leaf, where)
    return out


def over_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch that every process has whole, each device with its rows of it; as it is without a mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return dict(batch)
    return {name: _laid(array, NamedSharding(mesh, fitted((ROWS,), array.shape))) for name, array in batch.items()}


def fitted(axes: Sequence[Axis], shape: Sequence[int]) -> PartitionSpec:
    """How an array of that shape lies over axes of its first dimensions; what the mesh does not divide is whole."""
    whole = (None,) * (len(shape) - len(axes))
    return _fitting((*axes, *whole), shape, jax.sharding.get_abstract_mesh().shape)


def _laid(array: Any, where: NamedSharding) -> jax.Array:
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])


def constrain(x: jax.Array, *axes: Axis) -> jax.Array:
    """The same array, laid out over these axes of the mesh; as it is without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitted(axes, x.shape))


def spread(axis: Axis) -> int:
    """Over how many devices a dimension of that axis, or of those axes, is spread; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (axis,) if isinstance(axis, str) else axis or ()
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in names)


def platform() -> str:
    """What the program that is being traced is for: "cpu", "gpu" or "tpu", on this machine or planned for another."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _fitting(axes: Sequence[Axis], shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """Axes that do not divide their dimension leave it whole: of several, as many of the first as do."""
    out: list[Axis] = []
    for axis, size in zip(axes, shape, strict=True):
        kept: list[str] = []
        for name in (axis,) if isinstance(axis, str) else axis or ():
            if size % math.prod(sizes[each] for each in (*kept, name)):
                break
            kept.append(name)
        kept = [name for name in kept if sizes[name] > 1]
        out.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return PartitionSpec(*out)
