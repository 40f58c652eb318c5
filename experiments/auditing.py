"""The audit of models: what they inherited, by every probe that is asked for; related ones compared; cards told."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.evaluation.bias.rows import BiasRow, from_json, to_json, told
from limbeck.evaluation.bias.tables import bias_tables
from limbeck.evaluation.report import shown_table, terminal_table, write_report
from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.audit_probes import Kept, Probe, Unanswered, probes_of
from limbeck.experiments.data_auditing import audit_data, data_tables
from limbeck.experiments.machine import provenance
from limbeck.experiments.origins import lineage_at, related
from limbeck.experiments.rundir import stage
from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError
from limbeck.model.pretrained import add_to_card, load_pretrained
from limbeck.model.pretrained.card import Table
from limbeck.model.pretrained.lineage import Lineage


def run(config: AuditConfig, rundir: Path) -> int:
    """Audits models, or one set of data, whichever is named; exit status 0."""
    kinds = {is_model(path) for path in config.what}
    if not config.what or len(kinds) > 1 or (kinds == {False} and len(config.what) > 1):
        raise UserError("name the models to audit (folders with a config.json, or .bin files), or one set of data")
    return _audit_models(config, rundir) if kinds == {True} else audit_data(config, rundir)


def is_model(path: str) -> bool:
    """Whether a model lies there: a folder with a config.json, or llama2.c's .bin file."""
    return (Path(path) / "config.json").is_file() or Path(path).suffix == ".bin"


def _audit_models(config: AuditConfig, rundir: Path) -> int:
    probes = probes_of(config)  # all files are read before any model is: a mistake in one ends it at once
    paths = _named(config.what)
    lineages = {name: lineage_at(path) for name, path in paths.items()}
    edges = related(lineages)
    measured: dict[str, dict[str, Sequence[BiasRow]]] = {title: {} for title in probes}
    unmeasured: list[str] = []
    for name, path in paths.items():
        kept = _kept(config, path, rundir / f"{_slug(name)}.db")
        for title, probe in probes.items():
            try:
                found = stage(rundir, f"{_slug(name)}-{_slug(title)}", partial(_measured, probe, kept))
                measured[title][name] = from_json(found)
            except Unanswered as reason:
                unmeasured.append(f"{name}, {title}: not measured: {reason}")
    of_sets = {
        title: told(found, [edge for edge in edges if found.keys() >= set(edge)]) for title, found in measured.items()
    }
    rows, differences = (
        [{**each, "set": title} for title, found in of_sets.items() for each in found[part]]
        for part in ("rows", "differences")
    )
    of_data = stage(rundir, "data", lambda: [each._asdict() for each in data_tables(config)])
    caveats = {title: probe.caveats for title, probe in probes.items()}
    data = {
        "title": f"Limbeck: an audit of {', '.join(paths)}",
        **provenance(rundir, config.seed),
        "facts": _facts(lineages, edges),
        "bias": rows,
        "bias_differences": differences,
        "bias_caveats": caveats,
        **({"tables": of_data} if of_data else {}),
        "skipped": unmeasured + [line for probe in probes.values() for line in probe.left_out],
    }
    write_report(rundir, data)
    console = Console()
    if not console.is_terminal:
        console.width = 200  # so that every row is one line for the next program
    console.print(terminal_table(data), *map(shown_table, bias_tables(rows, differences, caveats)))
    for name, path in paths.items():
        own = [each for each in rows if each["model"] == name]
        changes = [each for each in differences if each["after"] == name]
        sections = {"data": [Table(**each) for each in of_data]} if of_data else {}
        for section in {probe.section for probe in probes.values()}:
            of = {title for title, probe in probes.items() if probe.section == section}
            parts = ([each for each in listed if each["set"] in of] for listed in (own, changes))
            sections[section] = bias_tables(*parts, caveats=caveats)
        card = add_to_card(path, sections)
        print(f"{name}: " + (f"told in {card}" if card else f"no card is written into {path}, which tells no lineage"))
    print(f"the report is {rundir / 'report.html'}")
    return 0


def _named(paths: Sequence[str]) -> dict[str, str]:
    """By what a reader would call each: the end of its path, as long as tells it from the others."""
    parts = {path: [part for part in Path(path).resolve().parts if part != "model"] for path in paths}
    if len(set(map(tuple, parts.values()))) < len(paths):
        raise UserError(f"{', '.join(paths)}: name each model once")
    length = 1
    while len({tuple(each[-length:]) for each in parts.values()}) < len(parts):
        length += 1
    return {"/".join(each[-length:]): path for path, each in parts.items()}


def _kept(config: AuditConfig, path: str, store: Path) -> Kept:
    model = load_pretrained(path, dtype=config.dtype or None)
    if model.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; put its tokenizer.json beside it")
    return Kept(Engine(model.config, model.params, model.tokenizer, config.batch_size, model.digest), store)


def _measured(probe: Probe, kept: Kept) -> list[dict[str, Any]]:
    return to_json(probe.measure(kept))


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title).strip("-").lower()


def _facts(lineages: Mapping[str, Lineage], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    facts = []
    for name, lineage in lineages.items():
        how = ", ".join(filter(None, (lineage[0].made, lineage[0].method)))
        facts.append([name, f"{how}; {lineage[0].parameters:,} parameters, {lineage[0].digest[:16]}"])
    if edges:
        facts.append(["compared", "; ".join(f"{before} with {after}" for before, after in edges)])
    return facts
