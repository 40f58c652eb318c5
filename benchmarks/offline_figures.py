"""What `offline.py` makes of its measurements: who was asked what, rates, ratios, equality, and where time goes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from contest import Json, Summary, summary, table
from rich.table import Table

REUSED, STATIC = "prefix reused", "static prompt"
EQUAL = 0.98  # of greedy answers in float32: a tie may fall either way
NEAR = 1e-3  # nats


class Entry(NamedTuple):
    """A way of a library; entries of one library and type are one process."""

    library: str
    way: str = ""
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.library, self.way, self.dtype)))


LIMBECK, REFERENCE, MEASURE = Entry("limbeck"), Entry("transformers", "plain"), Entry("measure")
TRANSFORMERS, CTRANSLATE2, LM_EVAL = Entry("transformers", REUSED), Entry("ctranslate2", STATIC), Entry("lm-eval", "hf")
WRITERS = (
    LIMBECK,
    LIMBECK._replace(dtype="int8"),
    REFERENCE,
    Entry("transformers", "sorted"),
    TRANSFORMERS,
    TRANSFORMERS._replace(dtype="int8"),
    Entry("continuous", "generate_batch"),
    CTRANSLATE2,
    CTRANSLATE2._replace(dtype="int8"),
    Entry("llama.cpp"),
    Entry("llama.cpp", dtype="int8"),
)
SCORERS = (LIMBECK, LM_EVAL)
AIMS = {"written": {TRANSFORMERS: 2.0, CTRANSLATE2: 1.0}, "scored": {LM_EVAL: 20.0}}  # times as fast as they


class Task(NamedTuple):
    """What is asked in a turn: `order(round)` gives texts that are new in that round, and as long as in any other."""

    name: str
    kind: str  # "written" or "scored"
    about: str
    entries: tuple[Entry, ...]
    order: Callable[[int], Json]


Turns = dict[Entry, Json]  # of each entry: its batch size, the seconds of its turns and what it gave in each


def figures(task: Task, turns: Turns, entry: Entry) -> Json:
    """Rates, how its speed is to that of Limbeck in the same type, and how far what it gave is from the reference."""
    own, requests = turns[entry], len(turns[entry]["found"][0])
    base = turns.get(LIMBECK._replace(dtype=entry.dtype), own)
    made: Json = {
        "batch": own["batch"], "seconds": own["seconds"],
        "prompts_per_second": summary([requests / seconds for seconds in own["seconds"]])._asdict(),
        "speed_of_limbeck": summary(ratios(base, own))._asdict(),
    }  # fmt: skip
    theirs = turns.get(REFERENCE, turns.get(LIMBECK, own))["found"]
    if task.kind == "scored":
        nats = np.abs(np.subtract(own["found"], turns.get(task.entries[-1], own)["found"]))
        return made | {"furthest_nats": float(nats.max())}
    rates = [sum(map(len, texts)) / seconds for texts, seconds in zip(own["found"], own["seconds"], strict=True)]
    both = zip(own["found"], theirs, strict=True)
    pairs = [pair for texts, others in both for pair in zip(texts, others, strict=True)]
    alike = sum(next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a)) for a, b in pairs)
    other = sum(a != b for a, b in pairs)
    return made | {
        "tokens_per_second": summary(rates)._asdict(),
        "equal_answers": 1 - other / len(pairs),
        "equal_tokens": alike / (alike + other),  # of those after equal text: one that differs is followed by others
        "lengths": summary([float(len(answer)) for texts in own["found"] for answer in texts])._asdict(),
    }  # fmt: skip


def ratios(longer: Json, shorter: Json) -> list[float]:
    return [a / b for a, b in zip(longer["seconds"], shorter["seconds"], strict=True)]


def fault(entry: Entry, each: Json) -> str | None:
    """What says that a contender did not do the same work."""
    if each.get("furthest_nats", 0.0) > NEAR:
        return f"{entry.name}: log-likelihoods are up to {each['furthest_nats']:.1e} nats apart"
    if entry.dtype == "float32" and each.get("equal_answers", 1.0) < EQUAL:
        return f"{entry.name}: {each['equal_answers']:.1%} of the answers are those of {REFERENCE.name}"
    return None


def pieces(turns: Turns) -> Json | None:
    """Medians: what Limbeck's turn would take if it were full batches alone, and if it were bare arithmetic."""
    rounds = turns[LIMBECK].get("pieces", []) if LIMBECK in turns else []
    if not rounds:
        return None
    each = {name: float(np.median([one[name] for one in rounds])) for name in rounds[0]}
    batches = len(turns[LIMBECK]["found"][0]) / turns[LIMBECK]["batch"]
    arithmetic = each["step_flops"] / each["flops_per_second"]
    moved = each["steps"] * each["step_bytes"] / each["bytes_per_second"]
    return each | {
        "reading": batches * each["read"], "writing": each["steps"] * each["step"],
        "reading_at_least": each["read_flops"] / each["flops_per_second"], "writing_at_least": max(arithmetic, moved),
    }  # fmt: skip


def told(each: Json) -> str:
    rest = each["seconds"] - each["reading"] - each["writing"]
    read, write = each["reading_at_least"], each["writing_at_least"]
    flops, moved = each["flops_per_second"] / 1e9, each["bytes_per_second"] / 1e9
    return (
        f"limbeck, float32: {each['seconds']:.2f} s. By themselves, in full batches: reading the queries "
        f"{each['reading']:.2f} s, {each['steps']:.0f} steps {each['writing']:.2f} s; the rest (the prefix, filling, "
        f"empty slots, the host) {rest:.2f} s.\nAt least, by {flops:.0f} GFLOP/s and {moved:.1f} GB/s: reading "
        f"{read:.2f} s, writing {write:.2f} s, together {(read + write) / each['seconds']:.0%} of the time"
    )


def shown(title: str, result: dict[Entry, Json]) -> Table:
    scored = any("furthest_nats" in each for each in result.values())
    more = ["furthest nats"] if scored else ["tokens/s", "equal tokens", "equal answers"]
    made = table(title, ["", "batch", "prompts/s", "speed of Limbeck's", *more])
    made.caption = "medians of the rounds (quartiles); speed: of Limbeck's in the same type"
    for entry, each in result.items():
        texts = [Summary(**each["prompts_per_second"]).text(".1f"), Summary(**each["speed_of_limbeck"]).text()]
        if scored:
            texts.append(f"{each['furthest_nats']:.0e}")
        else:
            texts.append(Summary(**each["tokens_per_second"]).text(".0f"))
            texts += [f"{100 * each[name]:.1f} %" for name in ("equal_tokens", "equal_answers")]
        made.add_row(entry.name, str(each["batch"]), *texts)
    return made
