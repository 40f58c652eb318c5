"""`limbeck plan`: what a program costs on a slice of TPUs that is not there, by the TPU's own compiler.

A mesh and a remat policy are compiled for the slice; what the compiler reports is read: memory, time, collectives.
Where no mesh is said, those that divide the work are ranked by arithmetic on the back of an envelope (`rough`), and the
best few of them are compiled.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from limbeck.experiments.program import Program, bytes_of
from limbeck.model.chips import Chip, chip_of
from limbeck.model.compiled import Cost, captured_warnings, cost, memory, used_of_limit
from limbeck.model.config import Remat
from limbeck.model.errors import UserError
from limbeck.model.progress import progress
from limbeck.model.sharding import AXES, make_mesh

Shape = tuple[int, ...]
_KEPT = {"none": 24.0, "dots": 9.0, "full": 1.0}  # bytes kept of a layer, in activations of [tokens, width]; rough
_AGAIN = {"none": 1.0, "dots": 1.05, "full": 4 / 3}  # FLOPs, of a step that computes nothing again


class Estimate(NamedTuple):
    """What the compiler says of a program on one mesh.

    `parts` are bytes of one device that the shapes alone say (`bytes_of`), `compiled` those of the compiler, empty
    where it refused; `needs` is what the device must hold, `has` what it has. `mfu` is the model's FLOPs over what the
    chips' arithmetic could do in `cost.seconds`, and so a bound. `limit` says what takes longest.
    """

    shape: Shape
    remat: Remat
    parts: dict[str, int]
    compiled: dict[str, float]
    needs: float
    has: float
    cost: Cost | None
    mfu: float | None
    limit: str
    warnings: tuple[str, ...]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the compiler took the program, and a device has the memory."""
        return self.cost is not None and self.needs <= self.has

    @property
    def mesh(self) -> str:
        """The mesh as a command takes it."""
        return " ".join(f"{axis}={size}" for axis, size in zip(AXES, self.shape, strict=True) if size > 1) or "data=1"


def estimate(plan: Program, remat: Remat, sizes: Sequence[str], devices: Sequence[Any]) -> Estimate:
    """Compiles a program for a mesh of those devices, and reads what came of it.

    Raises UserError for a mesh that is not of these devices, or does not divide the rows.
    """
    mesh = make_mesh(sizes, devices)
    shape = tuple(mesh.shape.values())
    check_rows(plan, shape)
    chip, parts, began = chip_of(devices[0].device_kind), bytes_of(plan, mesh), time.perf_counter()
    found: dict[str, float] = {}
    spent: Cost | None = None
    limit, best = "", parts.get("best", 0)  # which is no argument of the step
    has = chip.hbm_bytes or math.inf
    with captured_warnings() as warnings:
        try:
            compiled = plan.lower(mesh).compile()
        except jax.errors.JaxRuntimeError as error:
            told = used_of_limit(str(error))
            if told is None:
                raise
            needs = told[0] + best
            limit = f"memory: {largest(parts, needs)}"
        else:
            found = memory(compiled)
            kernels = plan.attention / len(devices) / chip.flops_per_second
            spent = with_kernels(cost(compiled.as_text() or "", chip), kernels)
            needs = found["total"] + best
            limit = f"memory: {largest(parts, needs)}" if needs > has else slowest(spent)
    seconds = spent.seconds if spent else None
    mfu = plan.flops / len(devices) / chip.flops_per_second / seconds if seconds else None
    took = time.perf_counter() - began
    return Estimate(shape, remat, parts, found, needs, has, spent, mfu, limit, tuple(warnings), took)


def held(plan: Program, mesh: Mesh) -> dict[str, float]:
    """Bytes of a device by kind, on devices that are there: what a program keeps, and its activations as compiled."""
    compiled, parts = plan.lower(mesh).compile(), bytes_of(plan, mesh)
    needs = memory(compiled)["total"] + parts.get("best", 0)
    return {**parts, "activations": needs - sum(parts.values())}


def with_kernels(spent: Cost, seconds: float) -> Cost:
    """The same cost with so many seconds for kernels, if it has some that say nothing of their own."""
    if spent.seconds is None or spent.compute_seconds is None or all(each.flops is not None for each in spent.kernels):
        return spent
    return spent._replace(seconds=spent.seconds + seconds, compute_seconds=spent.compute_seconds + seconds)


def check_rows(plan: Program, shape: Shape) -> None:
    """Raises UserError for a mesh that does not divide the rows of the program."""
    spread = shape[0] * shape[1]
    if plan.rows % spread:
        raise UserError(
            f"{plan.rows} rows at a time cannot be spread over {spread} devices of data x fsdp: make the batch a "
            f"multiple of {spread}, or give tensor more"
        )


def largest(parts: dict[str, int], needs: float) -> str:
    """What of a program takes most memory: one of its parts, or the activations and all else that comes and goes."""
    known = {name: float(size) for name, size in parts.items()}
    known["activations"] = needs - sum(known.values())
    return max(known, key=lambda name: known[name])


def slowest(spent: Cost) -> str:
    """What takes longest: compute, memory, or the kind of collective that is waited for most."""
    waiting = sum(spent.waiting_seconds.values())
    kinds = spent.waiting_seconds or spent.overlapped_seconds
    links = max(kinds, key=lambda kind: kinds[kind]) if kinds else "links"
    times = {"compute": spent.compute_seconds or 0.0, "memory bandwidth": spent.memory_seconds or 0.0}
    hidden = sum(spent.overlapped_seconds.values())
    return max({**times, links: max(waiting, hidden)}.items(), key=lambda item: item[1])[0]


def shapes_of(plan: Program, devices: int) -> Iterator[Shape]:
    """The meshes that divide the devices, the rows, and what `tensor` cuts."""
    model = plan.model
    for tensor in _divisors(devices):
        if math.gcd(model.num_kv_heads, model.mlp_dim) % tensor:
            continue
        for fsdp in _divisors(devices // tensor):
            if plan.rows % (devices // tensor) == 0:
                yield devices // tensor // fsdp, fsdp, tensor


def rough(plan: Program, shape: Shape, remat: Remat, chip: Chip) -> tuple[float, float]:
    """(seconds, bytes a device) of a program on a mesh, by arithmetic alone: good for an order, not for a figure.

    Weights and their gradients cross the links of `fsdp` and `data`, activations those of `tensor`, four times a layer
    forward and as often backward.
    """
    data, fsdp, tensor = shape
    model, devices = plan.model, math.prod(shape)
    mesh = AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    parts = bytes_of(plan, mesh)
    weights = 2.0 * sum(math.prod(leaf.shape) for leaf in {**plan.trainable, **plan.frozen}.values()) / tensor
    moving = 2.0 * sum(math.prod(leaf.shape) for leaf in plan.trainable.values()) / tensor
    tokens = plan.tokens / (data * fsdp)
    passes = 3 if plan.trainable else 1
    bytes_moved = (passes - 1) * weights * (fsdp > 1) + moving * (fsdp > 1) + 2 * moving / fsdp * (data > 1)
    bytes_moved += passes * 4 * model.depth * tokens * model.width * 2 * (1 - 1 / tensor)
    links = bytes_moved / (chip.link_bytes_per_second or math.inf)
    read = (parts["frozen"] + parts.get("cache", 0)) / (chip.hbm_bytes_per_second or math.inf)
    compute = plan.flops * (_AGAIN[remat] if plan.trainable else 1) / devices / chip.flops_per_second
    kept = _KEPT[remat] * tokens * model.width * 2 * model.depth * (plan.trainable != {})
    return max(compute, read) + links, sum(parts.values()) + kept


def candidates(
    plan_of: Callable[[Remat], Program], devices: int, chip: Chip, remats: Sequence[Remat]
) -> list[tuple[Shape, Remat]]:
    """Meshes and policies in the order in which they are worth compiling: what seems to fit first, then by time.

    Raises UserError where no mesh divides the work.
    """
    ranked = []
    for remat in remats:
        plan = plan_of(remat)
        for shape in shapes_of(plan, devices):
            seconds, size = rough(plan, shape, remat, chip)
            over = max(0.0, size - 0.9 * (chip.hbm_bytes or math.inf))
            ranked.append((over, seconds, shape, remat))
    if not ranked:
        plan = plan_of(remats[0])
        raise UserError(
            f"no mesh of {devices} devices divides {plan.rows} rows and {plan.model.num_kv_heads} key-value heads: "
            f"make the batch a multiple of {devices}"
        )
    return [(shape, remat) for _, _, shape, remat in sorted(ranked, key=lambda each: each[:3])]


def search(
    plan_of: Callable[[Remat], Program], devices: Sequence[Any], remats: Sequence[Remat], tries: int
) -> list[Estimate]:
    """The estimates of the most promising meshes and policies, the fastest that fits first."""
    chip = chip_of(devices[0].device_kind)
    found = []
    chosen = candidates(plan_of, len(devices), chip, remats)[:tries]
    with progress("compile", len(chosen), "program") as advance:
        for shape, remat in chosen:
            sizes = [f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True)]
            found.append(estimate(plan_of(remat), remat, sizes, devices))
            advance(1)
    return sorted(found, key=lambda each: (not each.fits, _seconds(each)))


def _seconds(each: Estimate) -> float:
    return math.inf if each.cost is None or each.cost.seconds is None else each.cost.seconds


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
