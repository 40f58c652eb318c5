"""Where models come from: as a run writes it, and as a reader sees it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.markup import escape
from rich.tree import Tree

from limbeck.evaluation.energy import Meter, accelerators, footprint
from limbeck.experiments.rundir import commit, plain, versions
from limbeck.experiments.start import Past, Start
from limbeck.model.markdown import one_line
from limbeck.model.params import count, digest
from limbeck.model.pretrained import lineage_of, load_pretrained, stored_lineage
from limbeck.model.pretrained.lineage import Lineage, Made, Origin, ancestors, descended


def made_here(
    name: str,
    past: Past,
    config: Any,
    *,
    parameters: int,
    trained: int,
    method: str,
    cost: Mapping[str, Any],
) -> Lineage:
    """The lineage of a model that was trained in this run: distilled if it has a teacher, else tuned or pretrained."""
    roles = {role for role, _ in past.parents}
    made: Made = "distilled" if "teacher" in roles else "tuned" if "base" in roles else "pretrained"
    origin = Origin(
        name,
        made,
        parameters,
        method=", ".join(filter(None, (method, past.objective))),
        trained=trained,
        data=past.data,
        config={**plain(config), **past.teaching},
        cost=cost,
        commit=commit(),
        versions=versions(),
    )
    return descended(origin, past.parents)


def training_cost(meter: Meter, seconds: float, flops: float) -> dict[str, Any]:
    """What a training of so many seconds cost: see `energy.footprint`.

    The meter saw no more than the last start of a run that was killed and went on: then the whole is told at that
    start's rate, and as an estimate.
    """
    found: dict[str, Any] = {**footprint(meter, flops, accelerators=accelerators())}
    if jax.process_count() > 1:
        unknown = {"joules": None, "grams_co2e": None, "joules_source": "not known: a meter sees one host of several"}
        return {**found, **unknown, "seconds": seconds}
    if seconds <= 1.02 * meter.seconds:
        return {**found, "seconds": seconds}
    scaled = ("cpu_seconds", "joules", "grams_co2e")
    rates = {name: value * seconds / meter.seconds for name in scaled if (value := found[name]) is not None}
    source = f"estimate: at the rate of the last {meter.seconds:.3g} s ({found['joules_source']})"
    return {**found, **rates, "seconds": seconds, "joules_source": source}


def own_lineage(start: Start) -> Lineage:
    """The lineage of the model that a start was loaded from; of a new one, that it is new."""
    for role, lineage in start.past.parents:
        if role == "base":
            return lineage
    return (Origin("new", "initialised", count(start.params), digest(start.params)),)


def lineage_at(path: str | Path) -> Lineage:
    """The lineage of the model or adapter in a folder; of one that tells none, that it was found there.

    Raises UserError where there is no model.
    """
    return stored_lineage(path) or lineage_of(load_pretrained(path), path)


def related(lineages: Mapping[str, Lineage]) -> list[tuple[str, str]]:
    """(before, after) of models that are to be compared, by names: what one was made of, and its control.

    Each model with its nearest ancestors among those that are given; a student also with the model of its size that
    had no teacher and started where it did, or from nothing on data that the student read, too.
    """
    digests = {name: lineage[0].digest for name, lineage in lineages.items()}
    behind = {name: {each.digest for each in lineage[1:]} for name, lineage in lineages.items()}
    pairs = []
    for after in lineages:
        older = [name for name in lineages if digests[name] in behind[after]]
        nearest = [name for name in older if not any(digests[name] in behind[other] for other in older)]
        pairs += [(before, after) for before in nearest]
    for after, lineage in lineages.items():
        if _parents(lineage, "teacher"):
            pairs += [(name, after) for name in lineages if _is_control(lineages[name], lineage)]
    return list(dict.fromkeys(pairs))


def _is_control(one: Lineage, student: Lineage) -> bool:
    read, common = ({each.digest for each in lineage[0].data} for lineage in (student, one))
    started = _parents(student, "base")
    return (
        one[0].digest not in {each.digest for each in student}
        and one[0].parameters == student[0].parameters
        and one[0].made in ("pretrained", "tuned")
        and not _parents(one, "teacher")
        and _parents(one, "base") == started
        and (bool(started) or (bool(common) and common <= read))
    )


def _parents(lineage: Lineage, role: str) -> set[str]:
    return {parent.digest for parent in lineage[0].parents if parent.role == role}


def family_tree(lineage: Lineage) -> Tree:
    """A model and all that it was made of, as a terminal shows it."""
    tree = Tree(_told(lineage[0]))
    branches = [tree]
    for role, steps, origin in ancestors(lineage):
        del branches[steps:]
        branches.append(branches[-1].add(f"{role}: " + _told(origin)))
    return tree


def _told(origin: Origin) -> str:
    how = f"{origin.made}: {origin.method}" if origin.method else origin.made
    trained = f", {origin.trained:,} trained" if origin.trained else ""
    lines = [
        f"[bold]{escape(one_line(origin.name))}[/] ({escape(one_line(how))})",
        f"  {origin.digest[:16]}  {origin.parameters:,} parameters{trained}",
        *(f"  {each.digest[:16]}  {escape(one_line(each.name))}, {each.records:,} records" for each in origin.data),
    ]
    if origin.commit:
        lines.append(f"  code {escape(one_line(origin.commit))}")
    return "\n".join(lines)
