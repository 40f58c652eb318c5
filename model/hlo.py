"""The text of a compiled XLA program, as far as its cost needs it: its instructions and how often they run.

`compiled.as_text()` is read line by line: a computation opens with `%name (...) -> ... {`, an instruction is
`%name = type opcode(%operands), attributes`, at times over several lines, and those of a computation are in the order
in which they run. What was seen of it, by libtpu 0.0.42 for v5e, v5p and v6e and by XLA for CPUs:

- A `while` says `known_trip_count` on a CPU and nothing on a TPU, where its condition does: the comparison of a counter
  with a constant, at times inside a fusion, or with what the loop carries along unchanged. Both are read; the counter's
  start and step are looked up, and a loop that ends for any other reason has no count.
- `S(1)` in a layout is the TPU's memory on the chip, `S(2)`, `S(4)` and `S(6)` are flags and scalars: none is HBM.
"""

import math
import re
from typing import NamedTuple

_OPENS = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"  (ROOT )?%?([\w.\-]+) =")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"\b(pred|token|opaque|[a-z]+\d+\w*)\[([\d,<=]*)\](\{[^}]*\})?")


class Op(NamedTuple):
    """One instruction: `text` is what stands in its brackets, `tail` what follows them."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    text: str
    tail: str
    root: bool


class Computation(NamedTuple):
    """Instructions by name, in the order in which they run, and the one whose value is the result."""

    ops: dict[str, Op]
    root: Op


class Program(NamedTuple):
    """All computations of a program by name, the one it starts with, and over how many devices it runs."""

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """The program whose `compiled.as_text()` this is."""
    found: dict[str, Computation] = {}
    entry = ""
    name, lines = "", []
    for line in text.splitlines():
        if not name:
            if opens := _OPENS.match(line):
                name, lines = opens[1], []
                entry = name if line.startswith("ENTRY") else entry
        elif line == "}" or line.startswith("}, execution_thread="):  # the latter is a chip's sparse core's
            ops = {op.name: op for op in map(_op, lines)}
            found[name] = Computation(ops, next(op for op in ops.values() if op.root))
            name = ""
        elif _LINE.match(line):
            lines.append(line)
        else:
            # What a Pallas kernel says of itself has lines of its own, in the middle of an instruction.
            lines[-1] += line
    head = text[: text.find("\n")]
    devices = _number(r"num_partitions=(\d+)", head, 1) * _number(r"replica_count=(\d+)", head, 1)
    return Program(found, entry, devices)


def called(op: Op, attribute: str = "calls") -> str:
    """The computation that an instruction names there, or an empty string."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", op.tail)
    return found[1] if found else ""


def shapes(type_: str) -> list[tuple[float, bool, tuple[int, ...]]]:
    """Of each array of a type: its bytes, without padding, whether it lies in HBM, and its dimensions."""
    out = []
    for kind, sizes, layout in _SHAPE.findall(type_):
        dims = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        bits = 8 if kind == "pred" else _number(r"[a-z]+(\d+)", kind, 0)
        out.append((math.prod(dims) * bits / 8, "S(" not in layout, dims))
    return out


def size(type_: str) -> float:
    """Bytes of a type, wherever it lies."""
    return sum(each[0] for each in shapes(type_))


def executions(program: Program) -> tuple[dict[str, int], tuple[str, ...]]:
    """How often each computation that is no part of a fusion runs, and the bodies of loops nobody knows the count of.

    Those are counted once. Of a conditional every branch is counted, as if all of them ran.
    """
    runs: dict[str, int] = {}
    unknown: list[str] = []

    def visit(name: str, times: int) -> None:
        runs[name] = runs.get(name, 0) + times
        for op in program.computations[name].ops.values():
            if op.opcode == "while":
                count = trips(program, name, op)
                if count is None:
                    unknown.append(called(op, "body"))
                visit(called(op, "body"), times * (1 if count is None else count))
                visit(called(op, "condition"), times * (1 if count is None else count + 1))
            elif op.opcode == "call":
                visit(called(op, "to_apply"), times)
            elif op.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", op.tail)
                two = f"{called(op, 'true_computation')} {called(op, 'false_computation')}"
                for branch in re.findall(r"[\w.\-]+", branches[1] if branches else two):
                    visit(branch, times)

    visit(program.entry, 1)
    return runs, tuple(dict.fromkeys(unknown))


def trips(program: Program, where: str, loop: Op) -> int | None:
    """How often the body of a `while` of the computation `where` runs; None where the text does not say."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.tail):
        return int(known[1])
    condition, body = called(loop, "condition"), program.computations[called(loop, "body")]
    test, bound = program.computations[condition].root, None
    if test.opcode == "fusion":
        bound = [_linear(program, condition, name) for name in test.operands]
        condition = called(test)
        test = program.computations[condition].root
    direction = re.search(r"direction=(\w+)", test.tail)
    if test.opcode != "compare" or not direction or body.root.opcode != "tuple":
        return None
    start = program.computations[where].ops[loop.operands[0]]
    ends = [_linear(program, condition, name, bound) for name in test.operands]
    fixed = [_fixed(program, where, start, loop, end) for end in ends]
    word = direction[1]
    if fixed[0] is not None:
        ends, fixed, word = ends[::-1], fixed[::-1], word.translate(str.maketrans("LG", "GL"))
    counter, limit = ends[0], fixed[1]
    if counter is None or counter[0] is None or limit is None or start.opcode != "tuple":
        return None
    first = _linear(program, where, start.operands[counter[0]])
    step = _linear(program, called(loop, "body"), body.root.operands[counter[0]])
    if first is None or first[0] is not None or step is None or step[0] != counter[0] or not step[1]:
        return None
    sign = {"LT": 1, "LE": 1, "NE": 1 if step[1] > 0 else -1}.get(word, -1)
    if word == "EQ" or sign * step[1] < 0:
        return None
    distance = sign * (limit - first[1] - counter[1]) + (word in ("LE", "GE"))
    return max(0, -(-distance // abs(step[1])))


# A value as a loop sees it: which element of the tuple that the loop carries, or None for a constant, plus a number.
_Value = tuple[int | None, int]


def _linear(program: Program, where: str, name: str, bound: list[_Value | None] | None = None) -> _Value | None:
    op = program.computations[where].ops[name]
    inside = [_linear(program, where, each, bound) for each in op.operands] if op.opcode in _FOLLOWED else []
    if op.opcode == "constant":
        number = re.match(r"-?\d+$", op.text)
        return (None, int(number[0])) if number else None
    if op.opcode == "parameter" and bound is not None:
        return bound[int(op.text)]
    if op.opcode == "get-tuple-element":
        carried = program.computations[where].ops[op.operands[0]].opcode == "parameter"
        return (_number(r"index=(\d+)", op.tail, 0), 0) if carried else None
    if op.opcode == "fusion":
        return _linear(program, called(op), program.computations[called(op)].root.name, inside)
    if len(inside) == 1:
        return inside[0]
    if len(inside) == 2 and inside[0] and inside[1]:
        (one, a), (two, b) = inside[0], inside[1]
        if op.opcode == "add" and None in (one, two):
            return (two if one is None else one, a + b)
        if op.opcode == "subtract" and two is None:
            return (one, a - b)
    return None


_FOLLOWED = ("copy", "bitcast", "convert", "copy-start", "copy-done", "fusion", "add", "subtract")


def _fixed(program: Program, where: str, start: Op, loop: Op, value: _Value | None) -> int | None:
    """The number that a value is throughout the loop, whether constant or carried along unchanged."""
    if value is None or value[0] is None:
        return value[1] if value else None
    index, body = value[0], program.computations[called(loop, "body")]
    if start.opcode != "tuple" or _linear(program, called(loop, "body"), body.root.operands[index]) != (index, 0):
        return None
    first = _linear(program, where, start.operands[index])
    return first[1] + value[1] if first and first[0] is None else None


def _op(line: str) -> Op:
    parts = _LINE.match(line)
    found = _OPCODE.search(line, parts.end()) if parts else None
    assert parts and found, f"an instruction of XLA in another spelling: {line[:200]}"
    start = end = found.end()
    depth = 1
    while depth:
        close = line.index(")", end)
        depth += line.count("(", end, close) - 1
        end = close + 1
    inside, tail = line[start : end - 1], line[end:]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Op(parts[2], found[1], line[parts.end() : found.start()], operands, inside, tail, bool(parts[1]))


def _number(pattern: str, text: str, otherwise: int) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else otherwise
