"""Many requests at once in Limbeck and elsewhere: prompts and tokens a second, on the same weights.

    .venv/bin/python benchmarks/offline.py                     # 91 M parameters, prefixes of 96 and 384 tokens
    .venv/bin/python benchmarks/offline.py --model FOLDER      # a model of a Hugging Face folder
    .venv/bin/python benchmarks/offline.py --small             # a minute or two: to see that everything runs

Prompts are a prefix that all share and a query of 8 to 32 tokens; answers are greedy, end at one of a set of tokens
that is a twenty-fourth of the vocabulary, and so have 1 to 32 tokens. Against Limbeck's engine: `generate` of
transformers in batches as they come, sorted by length, and sorted behind the prefix's keys and values that were
computed once (`past_key_values`); its continuous batching; CTranslate2 with the prefix as its static prompt; the server
of llama.cpp; in float32 and in int8 (in transformers PyTorch's dynamic quantisation, in llama.cpp Q8_0). Options: the
log-likelihoods of two labels after 16 shots, against lm-eval's `hf` adapter.

Each library is a process of its own with as many threads; in every round each has its turn, with texts that are new in
that round, and ratios are taken within a round. The batch size is what each was fastest with before the clock starts.
That the work is the same is checked: greedy answers in float32 are token for token those of transformers, and
log-likelihoods are within 1e-3; of int8, which every library rounds in its own way, the share of equal tokens is told.
Below a table stands where Limbeck's time goes. What is not installed is left out, and said to be: transformers comes
with `pip install -e '.[bench]'`, CTranslate2 and lm-eval with `pip install ctranslate2 'lm-eval>=0.4.13,<0.5'`, and
llama.cpp wants an environment of its own, which `--llama-cpp-python llama-venv/bin/python` names:

    python3 -m venv llama-venv && llama-venv/bin/pip install xllamacpp gguf safetensors rich
"""

import dataclasses
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from contest import HERE, Contender, Died, Json, console, environment, summary, write_json
from offline_figures import (
    AIMS,
    LIMBECK,
    MEASURE,
    SCORERS,
    WRITERS,
    Entry,
    Task,
    Turns,
    fault,
    figures,
    pieces,
    ratios,
    shown,
    told,
)
from rich.console import Console

CONTENDERS = "offline_contenders.py"
SLOW_TO_START = ("limbeck", "llama.cpp")  # compiles, or reads the model, for each batch size
STOPS = 24  # one in so many tokens ends an answer


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    size: str = "85m"
    """Of the random model, by its name in limbeck/model/sizes.py."""
    model: Path | None = None
    """A Hugging Face folder in its place (Llama, for CTranslate2 and the others alike)."""
    vocab_size: int = 8192
    """Of the random model."""
    prefixes: tuple[int, ...] = (96, 384)
    """Tokens that all prompts begin with."""
    requests: int = 128
    query: tuple[int, int] = (8, 32)
    """Fewest and most tokens of a query."""
    new_tokens: int = 32
    """The most of an answer."""
    shots: int = 16
    shot_tokens: int = 24
    """Of each shot, and of the text whose labels are scored."""
    batch_sizes: tuple[int, ...] = (32, 64)
    """Each contender takes the one that it is fastest with."""
    threads: int | None = None
    """Of everybody (default: a thread for each core)."""
    llama_cpp_python: Path | None = None
    """The Python of an environment that has xllamacpp (see above); without it llama.cpp is left out."""
    without: tuple[str, ...] = ()
    """Libraries to leave out."""
    rounds: int = 5
    """How often each has its turn."""
    clock: Literal["wall", "cpu"] = "wall"
    """The second is the time of all threads that a process ran for: with one thread, what a busy machine leaves be."""
    small: bool = False
    """A model, requests and rounds for a first look."""
    json: Path | None = None
    """Keep all figures in this file."""


SMALL: dict[str, Any] = {"size": "5m", "prefixes": (96,), "requests": 24, "batch_sizes": (16,), "rounds": 2}


def main(args: Args) -> int:
    args = dataclasses.replace(args, **SMALL) if args.small else args
    _bind(args.threads)
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        spec, about, absent = _prepared(args, Path(folder), out)
        tasks, crew = _tasks(args, about), Crew(spec, absent, args.llama_cpp_python)
        try:
            with out.status("") as status:
                measured = _measured(args, tasks, crew, status)
        finally:
            crew.close()
    of = f"{about['parameters'] / 1e6:.1f} M parameters, vocabulary {about['vocab_size']:,}, {spec['threads']} threads"
    faults, kept = [], {}
    for task, turns in measured.items():
        result = {entry: figures(task, turns, entry) for entry in turns}
        out.print(shown(f"{task.name}: {task.about}\n{of}, {args.rounds} rounds, {args.clock} clock", result))
        faults += [f"{task.name}: {found}" for entry, each in result.items() if (found := fault(entry, each))]
        if alone := pieces(turns):
            out.print(told(alone), markup=False, highlight=False)
        for entry, aim in AIMS[task.kind].items():
            if {entry, LIMBECK} <= turns.keys():
                times = summary(ratios(turns[entry], turns[LIMBECK])).median
                verdict = "kept" if times >= aim else "MISSED"
                print(f"{verdict}: {task.name}: {times:.2f} times as fast as {entry.name}, at least {aim}")
        kept[task.name] = {"pieces": alone, "entries": {entry.name: each for entry, each in result.items()}}
    for name, why in absent.items():
        out.print(f"left out: {name}: {why}", markup=False)
    print(", ".join(f"{library} {version}" for library, version in crew.versions.items()))
    for each in faults:
        print(f"UNEQUAL: {each}", file=sys.stderr)
    paths = {"json": None, "model": str(args.model or ""), "llama_cpp_python": None}
    write_json(args.json, {"args": dataclasses.asdict(args) | paths, "about": about, "absent": absent,
                           "unequal": faults, "versions": crew.versions, "tasks": kept})  # fmt: skip
    return 1 if faults else 0


def _bind(threads: int | None) -> None:
    """As many cores and threads for all that is started from here; XLA takes the cores that it may run on."""
    if threads is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _prepared(args: Args, folder: Path, out: Console) -> tuple[Json, Json, dict[str, str]]:
    """(what every contender is told, what was said of the model, who cannot take part and why)."""
    longest = max(max(args.prefixes), 1 + args.shots * args.shot_tokens) + max(args.query[1], args.shot_tokens)
    spec: Json = {
        "folder": str(args.model or folder / "model"), "converted": str(folder / "ctranslate2"),
        "size": None if args.model else args.size, "vocab_size": args.vocab_size,
        "max_len": longest + args.new_tokens + 2, "threads": int(environment()["OMP_NUM_THREADS"]), "clock": args.clock,
    }  # fmt: skip
    absent = dict.fromkeys(args.without, "as was asked for")
    worker = Contender("prepare", [sys.executable, str(HERE / CONTENDERS)])
    try:
        with out.status("writing the model"):
            about = worker.ask(contender="prepare", **spec)
        if about["max_len"] < spec["max_len"]:
            raise SystemExit(f"the model has {about['max_len']} positions, and {spec['max_len']} are needed (--help)")
    finally:
        worker.close()
    rng = np.random.default_rng(STOPS)
    usual = np.setdiff1d(np.arange(about["vocab_size"]), about["specials"])
    drawn = rng.choice(usual, len(usual) // STOPS, replace=False).tolist()
    spec["stops"] = [*about.pop("stop_ids"), *drawn]
    about["usual"] = np.setdiff1d(usual, drawn)
    if "ctranslate2" not in absent:
        worker = Contender("convert", [sys.executable, str(HERE / CONTENDERS)])
        try:
            with out.status("converting the model for CTranslate2"):
                worker.ask(contender="convert", **spec)
        except Died as reason:
            absent["ctranslate2"] = str(reason)
        finally:
            worker.close()
    return spec, about, absent


def _tasks(args: Args, about: Json) -> list[Task]:
    lengths = np.random.default_rng(0).integers(args.query[0], args.query[1], args.requests, endpoint=True).tolist()
    usual, begin = about.pop("usual"), about.pop("start")

    def writing(size: int, turn: int) -> Json:
        rng = np.random.default_rng([size, turn])
        prefix = begin + rng.choice(usual, size - len(begin)).tolist()
        queries = [rng.choice(usual, length).tolist() for length in lengths]
        return {"prefix": prefix, "queries": queries, "new_tokens": args.new_tokens}

    def scoring(size: int, turn: int) -> Json:
        rng = np.random.default_rng([size, turn])

        def words(count: int) -> str:
            return " ".join(map(str, rng.integers(10, 100, count)))

        shown = words(args.shots * args.shot_tokens)
        contexts = [f"{shown} {words(args.shot_tokens)}" for _ in range(args.requests)]
        return {"contexts": contexts, "labels": [f" {words(size)}" for _ in range(2)]}

    few, most = args.query
    asked = f"{args.requests} queries of {few} to {most} tokens, up to {args.new_tokens} new ones"
    tasks = [Task(f"prefix {size}", "written", asked, WRITERS, partial(writing, size)) for size in args.prefixes]
    shots = f"{args.requests} texts, 2 labels, {args.shots} shots of {args.shot_tokens} words"
    return tasks + [
        Task(f"labels of {size} token(s)", "scored", shots, SCORERS, partial(scoring, size)) for size in (1, 2)
    ]


class Crew:
    """The processes, started when first asked; who cannot answer is `absent`, with the reason, and not asked again."""

    def __init__(self, spec: Json, absent: dict[str, str], llama_cpp_python: Path | None) -> None:
        self.absent, self.versions = absent, {}
        self._spec, self._llama_cpp_python = spec, llama_cpp_python
        if llama_cpp_python is None or not llama_cpp_python.exists():
            absent.setdefault(
                "llama.cpp", "--llama-cpp-python names no Python; --help says how to make the environment"
            )
        self._workers: dict[tuple[str, str], Contender] = {}

    def ask(self, entry: Entry, order: Json) -> Json | None:
        if {entry.library, entry.name} & self.absent.keys():
            return None
        who = entry.library, entry.dtype
        try:
            if who not in self._workers:
                command = [sys.executable, str(HERE / CONTENDERS)]
                if entry.library == "llama.cpp":
                    command = [str(self._llama_cpp_python), str(HERE / "offline_llama_cpp.py")]
                worker = self._workers[who] = Contender(entry.name, command)
                self.versions |= worker.ask(contender=entry.library, dtype=entry.dtype, **self._spec)["versions"]
            return self._workers[who].ask(way=entry.way, **order)
        except Died as reason:
            self.absent[entry.name] = str(reason)
            self._workers.pop(who).close()
            return None

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def _measured(args: Args, tasks: list[Task], crew: Crew, status: Any) -> dict[Task, Turns]:
    """Everybody in turns, A B C A B C, after a round 0 in which all find their batch sizes."""
    found: dict[Task, Turns] = {task: {} for task in tasks}
    for task, turns in found.items():
        written: dict[
            str, list[int]
        ] = {}  # how long Limbeck's answers are, for those who cannot find out by themselves
        for entry in task.entries:
            status.update(f"{task.name}: {entry.name} finds its batch size")
            seconds = {}
            for size in args.batch_sizes * (2 if entry.library in SLOW_TO_START else 1):
                if given := crew.ask(entry, task.order(0) | written | {"batch": size}):
                    seconds[size] = given["seconds"]
                    if task.kind == "written" and entry == LIMBECK:
                        written = {"written": [len(answer) for answer in given["found"]]}
            if seconds:
                turns[entry] = {"batch": min(seconds, key=seconds.__getitem__), "seconds": [], "found": []}
    for turn in range(1, args.rounds + 1):
        for task, turns in found.items():
            order = task.order(turn)
            for entry in list(turns):
                status.update(f"round {turn} of {args.rounds}, {task.name}: {entry.name}")
                given = crew.ask(entry, order | {"batch": turns[entry]["batch"]})
                if given is None:
                    del turns[entry]
                    continue
                turns[entry]["seconds"].append(given["seconds"])
                turns[entry]["found"].append(given["found"])
                if task.kind == "written" and entry == LIMBECK:
                    order["written"] = [len(answer) for answer in given["found"]]
            if "written" in order:
                own = turns[LIMBECK]
                if given := crew.ask(MEASURE, order | {"batch": own["batch"]}):
                    own.setdefault("pieces", []).append(given["found"] | {"seconds": own["seconds"][-1]})
    return found


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
