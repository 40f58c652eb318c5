"""An audit as tables of text, ready for a terminal, Markdown or HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.evaluation.quantities import quantity, with_interval
from limbeck.model.markdown import one_line
from limbeck.model.pretrained.card import Table

_PLACES = 3  # that a cell names
_LARGEST = 8  # scripts and languages of a split
_ROWS = 20  # of labels and groups; the audit itself has them all


def audit_tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of what `audit_task`, `audit_texts` or `audit_distilled` found; none that would be empty."""
    tables = [
        *_distilled(found),
        _table("Records", ["split", "records"], [[split, str(n)] for split, n in found["records"].items()]),
        _lengths(found),
        _table(
            "Scripts and languages",
            ["split", "scripts (of letters)", "languages (of records)"],
            [
                [split, _largest(found["scripts"][split]), _largest(found["languages"][split])]
                for split in found["records"]
            ],
            "unsure: too short or too mixed to tell; zxx: no language.",
        ),
        _labels(found),
        _table(
            "Mentions of groups in training texts",
            ["group", "share of records", "mentions", "per 1,000 words"],
            [
                [group, _share(each["records"]), str(each["mentions"]), f"{each['per_1000_words']:.2f}"]
                for group, each in found["groups"].items()
            ],
            "By a list of words: who is named by others, or in another language, is not counted.",
        ),
        _by_group(found),
        _duplicates(found),
        _overlap(found),
        _personal(found),
        _table("Left out", ["why", "records"], _left_out(found)),
    ]
    return [table for table in tables if table.rows]


def _table(title: str, header: list[str], rows: list[list[str]], note: str = "") -> Table:
    lines = [[one_line(cell, 120) for cell in row] for row in rows]
    return Table(title, header, lines, note)


def _distilled(found: Mapping[str, Any]) -> list[Table]:
    if "distilled" not in found:
        return []
    each = found["distilled"]
    rows = []
    if "given" in each:
        rows = [
            ["records given to the teacher", str(each["given"])],
            ["of these answered", str(each["answered"])],
            ["answers to them", str(each["answers"])],
            ["dropped", _with_places(each["dropped"]["count"], each["dropped"]["where"])],
        ]
    rows.append(["queries of the teacher's own", str(each["own_queries"])])
    if "agreement" in each:
        rows.append(["agree with the data", _share(each["agreement"])])
    listed, note = _furthest(each.get("label_shift", ()), "shift")
    shift = [
        [row["group"] or "all", row["label"], f"{row['gold']:.3f}", f"{row['teacher']:.3f}", _share(row["shift"])]
        for row in listed
    ]
    return [
        _table("What the teacher wrote", ["what", "records"], rows),
        _table("Label rates, teacher and data", ["group", "label", "data", "teacher", "shift"], shift, note),
    ]


def _lengths(found: Mapping[str, Any]) -> Table:
    names = ("min", "median", "p95", "max")
    rows = [
        [split, unit, *(f"{each[name]:g}" for name in names), quantity(each["total"])]
        for split, units in found["lengths"].items()
        for unit, each in units.items()
    ]
    rows += [
        [split, "answer", *(f"{each[name]:g}" for name in names), ""]
        for split, each in found.get("answers", {}).items()
    ]
    return _table("Lengths", ["split", "unit", "min", "median", "95 %", "max", "total"], rows)


def _labels(found: Mapping[str, Any]) -> Table:
    splits: Mapping[str, Mapping[str, Any]] = found.get("labels", {})
    names = list(splits.get("train", ()))
    rows = [[name, *(_share(rates[name]) for rates in splits.values())] for name in names[:_ROWS]]
    note = f"{len(names) - _ROWS} more labels." if len(names) > _ROWS else ""
    return _table("Labels", ["label", *splits], rows, note)


def _by_group(found: Mapping[str, Any]) -> Table:
    listed, note = _furthest(found.get("label_by_group", ()), "difference")
    rows = [
        [row["group"], row["label"], _share(row["rate"]), f"{row['others']['value']:.3f}", _share(row["difference"])]
        for row in listed
    ]
    return _table("Labels by group", ["group", "label", "rate where mentioned", "elsewhere", "difference"], rows, note)


def _furthest(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[Mapping[str, Any]], str]:
    """All rows if they are few, else those whose interval is furthest from 0; and what chance alone would show."""
    if not rows:
        return [], ""
    away = [row for row in rows if not row[key]["ci95"][0] <= 0 <= row[key]["ci95"][1]]
    note = f"{len(away)} of {len(rows)} intervals leave out 0; by chance alone about {0.05 * len(rows):.1f} would."
    if len(rows) <= _ROWS:
        return list(rows), note
    furthest = sorted(away, key=lambda row: -max(row[key]["ci95"][0], -row[key]["ci95"][1]))
    return furthest[:_ROWS], f"{note} Shown are the furthest from it."


def _duplicates(found: Mapping[str, Any]) -> Table:
    rows = []
    for split, kinds in found["duplicates"].items():
        for kind, what in (("exact", "same text"), ("contradictions", "same text, other answers"), ("near", "similar")):
            each = kinds[kind]
            where = [" = ".join(group["places"][:_PLACES]) for group in each["where"]]
            rows.append([split, what, str(each["groups"]), str(each["extra"]), _where(where)])
    note = "Extra: records that could go so that one of each group stays. Similar: Jaccard 0.8 or more, equal ones too."
    return _table("Duplicates", ["split", "what", "groups", "extra", "the largest"], rows, note)


def _overlap(found: Mapping[str, Any]) -> Table:
    rows = []
    for split, each in found["overlap"].items():
        ngram = each["ngram"]
        for name, what in (("exact", "same text"), ("near", "similar text")):
            rows.append([split, what, _share(each[name]["share"]), _pairs(each[name]["where"])])
        other = each["other_answer"]
        rows.append([split, "same text, other answer", str(other["count"]), _pairs(other["where"])])
        rows.append([split, f"any {ngram['words']} words in a row", _share(ngram["share"]), _pairs(ngram["where"])])
        rows.append([split, f"whole, of fewer than {ngram['words']} words", _share(each["short"]["share"]), ""])
    return _table("Held-out records found in training", ["split", "what", "share", "where"], rows)


def _personal(found: Mapping[str, Any]) -> Table:
    rows = []
    for kind, each in found["personal"].items():
        where = _where([f"{one['place']} {one['shown']}" for one in each["where"]])
        rows.append([kind, str(each["found"]), str(each["records"]), where])
    note = "Masked; names and addresses have no form and are not found."
    return _table("Personal data by its form", ["kind", "found", "records", "where"], rows, note)


def _left_out(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [[each["reason"], str(each["count"])] for each in found["filtered"]]
    if skipped := found["skipped"]["count"]:
        rows.append([f"bad rows: {_where(found['skipped']['lines'], 1)}", str(skipped)])
    return rows


def _share(score: Mapping[str, Any] | None) -> str:
    """`0.912 [0.880, 0.940] of 300`."""
    return "no records" if score is None else f"{with_interval(score['value'], score['ci95'], 3)} of {score['n']}"


def _largest(shares: Mapping[str, Any]) -> str:
    values = {name: each if isinstance(each, float) else each["value"] for name, each in shares.items()}
    listed = [f"{name} {100 * value:.3g} %" for name, value in list(values.items())[:_LARGEST]]
    return ", ".join(listed) + (f", {len(values) - _LARGEST} more" if len(values) > _LARGEST else "")


def _pairs(pairs: Sequence[Mapping[str, str]]) -> str:
    return _where([f"{pair['place']} = {pair['source']}" for pair in pairs])


def _with_places(count: int, places: Sequence[str]) -> str:
    return f"{count} ({_where(places)})" if count else "0"


def _where(places: Sequence[str], shown: int = _PLACES) -> str:
    return ", ".join(places[:shown]) + (", ..." if len(places) > shown else "")
