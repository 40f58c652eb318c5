"""What a step of distillation costs in Limbeck, TRL and Tunix, beside a plain tuning step of the same library.

    .venv/bin/python benchmarks/distilling.py                                          # Limbeck and TRL
    .venv/bin/python benchmarks/distilling.py --tunix-python tunix-venv/bin/python     # and Tunix
    .venv/bin/python benchmarks/distilling.py --teacher-width 512 --teacher-depth 8 --vocab-size 32768

A live teacher reads along; a cached one was asked before, and its likeliest tokens, or draws from it, are in the
batch; on own answers the student writes the second half of every row first. The same student and teacher (random
Llamas in float32 on a CPU), the same tokens, the forward KL at temperature 1, AdamW on every parameter (clip 1, decay
0.1). TRL's plain step is its SFTTrainer's, beside that of transformers alone, the others its GKDTrainer's and, on own
answers, which it is for, its newer DistillationTrainer's; Tunix's are its PeftTrainer's and its DistillationTrainer's.

Each way is a process of its own, all of them together some 10 GB; in every round each has its turn, and ratios are
taken within a round. That the work is the same is checked: as many parameters, losses over as many tokens, and first
losses that agree, roughly on own answers, which every library draws for itself. A cached teacher is to cost Limbeck 1.1
plain steps at most. TRL comes with `pip install -e '.[bench]'`, Tunix wants an environment of its own:

    python3.12 -m venv tunix-venv && tunix-venv/bin/pip install google-tunix
"""

import dataclasses
import math
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from contest import HERE, Contender, Died, Json, Summary, console, summary, table, write_json
from limbeck_step import llama
from rich.console import Console
from rich.table import Table
from step import LLAMA, TOLERANCE, WARM_UP

AIM = 1.1  # of a plain step, for a cached teacher
OWN = "own answers"
DRAWN = 0.25  # how far the first loss on own answers may be from Limbeck's, relative


class Entry(NamedTuple):
    """A way of a library, and whose step it is."""

    library: str
    way: str
    trainer: str = ""

    @property
    def name(self) -> str:
        return f"{self.library} {self.way}" + (f" ({self.trainer})" if self.trainer else "")


CACHED = ("cached, likeliest", "cached, with the rest", "cached, drawn")
ENTRIES = (
    *(Entry("limbeck", way) for way in ("plain", "live", *CACHED, OWN)),
    Entry("transformers", "plain"),
    Entry("trl", "plain", "SFTTrainer"),
    Entry("trl", "live", "GKDTrainer"),
    Entry("trl", OWN, "GKDTrainer"),
    Entry("trl", OWN, "DistillationTrainer"),
    Entry("tunix", "plain", "PeftTrainer"),
    Entry("tunix", "live", "DistillationTrainer"),
)
FIELDS = ("vocab_size", "width", "depth", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_len")


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    width: int = 192
    """Of the student."""
    depth: int = 4
    """Layers of the student."""
    teacher_width: int = 256
    teacher_depth: int = 8
    vocab_size: int = 8192
    rows: int = 8
    length: int = 128
    kept: int = 32
    """Entries of a cached distribution."""
    tunix_python: Path | None = None
    """The Python of an environment that has google-tunix (see above); without it Tunix is left out."""
    rounds: int = 9
    """How often each has its turn."""
    seconds: float = 1.0
    """About how long everybody's turn takes; a step that is longer is a turn."""
    json: Path | None = None
    """Keep all figures in this file."""


def main(args: Args) -> int:
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec(args, Path(folder))
        about = _prepared(spec, out)
        found, absent = _measured(args, spec, out)
    faults = _unequal(found, about["student"]["parameters"], args)
    for entry, each in found.items():
        each |= _ratios(entry, found)
    out.print(_table(args, found, about))
    for entry in (Entry("limbeck", way) for way in CACHED):
        if entry in found:
            share = found[entry]["of_plain"]["median"]
            print(f"{'kept' if share <= AIM else 'MISSED'}: {entry.way}: {share:.2f} of a plain step, at most {AIM}")
    for name, why in absent.items():
        out.print(f"left out: {name}: {why}", markup=False)
    for entry, each in found.items():
        versions = ", ".join(f"{library} {version}" for library, version in each["versions"].items())
        print(f"{entry.name} ({versions}): first losses " + " ".join(f"{loss:.5f}" for loss in each["losses"]))
    for fault in faults:
        print(f"UNEQUAL: {fault}", file=sys.stderr)
    write_json(args.json, {"args": dataclasses.asdict(args) | {"json": None, "tunix_python": None}, "about": about,
                           "absent": absent, "unequal": faults,
                           "ways": {entry.name: each for entry, each in found.items()}})  # fmt: skip
    return 1 if faults else 0


def _spec(args: Args, folder: Path) -> Json:
    """What every contender is told; the teacher's shape and folder are under `teacher`."""

    def model(width: int, depth: int, seed: int) -> Json:
        config = llama(width, depth, args.vocab_size, args.length)
        own: dict[str, Any] = {name: getattr(config, name) for name in FIELDS}
        return {**own, **LLAMA, "seed": seed, "dtype": "float32", "folder": str(folder / f"model{seed}")}

    run = {"rows": args.rows, "length": args.length, "kept": args.kept, "device": "cpu"}
    teacher = model(args.teacher_width, args.teacher_depth, 1)
    return {**model(args.width, args.depth, 0), **run, "teacher": {**teacher, **run}}


def _worker(python: str | Path, name: str) -> Contender:
    return Contender(name, [str(python), str(HERE / "distilling_contenders.py")])


def _prepared(spec: Json, out: Console) -> Json:
    """Writes both models; what was counted of them."""
    worker = _worker(sys.executable, "prepare")
    try:
        with out.status("writing the models"):
            student = worker.ask(contender="prepare", **spec)
            return {"student": student, "teacher": worker.ask(**spec["teacher"])}
    finally:
        worker.close()


def _measured(args: Args, spec: Json, out: Console) -> tuple[dict[Entry, Json], dict[str, str]]:
    """What was measured of every way, everybody in turns; and who could not take part, with the reason."""
    found: dict[Entry, Json] = {}
    absent: dict[str, str] = {}
    workers: dict[Entry, Contender] = {}
    try:
        with out.status("") as status:
            for entry in ENTRIES:
                status.update(f"starting {entry.name}")
                python = args.tunix_python if entry.library == "tunix" else sys.executable
                if python is None or not Path(python).exists():
                    absent["tunix"] = "--tunix-python names no Python; --help says how to make the environment"
                    continue
                worker = _worker(python, entry.name)
                try:
                    about = worker.ask(contender=entry.library, way=entry.way, trainer=entry.trainer, **spec)
                    began = worker.ask(steps=WARM_UP, losses=True)
                    again = worker.ask(steps=1)
                except Died as reason:
                    worker.close()
                    absent[entry.name] = str(reason)
                    continue
                steps = max(1, round(args.seconds / again["seconds"]))
                workers[entry] = worker
                found[entry] = {**about, **began, "steps": steps, "seconds": []}
            for turn in range(args.rounds):
                for entry, worker in workers.items():
                    status.update(f"round {turn + 1} of {args.rounds}: {entry.name}")
                    steps = found[entry]["steps"]
                    found[entry]["seconds"].append(worker.ask(steps=steps)["seconds"] / steps)
    finally:
        for worker in workers.values():
            worker.close()
    if Entry("limbeck", "plain") not in found:
        raise SystemExit("; ".join(f"{name}: {why}" for name, why in absent.items()))
    return found, absent


def _unequal(found: dict[Entry, Json], parameters: int, args: Args) -> list[str]:
    """What says that two contenders did not do the same work, or that a step does not learn."""
    faults = []
    for entry, each in found.items():
        losses = each["losses"]
        targets = args.rows * (args.length - (args.length // 2 if entry.way == OWN else 1))
        if each["parameters"] != parameters:
            faults.append(f"{entry.name} trains {each['parameters']:,} parameters instead of {parameters:,}")
        if each["targets"] not in (None, targets):
            faults.append(f"{entry.name}: a loss over {each['targets']} tokens instead of {targets}")
        if not all(math.isfinite(loss) for loss in losses):
            faults.append(f"{entry.name}: losses {losses}")
        elif entry.way != OWN and not losses[-1] < losses[0]:
            faults.append(f"{entry.name}: the loss does not fall: {losses}")
        # Once answers differ, so do the steps that are taken on them.
        near, compared = (DRAWN, 1) if entry.way == OWN else (TOLERANCE["float32"], WARM_UP)
        theirs = found.get(Entry("limbeck", entry.way), each)["losses"]
        pairs = zip(losses[:compared], theirs[:compared], strict=True)
        if not all(abs(ours - other) < near * abs(other) for ours, other in pairs):
            faults.append(f"{entry.name}: losses {losses} instead of {theirs}")
    return faults


def _ratios(entry: Entry, found: dict[Entry, Json]) -> Json:
    """Its time over that of its library's plain step, and Limbeck's time for the same over its own, by rounds."""
    seconds = found[entry]["seconds"]
    same = [other for other in found if other.library == entry.library and other.way == "plain"]
    limbeck = found.get(Entry("limbeck", entry.way)) if entry.library != "limbeck" else None
    ratios = {"ms": summary([1e3 * each for each in seconds])}
    if same:
        plain = found[same[0]]["seconds"]
        ratios["of_plain"] = summary([own / base for own, base in zip(seconds, plain, strict=True)])
    if limbeck:
        ratios["speed"] = summary([base / own for own, base in zip(seconds, limbeck["seconds"], strict=True)])
    return {name: ratio._asdict() for name, ratio in ratios.items()}


def _table(args: Args, found: dict[Entry, Json], about: Json) -> Table:
    student, teacher = (about[who]["parameters"] / 1e6 for who in ("student", "teacher"))
    title = f"student {args.width} x {args.depth} ({student:.1f} M), teacher {args.teacher_width} x "
    title += f"{args.teacher_depth} ({teacher:.1f} M), vocabulary {args.vocab_size:,}, {args.rows} x {args.length} "
    title += f"tokens, float32, {args.rounds} rounds"
    made = table(title, ["", "ms/step", "of its plain step", "speed of Limbeck's"])
    made.caption = "medians of the rounds (quartiles)\nneither TRL nor Tunix reads a teacher from a cache, "
    made.caption += "and Tunix does not distil on the student's own answers"
    for number, (entry, each) in enumerate(found.items()):
        if number and entry.library != list(found)[number - 1].library:
            made.add_section()
        texts = [
            Summary(**each[key]).text(form) if key in each else "-"
            for key, form in (("ms", ".1f"), ("of_plain", ".2f"), ("speed", ".2f"))
        ]
        made.add_row(entry.name, *texts)
    return made


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
