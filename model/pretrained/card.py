"""A model's card: README.md in the sections and with the metadata that Hugging Face gives a card, and card.json.

What can be told is told from the model and its lineage; what was measured comes as tables, section by section, and may
come later. A section without any reads "not measured". A README.md that somebody has changed is never written over.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, write_atomic
from limbeck.model.markdown import escaped, table
from limbeck.model.pretrained.lineage import Lineage, Origin, ancestors, foundations, to_json

CARD, README, BESIDE = "card.json", "README.md", "card.md"
SECTIONS = ("data", "evaluation", "bias", "memorisation", "energy")
HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)  # a folder's name alone may be another's there
_UNSTATED = "not stated"


class Table(NamedTuple):
    """What was measured, in words: a title, a header, rows of as many cells, and what is to be known beside it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Result(NamedTuple):
    """A metric on a task's test records, as the card's metadata has it."""

    task: str
    kind: str
    metric: str
    value: float


def in_markdown(each: Table) -> str:
    """A table under its title, with its note; whatever its texts hold is no markup."""
    parts = [f"**{escaped(each.title)}**", table(each.header, each.rows) if each.rows else "none"]
    return "\n\n".join([*parts, escaped(each.note)] if each.note else parts)


def write_card(
    folder: Path,
    config: ModelConfig,
    lineage: Lineage,
    sections: Mapping[str, Sequence[Table]] | None = None,
    results: Sequence[Result] = (),
) -> Path:
    """Writes README.md and card.json; the path of the former: "card.md" where somebody has changed the README.md.

    `sections` maps names among SECTIONS to tables. What the folder's card.json tells besides, a table of another title
    or results where none are given, stays. The same card gives the same bytes. Raises UserError for a card.json that is
    none.
    """
    told = _told(folder)
    before = {name: [Table(**each) for each in tables] for name, tables in told.get("sections", {}).items()}
    sections = {name: _merged(before.get(name, ()), (sections or {}).get(name, ())) for name in SECTIONS}
    results = results or [Result(**each) for each in told.get("results", [])]
    text = _front_matter(config, lineage, results) + _body(config, lineage, sections)
    return _write(folder, text, {
        "lineage": json.loads(to_json(lineage))["lineage"],
        "sections": {name: [each._asdict() for each in sections.get(name, ())] for name in SECTIONS},
        "results": [each._asdict() for each in results],
    })


def drop_card(folder: Path) -> None:
    """Takes away a card that was written for another model, and leaves a README.md that is not known to be ours."""
    with contextlib.suppress(UserError):
        if _is_ours(folder):
            (folder / README).unlink(missing_ok=True)
    for name in (CARD, BESIDE):
        (folder / name).unlink(missing_ok=True)


def _write(folder: Path, text: str, told: Mapping[str, Any]) -> Path:
    ours, known = _is_ours(folder), _told(folder).get("readme", [])[-1:]
    # First what says that both are ours, the README.md that is there and the one to come: between the two writes the
    # process may be killed.
    known.append(hashlib.sha256(text.encode()).hexdigest())
    write_atomic(folder / CARD, json.dumps({**told, "readme": known}, indent=1, ensure_ascii=False) + "\n")
    place = folder / (README if ours else BESIDE)
    write_atomic(place, text)
    return place


def _merged(before: Sequence[Table], now: Sequence[Table]) -> list[Table]:
    """The tables of a section: each title's last, where it stood first."""
    return list({each.title: each for each in (*before, *now)}.values())


def _is_ours(folder: Path) -> bool:
    """Whether there is no README.md, or the one that card.json was written with."""
    readme = folder / README
    if not readme.exists():
        return True
    with disk_errors(readme):
        return hashlib.sha256(readme.read_bytes()).hexdigest() in _told(folder).get("readme", [])


def _told(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_bytes())
        for name in SECTIONS:
            for each in told["sections"].get(name, []):
                in_markdown(Table(**each))
        for each in told["results"]:
            float(Result(**each).value)
        if not isinstance(told["readme"], list) or not all(isinstance(each, str) for each in told["readme"]):
            raise TypeError("a digest is no text")
        return told
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no model card ({error}): remove it, and it is written anew") from error


def _front_matter(config: ModelConfig, lineage: Lineage, results: Sequence[Result]) -> str:
    """The metadata between two lines of dashes; JSON is YAML."""
    own = lineage[0]
    base = [each.name for each in foundations(lineage) if HUB_NAME.fullmatch(each.name)]
    metadata: dict[str, Any] = {
        "library_name": "limbeck",
        "pipeline_tag": "text-classification" if config.labels else "text-generation",
        "tags": ["limbeck", "jax", "flax", own.made],
    }
    if base:
        metadata |= {"base_model": base, "base_model_relation": "finetune"}
    if results:
        metadata["metrics"] = list(dict.fromkeys(each.metric for each in results))
        metadata["model-index"] = [{"name": own.name, "results": [_result(each) for each in results]}]
    if (grams := own.cost.get("grams_co2e")) is not None:
        source = str(own.cost.get("joules_source"))
        metadata["co2_eq_emissions"] = {"emissions": grams, "source": source, "training_type": own.made}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()]
    return "\n".join(["---", *lines, "---", "", ""])


def _result(result: Result) -> dict[str, Any]:
    return {
        "task": {"type": result.kind},
        "dataset": {"name": result.task, "type": result.task},
        "metrics": [{"type": result.metric, "value": result.value, "name": result.metric}],
    }


def _body(config: ModelConfig, lineage: Lineage, sections: Mapping[str, Sequence[Table]]) -> str:
    own = lineage[0]
    behind = [f"{'  ' * (steps - 1)}- {role}: {escaped(_about(each))}" for role, steps, each in ancestors(lineage)]
    trained_on = ", ".join(each.name for each in own.data)
    labels = f" It gives one of {len(config.labels)} labels: {', '.join(config.labels[:20])}." if config.labels else ""
    parts = [
        f"# {escaped(own.name)}",
        "## Model Details\n\n### Model Description",
        escaped(f"{_about(own)}.") + ("\n\nMade of:\n\n" + "\n".join(behind) if behind else ""),
        _list({
            "Developed by": _UNSTATED,
            "Model type": f"decoder-only transformer ({config.family or 'own layout'}), {config.depth} layers",
            "Language(s)": f"{_UNSTATED}; see the shares under Training Data",
            "License": f"{_UNSTATED}; a model that is made of another is bound by that one's licence",
            "Finetuned from model": ", ".join(each.name for each in foundations(lineage)) or "none",
            "Weights (SHA-256)": own.digest,
        }),
        "## Uses\n\n### Direct Use",
        escaped(f"What it was trained on: {trained_on or 'not recorded'}.{labels}"),
        "### Out-of-Scope Use",
        "Anything that was not measured below. It has not been tested for decisions about people.",
        "## Bias, Risks, and Limitations",
        "A model carries the biases of the data it was trained on, and a distilled one also those of its teacher.",
        _tables(sections, "bias"),
        "### Recommendations",
        "Measure it on your own data and for the groups that it will speak of before it is used.",
        "## How to Get Started with the Model",
        "```python\nfrom limbeck.model.pretrained import load_pretrained\n\nmodel = load_pretrained(\"FOLDER\")\n```",
        "## Training Details\n\n### Training Data",
        table(["data", "records", "SHA-256"], [[each.name, f"{each.records:,}", each.digest] for each in own.data])
        if own.data else "not recorded",
        _tables(sections, "data"),
        "### Training Procedure",
        _list({
            "Made by": f"{own.made}, {own.method}" if own.method else own.made,
            "Parameters": f"{own.parameters:,}, of which {own.trained:,} trained",
            "Commit": own.commit or _UNSTATED,
            "Versions": ", ".join(f"{name} {value}" for name, value in own.versions.items()) or _UNSTATED,
        }),
        "#### Training Hyperparameters",
        _folded("all fields of the experiment", own.config) if own.config else "not recorded",
        "## Evaluation",
        _tables(sections, "evaluation"),
        "## Model Examination\n\n### Memorisation",
        _tables(sections, "memorisation"),
        "## Environmental Impact",
        _list(_cost(own.cost)),
        _tables(sections, "energy"),
        "## Technical Specifications",
        _list({
            "Width, layers, heads": f"{config.width}, {config.depth}, {config.num_heads} ({config.num_kv_heads} kv)",
            "Vocabulary": f"{config.vocab_size:,}",
            "Longest input": f"{config.max_len:,} tokens",
            "Weights": config.dtype,
        }),
        "## Model Card Contact",
        _UNSTATED,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cost(cost: Mapping[str, Any]) -> dict[str, str]:
    """What training took, in words; nothing of what is not known."""
    told = {
        "Time": ("seconds", "{:,.1f} s"),
        "Processor time": ("cpu_seconds", "{:,.1f} s of one core"),
        "FLOPs": ("flops", "{:.3g}"),
        "Energy": ("joules", "{:,.0f} J"),
        "Energy is": ("joules_source", "{}"),
        "Carbon Emitted": ("grams_co2e", "{:.3g} g CO2e"),
        "at": ("grams_per_kwh", "{:g} g CO2e a kWh"),
    }
    return {name: words.format(cost[key]) for name, (key, words) in told.items() if cost.get(key) is not None}


def _about(origin: Origin) -> str:
    """One model in a line: its name, how it was made, on what, how large it is, its digest's beginning."""
    how = f"{origin.made} ({origin.method})" if origin.method else origin.made
    data = f" on {', '.join(each.name for each in origin.data)}" if origin.data else ""
    return f"{origin.name}: {how}{data}, {origin.parameters:,} parameters, {origin.digest[:12]}"


def _tables(sections: Mapping[str, Sequence[Table]], name: str) -> str:
    return "\n\n".join(map(in_markdown, sections.get(name) or ())) or "not measured"


def _folded(title: str, fields: Mapping[str, Any]) -> str:
    rows = [[name, json.dumps(value, ensure_ascii=False)] for name, value in fields.items()]
    return f"<details><summary>{title}</summary>\n\n{table(['field', 'value'], rows)}\n\n</details>"


def _list(items: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}:** {escaped(value)}" for name, value in items.items())
