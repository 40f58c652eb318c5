"""What parameter-efficient tuning costs, as shares of full tuning in the same run, beside what it costs with peft.

    .venv/bin/python benchmarks/tuning.py                     # a Llama of 36 M parameters, 4 x 256 tokens
    .venv/bin/python benchmarks/tuning.py --rows 8 --remat none

Every way of tuning takes the same step on the same weights and tokens (AdamW, clip 1, decay 0.1, float32): in Limbeck
and, where it is there, in peft over transformers' Llama (eager PyTorch). Each is a process of its own; in every round
each has its turn, and times are divided by full tuning's in the same library and round. FLOPs are counted from shapes
(`model/flops.py`) and by XLA, of a step without loops and rematerialisation, for it counts a loop's body once. Memory
is what XLA lays out for a step, arguments and temporaries, and what a process holds at its highest while stepping,
less what it holds when model and optimiser are gone. That the work is the same is checked: as many parameters train
with either library, the first losses agree, and they fall. peft comes with `pip install -e '.[bench]'`.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from contest import HERE, Contender, Died, Json, Summary, answer_requests, console, summary, table, write_json
from rich.console import Console
from rich.table import Table
from step import LLAMA, SHAPES, WARM_UP

RANK, QV = 8, r"blocks/attn/(q|v)/kernel"
FACTORS = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WRAPPED: Json = {"r": RANK, "lora_alpha": RANK}


class Way(NamedTuple):
    """A way of tuning: Limbeck's name and settings; peft's class and settings, "" for transformers without it."""

    tuning: str
    method: Json
    peft: tuple[str, Json] | None = None


WAYS = {
    "full": Way("full", {}, ("", {})),
    "last block": Way("last_blocks", {}, ("", {})),
    "LoRA q, v": Way(
        "lora", {"rank": RANK, "targets": QV}, ("LoraConfig", {**WRAPPED, "target_modules": ["q_proj", "v_proj"]})
    ),
    "LoRA q, v on int8": Way("lora", {"rank": RANK, "targets": QV, "base": "int8"}),
    "LoRA q, v on NF4": Way("lora", {"rank": RANK, "targets": QV, "base": "nf4"}),
    "LoRA": Way("lora", {"rank": RANK}, ("LoraConfig", {**WRAPPED, "target_modules": LINEAR})),
    "DoRA": Way("dora", {"rank": RANK}, ("LoraConfig", {**WRAPPED, "target_modules": LINEAR, "use_dora": True})),
    "(IA)3": Way("ia3", {}, ("IA3Config", FACTORS)),
    "prefix": Way("prefix", {"length": 16}),
    "biases": Way("bias", {}),
    "random 1 %": Way("random", {"share": 0.01}),
}  # fmt: skip
AIMS = (  # (way, a figure's share of full tuning's, at most)
    ("last block", "time", 0.5),
    ("LoRA q, v", "flops", 0.72),
    ("LoRA q, v", "xla_flops", 0.72),
    ("LoRA q, v", "xla_mib", 0.4),
    ("LoRA q, v", "process_mib", 0.4),
    ("LoRA q, v on int8", "xla_mib", 0.25),
    ("LoRA q, v on int8", "process_mib", 0.25),
)
NAMES = {
    "time": "time", "flops": "FLOPs from shapes", "xla_flops": "FLOPs by XLA", "xla_mib": "memory by XLA",
    "process_mib": "memory of the process",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    shape: Literal["4m", "30m"] = "30m"
    """The Llama's, as in `step.py`."""
    depth: int = 10
    """Its layers."""
    rows: int = 4
    """Rows of a batch."""
    length: int = 256
    """Tokens of a row."""
    remat: Literal["none", "full"] = "full"
    """What everybody's backward pass computes again: nothing, or every layer."""
    rounds: int = 9
    """How often each has its turn."""
    seconds: float = 1.0
    """About how long a turn of full tuning takes; all take as many steps."""
    json: Path | None = None
    """Keep all figures in this file."""


def main(args: Args) -> int:
    spec: Json = {
        **SHAPES[args.shape], **LLAMA, "depth": args.depth, "rows": args.rows, "length": args.length,
        "max_len": args.length + 16, "dtype": "float32", "device": "cpu", "remat": args.remat,
    }  # fmt: skip
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        spec["folder"] = folder
        (about,) = _asked(["contenders.py"], [{"contender": "prepare", **spec}], out)
        counts = _asked(["tuning.py", "worker"], [spec | way._asdict() for way in WAYS.values()], out)
        found, absent = _measured(spec, args.rounds, args.seconds, out)
    for name, count in zip(WAYS, counts, strict=True):
        found["limbeck"].get(name, {}).update(count)
    faults = _faults(found)
    for ways in found.values():
        for each in ways.values():
            each["shares"] = _shares(each, ways["full"])
    title = f"{about['parameters'] / 1e6:.1f} M parameters, {args.rows} x {args.length} tokens, float32, "
    out.print(_table(found, f"{title}remat {args.remat}, {args.rounds} rounds", about["parameters"]))
    for name, figure, most in AIMS:
        shares = {library: ways[name]["shares"] for library, ways in found.items() if name in ways}
        if "limbeck" not in shares:
            continue
        texts = [f"{library} {each[figure]:.3f}" for library, each in shares.items() if figure in each]
        kept = "kept" if shares["limbeck"][figure] <= most else "MISSED"
        print(f"{kept}: {name}, {NAMES[figure]}, at most {most} of full tuning's: {', '.join(texts)}")
    for name, why in absent.items():
        out.print(f"left out: {name}: {why}", markup=False)
    for fault in faults:
        print(f"UNEQUAL: {fault}", file=sys.stderr)
    write_json(args.json, {"args": dataclasses.asdict(args) | {"json": None}, "shape": spec, "about": about,
                           "absent": absent, "unequal": faults, **found})  # fmt: skip
    return 1 if faults else 0


def _asked(script: list[str], requests: list[Json], out: Console) -> list[Json]:
    """The answers of one process to some requests."""
    worker = Contender(script[0], [sys.executable, str(HERE / script[0]), *script[1:]])
    try:
        with out.status("counting"):
            return [worker.ask(**request) for request in requests]
    finally:
        worker.close()


def _measured(spec: Json, rounds: int, seconds: float, out: Console) -> tuple[dict[str, dict[str, Json]], Json]:
    """By library and way what was measured, everybody in turns; and who could not take part, with the reason."""
    found: dict[str, dict[str, Json]] = {"limbeck": {}, "peft": {}}
    workers: dict[tuple[str, str], Contender] = {}
    absent, steps = {}, 1
    entries = [("limbeck", "limbeck-tuned", name) for name in WAYS]
    entries += [("peft", "torch", name) for name, way in WAYS.items() if way.peft]
    try:
        with out.status("") as status:
            for library, contender, name in entries:
                status.update(f"starting {library}: {name}")
                worker = Contender(name, [sys.executable, str(HERE / "contenders.py")])
                try:
                    about = worker.ask(contender=contender, **spec, **WAYS[name]._asdict())
                    about |= {"losses": worker.ask(steps=WARM_UP, losses=True)["losses"], "turns": []}
                    again = worker.ask(steps=1, forget_peak=True)
                except Died as reason:
                    worker.close()
                    absent[f"{library}: {name}"] = str(reason)
                    continue
                workers[library, name], found[library][name] = worker, about
                if len(workers) == 1:
                    steps = max(1, round(seconds / again["seconds"]))
            for turn in range(rounds):
                for (library, name), worker in workers.items():
                    status.update(f"round {turn + 1} of {rounds}: {library}: {name}")
                    found[library][name]["turns"].append(worker.ask(steps=steps))
            for (library, name), worker in workers.items():
                each, left = found[library][name], worker.ask(leave=True)["resident"]
                turns = each.pop("turns")
                each["seconds"] = [turn["seconds"] / steps for turn in turns]
                each["process_mib"] = max(turn["peak"] for turn in turns) - left
                each["left_mib"] = left
    finally:
        for worker in workers.values():
            worker.close()
    if "full" not in found["limbeck"]:
        raise SystemExit(f"limbeck: full: {absent['limbeck: full']}")
    return {library: ways for library, ways in found.items() if "full" in ways}, absent


def _shares(each: Json, full: Json) -> Json:
    """Of full tuning's figures; the time's is the median of the rounds."""
    times = summary([a / b for a, b in zip(each["seconds"], full["seconds"], strict=True)])
    shares = {name: each[name] / full[name] for name in NAMES if name in each}
    return shares | {"time": times.median, "time_quartiles": times._asdict()}


def _faults(found: dict[str, dict[str, Json]]) -> list[str]:
    """What says that two libraries did not do the same work, or that a step does not learn."""
    faults = []
    first = found["limbeck"]["full"]["losses"][0]
    for library, ways in found.items():
        for name, each in ways.items():
            losses, trained = each["losses"], found["limbeck"].get(name, each)["parameters"]
            if each["parameters"] != trained:
                faults.append(f"{library}: {name} trains {each['parameters']:,} parameters, Limbeck {trained:,}")
            # Codes are rounded, and virtual tokens are seen from the first step on.
            near = 2e-2 if name == "prefix" or " on " in name else 1e-4
            if not abs(losses[0] - first) < near * first:
                faults.append(f"{library}: {name}: the first loss is {losses[0]}, not {first}")
            if not losses[-1] < losses[0]:
                faults.append(f"{library}: {name}: the loss does not fall: {losses}")
    return faults


def _table(found: dict[str, dict[str, Json]], title: str, parameters: int) -> Table:
    columns = ["", "trains", "%", "FLOPs", "by XLA", "time", "XLA: MiB", "share", "held: MiB", "share"]
    made = table(title, columns)
    made.caption = "FLOPs, time (medians of the rounds, quartiles) and memory as shares of full tuning's in the library"
    for library, ways in found.items():
        for name, each in ways.items():
            shares = each["shares"]
            counted = [f"{shares[key]:.3f}" if key in shares else "" for key in ("flops", "xla_flops")]
            memory = [
                text
                for key in ("xla_mib", "process_mib")
                for text in ((f"{each[key]:,.0f}", f"{shares[key]:.3f}") if key in each else ("", ""))
            ]
            trains = f"{each['parameters']:,}", f"{each['parameters'] / parameters:.2%}"
            made.add_row(f"{library} {name}", *trains, *counted, Summary(**shares["time_quartiles"]).text(), *memory)
        made.add_section()
    return made


def start(request: Json) -> tuple[Json, Callable[[Json], Json]]:
    """In a process of its own: what each requested way of tuning costs by count, nothing run."""
    from contenders import limbeck_trainer
    from limbeck_step import plain_loss

    from limbeck.model.flops import step_flops
    from limbeck.train.step import make_step

    def count(request: Json) -> Json:
        trainer, batch = limbeck_trainer(request, remat=request["remat"])
        arguments = trainer.state, trainer.frozen, batch, trainer.key
        size = request["rows"] * request["length"]
        flops = step_flops(trainer.config, trainer.state.trainable, trainer.frozen, size, request["length"] / 2)
        memory = trainer.train.lower(*arguments).compile().memory_analysis()
        unrolled = dataclasses.replace(trainer.config, scan=False, remat="none")
        one = make_step(plain_loss(unrolled), trainer.optimizer).lower(*arguments)
        # The machine code is of no interest, only what is computed.
        costs = one.compile(compiler_options={"xla_backend_optimization_level": 0}).cost_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        return {"flops": flops, "xla_flops": costs["flops"], "xla_mib": held / 2**20}

    return count(request), count


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        answer_requests(start)
    else:
        sys.exit(main(tyro.cli(Args, description=__doc__)))
