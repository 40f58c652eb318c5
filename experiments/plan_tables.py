"""Plans as a user reads them: meshes side by side, memory and collectives of the best, where parameters lie."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.evaluation.quantities import duration, quantity
from limbeck.experiments.planning import Estimate
from limbeck.experiments.program import Lying, Program
from limbeck.model.params import weights

_GIB = 2**30
_ON_CPU = " (as compiled for a CPU; `limbeck plan` compiles for a TPU)"
_WORDS = {
    "parameters": "parameters that train, in float32",
    "optimizer": "optimiser",
    "frozen": "frozen parameters",
    "gradients": "gradients",
    "best": "the best so far",
    "cache": "keys and values",
    "activations": "activations, and what comes and goes",
}


def headline(plan: Program) -> str:
    """What is planned, in a line."""
    sizes = [sum(weights(path, leaf.shape) for path, leaf in part.items()) for part in (plan.trainable, plan.frozen)]
    trains = f", of which {quantity(sizes[0])} train" if plan.trainable else ""
    return f"{plan.what}; {quantity(sum(sizes))} parameters{trains}"


def compared(found: Sequence[Estimate], plan: Program) -> Table:
    """A row for each mesh: memory, time, and what limits it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, side in (("mesh", "left"), ("remat", "left"), ("GiB a chip", "right"), ("", "left"), ("step", "right"),
                       ("tokens/s a chip", "right"), ("MFU", "right"), ("compute", "right"), ("memory", "right"),
                       ("links", "right"), ("limit", "left")):  # fmt: skip
        table.add_column(name, justify=side, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for each in found:
        fits = "fits" if each.fits else f"of {each.has / _GIB:.1f}"
        cells = [each.mesh, each.remat, f"{each.needs / _GIB:.1f}", fits]
        if each.cost and each.cost.seconds:
            rate = plan.tokens / each.cost.seconds / math.prod(each.shape)
            links = sum(each.cost.waiting_seconds.values())
            times = (each.cost.compute_seconds, each.cost.memory_seconds, links)
            cells += [_time(each.cost.seconds), f"{rate:,.0f}", f"{each.mfu or 0:.0%}", *map(_time, times)]
        else:
            cells += ["–"] * 6
        table.add_row(*map(Text, (*cells, each.limit)), style="" if each.fits else "dim")
    return table


def details(best: Estimate) -> Group:
    """Memory and collectives of one mesh."""
    parts: dict[str, float] = dict(best.parts)
    parts["activations"] = best.needs - sum(parts.values())
    memory = Table(title="memory of a chip", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    memory.add_column("what")
    memory.add_column("GiB", justify="right")
    for name, size in parts.items():
        if size:
            memory.add_row(_WORDS[name], f"{size / _GIB:.2f}")
    memory.add_section()
    memory.add_row(f"together, of {best.has / _GIB:.2f}", f"{best.needs / _GIB:.2f}")
    shown: list[RenderableType] = [memory]
    if best.cost and best.cost.collectives:
        shown.append(_collectives(best))
    shown.append(Text("times are bounds, by the compiler's estimates and the links' rates: nothing ran", style="dim"))
    notes = [f"{len(best.warnings)} arrays are gathered whole to be laid out anew"] if best.warnings else []
    if best.cost and best.cost.unknown_loops:
        notes.append(f"{len(best.cost.unknown_loops)} loops are counted once: how often they run is not known")
    return Group(*shown, *(Text(note, style="bold red") for note in notes))


def _collectives(best: Estimate) -> Table:
    assert best.cost is not None
    table = Table(title="collectives of a step", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("kind", "hidden", "times", "bytes a chip", "seconds"):
        table.add_column(name, justify="left" if name in ("kind", "hidden") else "right")
    groups: dict[tuple[str, bool], list[Any]] = {}
    for each in best.cost.collectives:
        groups.setdefault((each.kind, each.overlapped), []).append(each)
    for (kind, hidden), members in sorted(groups.items()):
        seconds = (best.cost.overlapped_seconds if hidden else best.cost.waiting_seconds).get(kind, 0.0)
        times, size = sum(each.count for each in members), sum(each.count * each.bytes for each in members)
        words = "behind compute" if hidden else "waited for"
        table.add_row(kind, words, f"{times:,.0f}", quantity(size, "B"), _time(seconds))
    return table


def parameters(rows: Sequence[Lying]) -> Table:
    """Every parameter: shape, type, how it lies, whether it trains, bytes of a device."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("parameter", "shape", "type", "lies over", "", "a device"):
        table.add_column(name, justify="right" if name in ("shape", "a device") else "left", no_wrap=True)
    for row in rows:
        axes = [axis if isinstance(axis, str) else "+".join(axis) if axis else "·" for axis in row.spec]
        words = "trains" if row.trains else "frozen"
        shape = " x ".join(map(str, row.shape)) or "1"
        table.add_row(row.path, shape, row.dtype, " x ".join(axes) or "·", words, quantity(row.nbytes, "B"))
    return table


def totals(parts: Mapping[str, float]) -> Table:
    """What a device holds, by kind; the activations are those of a program for a CPU."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="a device holds", title_justify="left")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    for name, size in parts.items():
        if size:
            table.add_row(_WORDS[name] + _ON_CPU * (name == "activations"), quantity(size, "B"))
    table.add_section()
    table.add_row("together", quantity(sum(parts.values()), "B"))
    return table


def show(*parts: RenderableType) -> None:
    """Prints, each row on a line of its own where another program reads."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    for part in parts:
        console.print(part)


def as_json(found: Sequence[Estimate]) -> Iterator[dict[str, Any]]:
    """Every figure of each estimate."""
    for each in found:
        record = each._asdict() | {"mesh": each.mesh, "fits": each.fits}
        if each.cost:
            spent = each.cost._asdict()
            spent |= {name: [part._asdict() for part in spent[name]] for name in ("collectives", "kernels")}
            record["cost"] = spent
        yield record


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds) if seconds >= 60 else quantity(seconds, "s")
