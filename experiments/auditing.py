"""The audit of models: what they inherited, by every probe that is asked for; related ones compared; cards told."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from limbeck.evaluation.bias.rows import BiasRow, compare, from_json, incomparable, to_json, told
from limbeck.evaluation.bias.tables import bias_tables
from limbeck.evaluation.report import shown_table, terminal_table, write_report
from limbeck.experiments.audit_config import AuditConfig, names_of
from limbeck.experiments.audit_probes import Kept, Probe, Unanswered, probes_of
from limbeck.experiments.data_auditing import audit_data, data_tables
from limbeck.experiments.machine import provenance
from limbeck.experiments.origins import lineage_at, related
from limbeck.experiments.rundir import stage
from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError
from limbeck.model.params import digest
from limbeck.model.pretrained import add_to_card, lineage_of, load_pretrained
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


class Measured(NamedTuple):
    """The rows of each set of items (by its title) and model, and a line for each set that a model refused."""

    rows: dict[str, dict[str, Sequence[BiasRow]]]
    lineages: dict[str, Lineage]
    tokenizers: dict[str, str]  # digest of each model's
    refused: list[str]


def _audit_models(config: AuditConfig, rundir: Path) -> int:
    if config.held_out and not config.training:
        raise UserError(f"held_out={config.held_out!r} is what training texts are held against: name training, too")
    probes = probes_of(config)  # all files are read before any model is: a mistake in one ends it at once
    paths = dict(zip(names_of(config.what), config.what, strict=True))
    measured = _measured(config, rundir, probes, paths)
    lineages, edges = measured.lineages, related(measured.lineages)
    rows = [{**row, "set": title} for title, found in measured.rows.items() for row in told(found)]
    differences, apart = _differences(measured, edges)
    tables = data_tables(config)
    caveats = {title: probe.caveats for title, probe in probes.items()}
    left_out = measured.refused + apart
    data = {
        "title": f"Limbeck: an audit of {', '.join(paths)}",
        **provenance(rundir, config.seed),
        "facts": _facts(lineages, edges, config.dtype),
        "bias": rows,
        "bias_differences": differences,
        "bias_caveats": caveats,
        **({"tables": [each._asdict() for found in tables for each in found.tables]} if tables else {}),
        "skipped": left_out + [line for probe in probes.values() for line in probe.left_out],
    }
    write_report(rundir, data)
    console = Console()
    if not console.is_terminal:
        console.width = 200  # so that every row is one line for the next program
    listed = bias_tables(rows, differences, caveats) + [table for each in tables for table in each.tables]
    console.print(terminal_table({**data, "tables": []}), *map(shown_table, listed))
    for line in left_out:
        print(line)
    for name, path in paths.items():
        own = [row for row in rows if row["model"] == name]
        changed = [each for each in differences if each["after"] == name]
        read = [table for each in tables if each.read_by(lineages[name]) for table in each.tables]
        print(f"{name}: {_tell_card(path, probes, own, changed, read)}")
    print(f"the report is {rundir / 'report.html'}")
    return 0


def _measured(
    config: AuditConfig, rundir: Path, probes: Mapping[str, Probe], paths: Mapping[str, str]
) -> Measured:
    found = Measured({title: {} for title in probes}, {}, {}, [])
    for name, path in paths.items():
        model = load_pretrained(path, dtype=config.dtype or None)
        if (tokenizer := model.tokenizer) is None:
            raise UserError(f"{path} has no tokenizer; put its tokenizer.json beside it")
        model = model._replace(digest=model.digest or digest(model.params))
        # A lineage is of the weights as they are stored: a model that brings none and was cast is read once more.
        lineage = lineage_at(path) if config.dtype else lineage_of(model, path)
        engine = Engine(model.config, model.params, tokenizer, config.batch_size, model.digest)
        # By the weights that are asked: a folder that holds another model the next time is asked anew.
        own = f"{_slug(name)}-{engine.weights_digest[:16]}"
        kept = Kept(engine, rundir / f"{own}.db")
        found.lineages[name], found.tokenizers[name] = lineage, tokenizer.digest
        for title, probe in probes.items():
            asked = f"{own}-{_slug(title)}-{probe.digest[:16]}"
            try:
                rows = stage(rundir, asked, lambda probe=probe, kept=kept: to_json(probe.measure(kept)))
                found.rows[title][name] = from_json(rows)
            except Unanswered as reason:
                found.refused.append(f"{name}, {title}: not measured: {reason}")
    return found


def _differences(
    measured: Measured, edges: Sequence[tuple[str, str]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What changed along the edges, and a line for each probe by which two models cannot be compared."""
    differences: list[dict[str, Any]] = []
    lines = []
    for title, found in measured.rows.items():
        for before, after in edges:
            if {before, after} <= found.keys():
                same_tokens = measured.tokenizers[before] == measured.tokenizers[after]
                a, b = (_comparable(found[name], same_tokens) for name in (before, after))
                differences += [{**asdict(each), "set": title} for each in compare(before, a, after, b)]
                lines += [f"{before} and {after} are not compared by {each}: {title}" for each in incomparable(a, b)]
    return differences, lines


def _comparable(rows: Sequence[BiasRow], same_tokens: bool) -> list[BiasRow]:
    """The rows of one model that those of another can be held against: what is told by the token only if they agree."""
    by_token = ("perplexity", "_per_token", "extracted", "extracted_excess", "extracted_by_copies")
    return [each for each in rows if same_tokens or not each.probe.endswith(by_token)]


def _tell_card(
    path: str,
    probes: Mapping[str, Probe],
    rows: Sequence[Mapping[str, Any]],
    changed: Sequence[Mapping[str, Any]],
    read: Sequence[Table],
) -> str:
    """Tells a model's card what was found; in words, where."""
    sections: dict[str, list[Table]] = {"data": list(read)}
    for title, probe in probes.items():
        parts = ([each for each in listed if each["set"] == title] for listed in (rows, changed))
        sections.setdefault(probe.section, []).extend(bias_tables(*parts, caveats={title: probe.caveats}))
    try:
        card = add_to_card(path, sections)
    except UserError as error:  # what was measured is in the report, and the other models have cards, too
        return f"no card: {error}"
    return f"told in {card}" if card else f"no card is written into {path}, which tells no lineage"


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title).strip("-").lower()


def _facts(lineages: Mapping[str, Lineage], edges: Sequence[tuple[str, str]], dtype: str) -> list[list[str]]:
    facts = []
    for name, lineage in lineages.items():
        how = ", ".join(filter(None, (lineage[0].made, lineage[0].method)))
        read = f", read as {dtype}" if dtype else ""
        facts.append([name, f"{how}; {lineage[0].parameters:,} parameters{read}, {lineage[0].digest[:16]}"])
    if edges:
        facts.append(["compared", "; ".join(f"{before} with {after}" for before, after in edges)])
    return facts
