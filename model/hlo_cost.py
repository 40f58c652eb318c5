"""What one instruction of a compiled program does: multiplications, bytes of HBM, cycles by the compiler's estimate.

Products of matrices are `dot` on a CPU and `convolution` on a TPU, nearly all of them inside fusions. The TPU's
compiler writes `estimated_cycles` beside fusions and whatever else computes, not beside collectives, copies between
memories and Pallas kernels. Those (`tpu_custom_call`) carry a `cost_estimate` of FLOPs and bytes if their author gave
one.

A fusion takes the weights of all layers and reads those of one, or writes one slice of a large array in place: the
bytes are the slice's, as XLA's own analysis (HloCostAnalysis) has them. Padding to tiles is left out.
"""

import functools
import math
import re

import numpy as np

from limbeck.model.hlo import Computation, Op, Program, called, shapes, size

KERNEL = 'custom_call_target="tpu_custom_call"'
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand holds what is new of the result
# What moves no bytes: names for what is there, and what contains instructions that are counted themselves.
_STILL = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
_CHAIN = re.compile(r'custom_call_target="AsyncCollective(Start|Done)"')
_STILL_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGather\w+)"')


def estimated(op: Op, what: str) -> float | None:
    """A number that the compiler (`estimated_cycles`) or a kernel's author (`flops`) wrote beside an instruction."""
    found = re.search(rf'"{what}":"(-?\d+)"', op.tail)
    return float(found[1]) if found else None


def collective_in(program: Program, op: Op) -> tuple[Op | None, str]:
    """The collective that an instruction is or holds; "Start", "Step" or "Done" of a chain of fusions, or ""."""
    if op.opcode.removesuffix("-start") in COLLECTIVES:
        return op, ""
    if op.opcode not in ("fusion", "async-start"):
        return None, ""
    ops = program.computations[called(op)].ops.values()
    inner = next((each for each in ops if each.opcode in COLLECTIVES), None)
    if inner is None or "async_collective_fusion_config" not in inner.tail:
        return inner, ""
    part = next((found[1] for each in ops if (found := _CHAIN.search(each.tail))), "Step")
    return inner, part


def flops(program: Program, computation: Computation, op: Op) -> float:
    """FLOPs of the products of matrices in one execution of an instruction, those of fusions among them."""
    ops = computation.ops
    if op.opcode == "fusion":
        inner = program.computations[called(op)]
        return sum(flops(program, inner, each) for each in inner.ops.values())
    if op.opcode == "custom-call" and KERNEL in op.tail:
        return estimated(op, "flops") or 0.0
    if op.opcode not in ("dot", "convolution"):
        return 0.0
    result = shapes(op.type)[0][2]
    left, right = (shapes(ops[name].type)[0][2] for name in op.operands[:2])
    if op.opcode == "convolution":
        return _convolution(op.tail, left, right, result)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", op.tail)
    depth = math.prod(left[int(dim)] for dim in contracted[1].split(",")) if contracted else 1
    return 2.0 * math.prod(result) * depth


def _convolution(tail: str, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", tail)
    assert labels, f"a convolution of XLA without labels: {tail[:200]}"
    n_of, k_of, o_of = (
        dict(zip(label, dims, strict=True)) for label, dims in zip(labels.groups(), (left, right, result), strict=True)
    )
    window = re.search(r"window=\{([^}]*)\}", tail)
    said = dict(part.split("=") for part in window[1].split()) if window else {}

    def of(setting: str, axis: str, otherwise: str) -> int:
        # Padding is said as before_after, one pair an axis.
        return int(said[setting].split("x")[int(axis)].split("_")[0]) if setting in said else int(otherwise)

    places = 1
    for axis in (label for label in o_of if label.isdigit()):
        steps = of("stride", axis, "1"), of("lhs_dilate", axis, "1"), of("rhs_dilate", axis, "1")
        places *= _places(n_of[axis], k_of[axis], o_of[axis], *steps, of("pad", axis, "0"))
    return 2.0 * o_of["b"] * o_of["f"] * k_of["i"] * places


@functools.lru_cache(maxsize=1024)
def _places(n: int, kernel: int, out: int, stride: int, base: int, dilated: int, before: int) -> int:
    """How many pairs of an output and a tap meet an input and not padding: XLA tells batched products by padding."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * dilated - before
    return int(((at >= 0) & (at <= (n - 1) * base) & (at % base == 0)).sum())


def traffic(program: Program, computation: Computation, op: Op) -> float:
    """Bytes that one execution of an instruction reads from HBM and writes to it."""
    ops = computation.ops
    if op.opcode in _STILL or op.opcode.endswith("-done"):
        return 0.0
    if op.opcode == "custom-call" and (_STILL_CALLS.search(op.tail) or estimated(op, "bytes_accessed") is not None):
        return estimated(op, "bytes_accessed") or 0.0
    kinds = [ops[name].type for name in op.operands]
    if op.opcode == "fusion":
        inner = program.computations[called(op)]
        part = collective_in(program, op)[1]
        if part == "Done":
            return 0.0
        if part == "Start":
            return _in(kinds) + sum(n for n, hbm, _ in shapes(op.type)[len(kinds) :] if hbm)
        read = sum(_read(program, inner, _parameter(inner, at)) for at, kind in enumerate(kinds) if _in_hbm(kind))
        written = zip(_written(program, inner, inner.root), shapes(op.type), strict=True)
        return read + sum(n for n, (_, hbm, _) in written if hbm)
    if op.opcode in _SLICES:
        return size(op.type) * (_in_hbm(kinds[0]) + _in_hbm(op.type))
    if op.opcode in _IN_PLACE:
        update = kinds[_IN_PLACE[op.opcode]]
        return size(update) * (_in_hbm(update) + _in_hbm(op.type))
    # Begins a copy into another memory, of all or of a part: its type holds both sides and a flag.
    if op.opcode in ("copy-start", "slice-start"):
        sides = shapes(op.type)[:2]
        return min(n for n, _, _ in sides) * sum(hbm for _, hbm, _ in sides)
    result = [each for each in shapes(op.type) if each[2] or not op.opcode.endswith("-start")]
    # Other starts hold their operands beside their results, but for that of an all-reduce.
    result = result[len(kinds) :] if len(result) > len(kinds) and op.opcode.endswith("-start") else result
    return _in(kinds) + sum(n for n, hbm, _ in result if hbm)


def _read(program: Program, inner: Computation, name: str) -> float:
    """Bytes of a fusion's parameter, or of what is the same array, that the fusion looks at."""
    whole, read = size(inner.ops[name].type), 0.0
    for op in inner.ops.values():
        for at, operand in enumerate(op.operands):
            if operand != name:
                continue
            if op.opcode in _SLICES and at == 0:
                read += size(op.type)
            elif op.opcode == "bitcast":
                read += _read(program, inner, op.name)
            elif op.opcode == "fusion":
                nested = program.computations[called(op)]
                read += _read(program, nested, _parameter(nested, at))
            elif not (op.opcode in ("tuple", *COLLECTIVES) or (op.opcode in _IN_PLACE and at == 0)):
                return whole
    return min(read, whole)


def _parameter(inner: Computation, at: int) -> str:
    return next(op.name for op in inner.ops.values() if op.opcode == "parameter" and op.text == str(at))


def _written(program: Program, inner: Computation, root: Op) -> list[float]:
    """Bytes that each result of a fusion takes to write: what is only passed through takes none."""
    if root.opcode == "tuple":
        return [n for name in root.operands for n in _written(program, inner, inner.ops[name])]
    if root.opcode == "bitcast":
        return _written(program, inner, inner.ops[root.operands[0]])
    if root.opcode == "fusion":
        nested = program.computations[called(root)]
        return _written(program, nested, nested.root)
    if root.opcode in _IN_PLACE:
        return [size(inner.ops[root.operands[_IN_PLACE[root.opcode]]].type)]
    if root.opcode == "parameter" or root.opcode in COLLECTIVES:
        return [0.0 for _ in shapes(root.type)]
    return [n for n, _, _ in shapes(root.type)]


def _in(types: list[str]) -> float:
    return sum(n for each in types for n, hbm, _ in shapes(each) if hbm)


def _in_hbm(type_: str) -> bool:
    return any(hbm for _, hbm, _ in shapes(type_))
