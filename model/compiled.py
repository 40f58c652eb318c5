"""What a program that XLA compiled would cost on a chip: time by parts, collectives, memory. Nothing is run.

`cost(compiled.as_text(), chip)` multiplies out the loops, which `compiled.cost_analysis()` does not: it counts a body
once, and its `optimal_seconds` is at times negative.
"""

import contextlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from limbeck.model.chips import Chip
from limbeck.model.collectives import Collective, collectives_of, link_seconds, named
from limbeck.model.hlo import executions, parse
from limbeck.model.hlo_cost import KERNEL, estimated, flops, traffic


class Kernel(NamedTuple):
    """A Pallas kernel: FLOPs and bytes of one execution if its author gave a CostEstimate, else None."""

    where: str
    count: int
    flops: float | None
    bytes: float | None


class Cost(NamedTuple):
    """What one run of a program costs one device; seconds are None where no chip is given or a rate is not known.

    `seconds` = max(compute, memory) + what collectives take that nothing hides, and no less than all of them on the
    links. `compute_seconds` are the compiler's cycles, or FLOPs over the peak rate where it wrote none (CPU), and the
    kernels' FLOPs over the peak or bytes over the bandwidth; `memory_seconds` bytes over the bandwidth. The two dicts
    hold seconds on the links by kind. A kernel without a CostEstimate counts no FLOPs and no compute: the caller adds
    them. `hbm_bytes` are those of its operands and results then. Bodies of `unknown_loops` are counted once.
    """

    seconds: float | None
    compute_seconds: float | None
    memory_seconds: float | None
    overlapped_seconds: dict[str, float]
    waiting_seconds: dict[str, float]
    flops: float
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]
    unknown_loops: tuple[str, ...]


def cost(text: str, chip: Chip | None = None) -> Cost:
    """What the program of `compiled.as_text()` costs each device of the mesh it is compiled for."""
    program = parse(text)
    runs, unknown = executions(program)
    total_flops = hbm = cycles = 0.0
    kernels, collectives = [], []
    for name, count in runs.items():
        computation = program.computations[name]
        for op in computation.ops.values():
            total_flops += count * flops(program, computation, op)
            hbm += count * traffic(program, computation, op)
            cycles += count * (estimated(op, "estimated_cycles") or 0.0)
            if op.opcode == "custom-call" and KERNEL in op.tail:
                known = estimated(op, "flops"), estimated(op, "bytes_accessed")
                kernels.append(Kernel(named(op) or name, count, *known))
        collectives += collectives_of(program, name, count)
    parts = (total_flops, hbm, tuple(collectives), tuple(kernels), unknown)
    if chip is None:
        return Cost(None, None, None, {}, {}, *parts)
    compute = total_flops / chip.flops_per_second
    if cycles and chip.clock_hz:
        compute = cycles / chip.clock_hz + sum(each.count * _kernel_seconds(each, chip) for each in kernels)
    memory = hbm / chip.hbm_bytes_per_second if chip.hbm_bytes_per_second else None
    if collectives and not chip.link_bytes_per_second:
        return Cost(None, compute, memory, {}, {}, *parts)
    overlapped, waiting, exposed = {}, {}, 0.0
    for each in collectives:
        seconds = each.count * link_seconds(each, chip, program.devices)
        into = overlapped if each.overlapped else waiting
        into[each.kind] = into.get(each.kind, 0.0) + seconds
        exposed += max(0.0, seconds - each.count * each.hidden / (chip.clock_hz or math.inf))
    on_links = sum(overlapped.values()) + sum(waiting.values())
    seconds = max(max(compute, memory or 0.0) + exposed, on_links)
    return Cost(seconds, compute, memory, overlapped, waiting, *parts)


def memory(compiled: Any) -> dict[str, float]:
    """Bytes a device of `compiled.memory_analysis()`; total = arguments + outputs + temporaries + program - aliased."""
    found = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    return parts | {"total": sum(parts.values()) - 2 * parts["aliased"]}


_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_OVER = (
    r"required for HLO temporaries \(([\d.]+)([KMGT]?)B?\) exceeds available HBM \(([\d.]+)([KMGT]?)B?\)",
    r"Used ([\d.]+)([KMGT]?)B? of ([\d.]+)([KMGT]?)B? hbm",
)


def used_of_limit(error_text: str) -> tuple[float, float] | None:
    """Bytes that a program needs and may use, from the TPU compiler's RESOURCE_EXHAUSTED; None for another error."""
    for pattern in _OVER:
        if found := re.search(pattern, error_text):
            return float(found[1]) * _UNIT[found[2]], float(found[3]) * _UNIT[found[4]]
    return None


def involuntary(stderr_text: str) -> list[str]:
    """XLA's warnings that it gathers a whole array to lay it out anew, one a line."""
    return [line for line in stderr_text.splitlines() if "involuntary full rematerialization" in line.lower()]


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Programs inside are compiled, whatever JAX's persistent cache holds, and are not put there.

    One for devices that are not there can be written to the cache and not read again, which JAX says in a warning; one
    that is read is not compiled, and so XLA warns of nothing.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX asks whether there is a cache once, and remembers
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


@contextlib.contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """A list that holds `involuntary` of what is inside, once it ends; all else goes on to stderr, then.

    What is inside is compiled `uncached`.
    XLA writes to the file descriptor and not to `sys.stderr`, so that is what is turned aside, into a file: a pipe
    would be full before Python may read it, and is as lost as a file if XLA aborts.
    """
    found: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with uncached(), tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield found
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            aside.seek(0)
            for line in aside.read().splitlines(keepends=True):
                taken = involuntary(line.decode(errors="replace"))
                found += taken
                if not taken:
                    os.write(2, line)


def _kernel_seconds(kernel: Kernel, chip: Chip) -> float:
    moving = (kernel.bytes or 0.0) / (chip.hbm_bytes_per_second or math.inf)
    return max((kernel.flops or 0.0) / chip.flops_per_second, moving)
