"""The collectives of a compiled program: what they are, how many bytes, how often, and what is computed meanwhile.

How they are written, in programs for v5e, v5p and v6e (libtpu 0.0.42) and for CPUs:

- plain `all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all`, `collective-permute`: nothing runs meanwhile;
- an `all-reduce` of zeros into which each device put its slice, which is an all-gather run by other means: it is told
  as what it is, and timed as what it is run as;
- a fusion of an all-reduce and the slice of its result that this device keeps: a reduce-scatter;
- pairs such as `collective-permute-start` and `-done`, or `async-start` around a computation: what lies between runs
  meanwhile;
- TPU: a fusion with the custom call `AsyncCollectiveStart`, then any number of products that carry the collective
  along (`async_collective_fusion`), then one with `AsyncCollectiveDone`. All of them repeat the collective's line.

Groups are `{{0,1},{2,3}}`, `[16,4]<=[64]` or `mesh['a'=16,'b'=4] {'b'}`; a permutation has `source_target_pairs`.

Time on the links, of g devices and b bytes (`Collective.bytes`) over rings in all directions of the torus, without
latency (Thakur et al. 2005, doi 10.1177/1094342005051521; Chan et al. 2007, doi 10.1002/cpe.1206): b (g-1)/g / rate for
all-gather and reduce-scatter, twice that for all-reduce, at least b (g-1)/g / rate for all-to-all; b / (rate of one
link) for a permutation among neighbours. A group of g of n devices on a torus of k axes is taken to have the links of
ceil(k log g / log n) axes, and every axis to be a ring.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from limbeck.model.chips import Chip
from limbeck.model.hlo import Computation, Op, Program, called, size
from limbeck.model.hlo_cost import KERNEL, collective_in, estimated

_COMPUTES = ("fusion", "convolution", "dot", "while", "call", "reduce", "sort")


class Collective(NamedTuple):
    """One collective instruction of a program, as one device sees it.

    `bytes` of one execution: the result of an all-gather, the operands of all others. `count` executions in a run of
    the program. `run_as` is `kind` but for an all-gather that is run as an all-reduce. `hidden` cycles are computed
    between its start and its end; `overlapped` says whether anything is. `where` is the op_name or the computation.
    """

    kind: str
    bytes: float
    count: int
    group_size: int
    overlapped: bool
    where: str
    run_as: str
    hidden: float


def link_seconds(collective: Collective, chip: Chip, devices: int) -> float:
    """Seconds of one execution on the links of a chip with a known rate, among `devices`, by the module's formulas."""
    g, rate = collective.group_size, chip.link_bytes_per_second or math.inf
    if collective.kind == "collective-permute":
        return collective.bytes / (rate / (2 * chip.axes))
    if g == 1:
        return 0.0
    used = min(chip.axes, math.ceil(chip.axes * math.log(g) / math.log(max(devices, g)) - 1e-9))
    ring = collective.bytes * (g - 1) / g / (rate * used / chip.axes)
    return 2 * ring if collective.run_as == "all-reduce" else ring


def collectives_of(program: Program, where: str, count: int) -> Iterator[Collective]:
    """The collectives of a computation that runs `count` times and is no part of a fusion."""
    computation = program.computations[where]
    for op in computation.ops.values():
        inner, part = collective_in(program, op)
        if inner is None or part in ("Step", "Done"):
            continue
        inside = computation if inner is op else program.computations[called(op)]
        kind = run_as = inner.opcode.removesuffix("-start")
        payload = sum(size(inside.ops[name].type) for name in inner.operands)
        group = _group_size(inner, program.devices)
        if kind == "all-gather":
            payload *= group
        elif kind == "all-reduce" and inner is not op and any(o.opcode == "dynamic-slice" for o in inside.ops.values()):
            kind = run_as = "reduce-scatter"
        elif kind == "all-reduce" and all(_one_slice(program, inside, name, group) for name in inner.operands):
            kind = "all-gather"
        overlapped, hidden = _meanwhile(program, computation, op, inner, part)
        yield Collective(kind, payload, count, group, overlapped, named(inner) or where, run_as, hidden)


def named(op: Op) -> str:
    """The op_name that JAX gave an instruction, or an empty string."""
    found = re.search(r'op_name="([^"]*)"', op.tail)
    return found[1] if found else ""


def _meanwhile(program: Program, computation: Computation, op: Op, inner: Op, part: str) -> tuple[bool, float]:
    """Whether anything is computed between the start of a collective and its end, and how many cycles."""
    if not (part or op.opcode.endswith("-start")):
        return False, 0.0
    chain = re.search(r'chain_id="\d+"', inner.tail) or re.search(r"channel_id=\d+,", inner.tail)
    anything, cycles, rest = False, 0.0, iter(computation.ops.values())
    for each in rest:
        if each is op:
            break
    for each in rest:
        if part:
            other, its = collective_in(program, each)
            if other and its == "Done" and chain and chain[0] in other.tail:
                break
        elif each.opcode.endswith("-done") and op.name in each.operands:
            break
        spent = estimated(each, "estimated_cycles") or 0.0
        idle = collective_in(program, each)[1] in ("Start", "Done")
        kernel = each.opcode == "custom-call" and KERNEL in each.tail
        anything |= bool(spent) or kernel or (each.opcode in _COMPUTES and not idle)
        cycles += spent
    return anything, cycles


def _one_slice(program: Program, inside: Computation, name: str, group: int) -> bool:
    """Whether an array is zeros but for one part in `group` of it, which this device wrote."""
    op, outer = inside.ops[name], inside
    while op.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        op = inside.ops[op.operands[0]]
    given = op.operands
    if op.opcode == "fusion":
        inside = program.computations[called(op)]
        op = inside.root
        while op.opcode == "bitcast":
            op = inside.ops[op.operands[0]]
    if op.opcode != "dynamic-update-slice":
        return False
    base, part = (inside.ops[each] for each in op.operands[:2])
    if base.opcode == "parameter" and inside is not outer:
        inside, base = outer, outer.ops[given[int(base.text)]]
    return _zeros(inside, base) and size(part.type) * group == size(op.type)


def _zeros(computation: Computation, op: Op) -> bool:
    if op.opcode == "broadcast":
        op = computation.ops[op.operands[0]]
    return op.opcode == "constant" and op.text in ("0", "-0", "false")


def _group_size(op: Op, devices: int) -> int:
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", op.tail):
        return len(set(re.findall(r"\d+", pairs[1])))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", op.tail):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        # A part of an axis is said as 'a':(2)4: after 2 devices, 4.
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if first := re.search(r"replica_groups=\{\{([\d,]+)\}", op.tail):
        return first[1].count(",") + 1
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", op.tail)
    return int(tiled[1]) if tiled else devices
