"""A training step of Limbeck beside PyTorch's and Tunix's: tokens a second, memory, share of the matmul rate.

    .venv/bin/python benchmarks/step.py                        # 4m, CPU: Limbeck, PyTorch eager and compiled
    .venv/bin/python benchmarks/step.py --shape 30m --tunix-python tunix-venv/bin/python
    .venv/bin/python benchmarks/step.py --shape 1b --device gpu

All contenders take the same step: AdamW on every parameter (clip 1, decay 0.1), the same weights, the same tokens, the
loss over all next tokens. Each is a process of its own; in every round each has its turn, and ratios are taken within
a round. That the work is the same is checked: as many parameters, and losses that agree from the first step to the
last. PyTorch and transformers come with `pip install -e '.[bench]'`. Tunix wants an environment of its own:

    python3.12 -m venv tunix-venv && tunix-venv/bin/pip install google-tunix
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import tyro
from contest import HERE, Contender, Died, Json, Summary, console, summary, table, write_json
from rich.console import Console
from rich.table import Table

LLAMA: dict[str, Any] = {"norm_eps": 1e-5, "rope_theta": 1_000_000.0}  # Tunix's Llama turns by 1e6 whatever it is told
SHAPES: dict[str, dict[str, int]] = {
    "4m": {
        "vocab_size": 4096, "width": 256, "depth": 4, "num_heads": 8, "num_kv_heads": 4, "head_dim": 32,
        "mlp_dim": 704, "rows": 16, "length": 128,
    },
    "30m": {
        "vocab_size": 12288, "width": 512, "depth": 8, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64,
        "mlp_dim": 1408, "rows": 8, "length": 256,
    },
    "1b": {
        "vocab_size": 128256, "width": 2048, "depth": 16, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64,
        "mlp_dim": 8192, "rows": 8, "length": 1024,
    },
}  # fmt: skip
WARM_UP = 4  # steps before the clock starts; their losses are compared
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}  # of the losses of these steps, relative


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    shape: Literal["4m", "30m", "1b"] = "4m"
    """Parameters of the Llama, and with them the rows and the length of a batch."""
    rows: int | None = None
    """Rows of a batch (default: the shape's)."""
    length: int | None = None
    """Tokens of a row (default: the shape's)."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Float32 on a CPU, bfloat16 on a GPU."""
    contenders: tuple[str, ...] = ("limbeck", "limbeck-scan", "limbeck-remat", "torch", "torch-compile", "tunix")
    """Who competes; the first one is what the others are compared with."""
    tunix_python: Path | None = None
    """The Python of an environment that has google-tunix (see above); without it Tunix is left out."""
    rounds: int = 9
    """How often each contender has its turn."""
    seconds: float = 1.0
    """About how long a turn of the first contender takes; all take as many steps."""
    json: Path | None = None
    """Keep all figures in this file."""


def main(args: Args) -> int:
    shape = {**SHAPES[args.shape], **LLAMA}
    rows, length = args.rows or shape["rows"], args.length or shape["length"]
    dtype = "float32" if args.device == "cpu" else "bfloat16"
    spec = {
        **shape, "rows": rows, "length": length, "max_len": length, "dtype": dtype, "device": args.device,
        "matmul": 2048 if args.device == "cpu" else 8192,
    }  # fmt: skip
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        spec["folder"] = folder
        about = _prepared(spec)
        entered, absent = _enter(args, spec, out)
        try:
            first = next(iter(entered))
            steps, warm = _warm_up(entered, args.seconds, out, absent)
            faults = _unequal(warm, about["parameters"], dtype, first)
            measured = _rounds(entered, steps, args.rounds, out)
        finally:
            for contender, _ in entered.values():
                contender.close()
    tokens = rows * length
    result = _figures(measured, entered, first, steps, tokens, about["flops"], spec["matmul"])
    title = f"{args.shape}: {about['parameters'] / 1e6:.1f} M parameters, vocabulary {shape['vocab_size']:,}, "
    title += f"{rows} x {length} tokens, {dtype}, {args.rounds} rounds of {steps} step(s)"
    out.print(_table(result, title))
    for name, why in absent.items():
        out.print(f"left out: {name}: {why}", markup=False)
    print(f"matmul: {result['matmul_gflops']['median']:.0f} GFLOP/s (share = counted FLOPs of a step / seconds / this)")
    for name, each in warm.items():
        versions = ", ".join(f"{library} {version}" for library, version in entered[name][1]["versions"].items())
        print(f"{name} ({versions}): first losses " + " ".join(f"{loss:.4f}" for loss in each["losses"]))
    for fault in faults:
        print(f"UNEQUAL: {fault}", file=sys.stderr)
    write_json(args.json, {"args": dataclasses.asdict(args) | {"json": None, "tunix_python": None}, "shape": shape,
                           "about": about, "absent": absent, "unequal": faults, **result})  # fmt: skip
    return 1 if faults else 0


def _worker(python: str | Path, name: str) -> Contender:
    return Contender(name, [str(python), str(HERE / "contenders.py")])


def _prepared(spec: Json) -> Json:
    worker = _worker(sys.executable, "prepare")
    try:
        return worker.ask(contender="prepare", **spec)
    finally:
        worker.close()


def _enter(args: Args, spec: Json, out: Console) -> tuple[dict[str, tuple[Contender, Json]], dict[str, str]]:
    """Starts everybody, one after the other; those that cannot start are told apart, with their reason."""
    entered: dict[str, tuple[Contender, Json]] = {}
    absent: dict[str, str] = {}
    for name in ("matmul", *args.contenders):
        python = args.tunix_python if name == "tunix" else sys.executable
        if python is None or not Path(python).exists():
            absent[name] = "--tunix-python names no Python; --help says how to make the environment"
            continue
        worker = _worker(python, name)
        try:
            with out.status(f"starting {name}"):
                entered[name] = worker, worker.ask(contender=name, **spec)
        except Died as reason:
            worker.close()
            absent[name] = str(reason)
    if len(entered) < 2:
        raise SystemExit("; ".join(f"{name}: {why}" for name, why in absent.items()))
    # The measure has its turn too, but the first contender is who the others are compared with.
    matmul = entered.pop("matmul")
    return {**entered, "matmul": matmul}, absent


def _warm_up(entered: dict, seconds: float, out: Console, absent: dict[str, str]) -> tuple[int, dict[str, Json]]:
    """Compiles everybody; (steps of a turn, what each contender said of its first steps)."""
    warm, steps = {}, 1
    for name, (worker, _) in list(entered.items()):
        try:
            with out.status(f"compiling {name}"):
                began = worker.ask(steps=WARM_UP, losses=True)
                again = worker.ask(steps=1, forget_peak=True)
        except Died as reason:
            absent[name] = str(reason)
            entered.pop(name)[0].close()
            continue
        if not warm:
            steps = max(1, round(seconds / again["seconds"]))
        if name != "matmul":
            warm[name] = began | {"parameters": entered[name][1]["parameters"]}
    return steps, warm


def _unequal(warm: dict[str, Json], parameters: int, dtype: str, first: str) -> list[str]:
    """What says that two contenders did not do the same work."""
    faults = []
    for name, each in warm.items():
        losses = each["losses"]
        if each["parameters"] != parameters:
            faults.append(f"{name} has {each['parameters']:,} parameters instead of {parameters:,}")
        pairs = zip(losses, warm[first]["losses"], strict=True)
        far = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
        if not far < TOLERANCE[dtype]:
            faults.append(f"{name}: losses {losses} instead of {warm[first]['losses']}")
        if not losses[-1] < losses[0]:
            faults.append(f"{name}: the loss does not fall: {losses}")
    return faults


def _rounds(entered: dict, steps: int, rounds: int, out: Console) -> dict[str, list[Json]]:
    """Everybody's turns, A B C A B C."""
    measured: dict[str, list[Json]] = {name: [] for name in entered}
    with out.status("") as status:
        for turn in range(rounds):
            for name, (worker, _) in entered.items():
                status.update(f"round {turn + 1} of {rounds}: {name}")
                measured[name].append(worker.ask(steps=5 if name == "matmul" else steps))
    return measured


def _figures(measured, entered, first: str, steps: int, tokens: int, flops: float, size: int) -> Json:
    rates = [5 * 2 * size**3 / turn["seconds"] for turn in measured["matmul"]]
    base = [turn["seconds"] for turn in measured[first]]
    contenders = {}
    for name, turns in measured.items():
        if name == "matmul":
            continue
        seconds = [turn["seconds"] for turn in turns]
        about = entered[name][1]
        contenders[name] = {
            "tokens_per_second": summary([steps * tokens / s for s in seconds])._asdict(),
            "speed_of_first": summary([b / s for b, s in zip(base, seconds, strict=True)])._asdict(),
            "share_of_matmul": summary(
                [steps * flops / s / r for s, r in zip(seconds, rates, strict=True)]
            )._asdict(),
            "resident_before_mib": about["resident"],
            "peak_mib": max(turn["peak"] for turn in turns),
            "device_peak_mib": turns[-1]["device_peak"],
            "versions": about["versions"],
            "seconds_per_step": [s / steps for s in seconds],
        }
    return {"first": first, "matmul_gflops": summary([r / 1e9 for r in rates])._asdict(), "contenders": contenders}


def _table(result: Json, title: str) -> Table:
    made = table(title, ["", "tokens/s", f"speed of {result['first']}", "share of matmul", "peak MiB", "grown by MiB"])
    made.caption = "medians of the rounds (quartiles); memory while stepping: at its peak, and by how much that is "
    made.caption += "more than\nwith the model and the optimiser in place; compilation left out"
    for name, each in result["contenders"].items():
        peak, before = each["peak_mib"], each["resident_before_mib"]
        if each["device_peak_mib"] is not None:
            peak, before = each["device_peak_mib"], float("nan")
        rates = [Summary(**each[key]) for key in ("tokens_per_second", "speed_of_first", "share_of_matmul")]
        texts = [rate.text(form) for rate, form in zip(rates, (",.0f", ".2f", ".2f"), strict=True)]
        made.add_row(name, *texts, f"{peak:,.0f}", f"{peak - before:,.0f}")
    return made


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
