"""What steps of 8 B and 70 B models cost on slices of TPUs, by the TPU's own compiler, on any Linux machine.

    python benchmarks/planning.py                            every kind of step on every slice: the README's table
    python benchmarks/planning.py --scale devices            an 8 B step on 16 to 256 chips, with the batch and without
    python benchmarks/planning.py --scale tokens depth width what grows with each

Each line is one program, compiled; it takes half a minute to a few minutes. `--only 8b v5p` picks lines that have all
of these words; `--out FILE` keeps every figure as JSON Lines, and what is in the file is not compiled again.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from limbeck.distill.config import DistilConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.distillation_config import TeachingConfig, TextDistillationConfig
from limbeck.experiments.plan_tables import as_json
from limbeck.experiments.planned import planned
from limbeck.experiments.planning import estimate
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.program import Program
from limbeck.model.pretrained.config_json import write_config
from limbeck.model.sizes import sized
from limbeck.model.topology import topology
from limbeck.train.config import FitConfig, OptimConfig

# Of each model on each slice: the mesh of a training, and that of writing, where no weight is to cross the links.
SLICES = {
    "8b": {
        "v5e:8x8": ("fsdp=64", "data=8 tensor=8"),
        "v5p:2x4x4": ("fsdp=32", "data=4 tensor=8"),
        "v6e:4x8": ("fsdp=32", "data=4 tensor=8"),
    },
    "70b": {
        "v5e:16x16": ("fsdp=64 tensor=4", "data=8 fsdp=4 tensor=8"),
        "v5p:4x4x8": ("fsdp=128", "data=16 tensor=8"),
        "v6e:16x16": ("fsdp=64 tensor=4", "data=32 tensor=8"),
    },
}
KINDS = ("full", "lora", "distil live", "distil cached", "decode")


class Case(NamedTuple):
    """One line: how it is called, the program, the slice and the mesh."""

    name: str
    plan: Callable[[], Program]
    slice: str
    mesh: str


def trained(model: str, chips: int, rows: int | None = None, length: int = 4096, **more: Any) -> PretrainingConfig:
    """Pretraining, in bfloat16, a row of 4,096 tokens for each chip."""
    fit = FitConfig(steps=1000, batch_size=rows or chips, length=length, optim=OptimConfig())
    settings = {"vocab_size": 128_256, "max_len": max(length, 8192), "dtype": "bfloat16", "remat": "full", **more}
    return PretrainingConfig(fit, texts=("-",), model=model, **settings)


def config_of(kind: str, model: str, chips: int) -> Any:
    """The experiment of a kind of step; a student has a half of its teacher's parameters."""
    common = trained(model, chips)
    match kind:
        case "full":
            return common
        case "lora":
            return dataclasses.replace(common, tuning="lora")
        case "distil live" | "distil cached":
            distil = DistilConfig(cache="topk" if kind.endswith("cached") else None, teacher_base="bfloat16")
            distil = dataclasses.replace(distil, teacher_base="as_is") if distil.cache else distil
            return TextDistillationConfig(common, TeachingConfig(distil, student=StudentConfig(params=0.5)))
    return PredictionConfig(model=model, batch_size=4 * chips, dtype="bfloat16")


def all_cases() -> Iterator[Case]:
    for model, slices in SLICES.items():
        for name, (training, writing) in slices.items():
            chips = math.prod(map(int, name.partition(":")[2].split("x")))
            for kind in KINDS:
                config, mesh = config_of(kind, model, chips), writing if kind == "decode" else training
                yield Case(f"{model} {kind} {name} {mesh}", lambda config=config: planned(config), name, mesh)


def scaled(axes: list[str]) -> Iterator[Case]:
    """One thing grows, everything else stays: an 8 B step on v5p."""

    def case(name: str, config: PretrainingConfig, where: str, mesh: str) -> Case:
        return Case(f"{name} {where} {mesh}", lambda: planned(config), where, mesh)

    slices = {16: "v5p:2x2x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8"}
    if "devices" in axes:
        for chips, where in slices.items():
            yield case(f"weak: {chips} rows", trained("8b", chips), where, f"fsdp={chips}")
        for chips, where in slices.items():
            yield case("strong: 256 rows", trained("8b", chips, 256), where, f"fsdp={chips}")
    if "tokens" in axes:
        for length in (2048, 8192, 32768):
            rows = 32 * 8192 // length
            mesh = "fsdp=32 tensor=2" if rows >= 32 else f"fsdp={rows} tensor={64 // rows}"
            yield case(f"rows of {length}", trained("8b", 64, rows, length), "v5p:4x4x4", mesh)
    where, mesh = "v5p:4x4x4", "fsdp=64"
    if "depth" in axes:
        for depth in (16, 32, 64):
            yield Case(f"{depth} layers {where} {mesh}", partial(of_shape, depth=depth), where, mesh)
    if "width" in axes:
        for width in (2048, 4096, 8192):
            more = {"num_heads": width // 128, "mlp_dim": 7 * width // 2}  # in proportion; eight key-value heads stay
            yield Case(f"width {width} {where} {mesh}", partial(of_shape, width=width, **more), where, mesh)


def of_shape(**changes: int) -> Program:
    """A step of an 8 B model of which these sizes are others, 64 rows; a description of it is all that a plan reads."""
    config = dataclasses.replace(sized("8b", 128_256, 8192), **changes)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(write_config(config)))
        return planned(trained(folder, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--scale", nargs="*", default=[], choices=("devices", "tokens", "depth", "width"))
    parser.add_argument("--out", type=Path, default=Path("runs/planning.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if args.out.exists():
        known = {row["name"]: row for row in map(json.loads, args.out.read_text().splitlines())}
    print("| step | slice, mesh | GiB a chip | step | tokens/s a chip | MFU at most | links | limit | compiled in |")
    print("|---|---|---:|---:|---:|---:|---:|---|---:|")
    for case in scaled(args.scale) if args.scale else all_cases():
        if not all(word in case.name for word in args.only):
            continue
        row = known.get(case.name)
        if row is None:
            plan = case.plan()
            [found] = as_json([estimate(plan, plan.model.remat, case.mesh.split(), topology(case.slice))])
            row = {"name": case.name, "slice": case.slice, "tokens": plan.tokens, **found}
            with open(args.out, "a") as file:
                file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)
    print(f"figures: {args.out}", file=sys.stderr)


def line(row: dict[str, Any]) -> str:
    """A row of the table, in Markdown."""
    step = row["name"].removesuffix(f" {row['slice']} {row['mesh']}")
    chips = math.prod(row["shape"])
    memory = f"{row['needs'] / 2**30:.1f} of {row['has'] / 2**30:.0f}" + ("" if row["fits"] else ", does not fit")
    rates = "– | – | – | –"
    if row["cost"]:
        seconds, links = row["cost"]["seconds"], sum(row["cost"]["waiting_seconds"].values())
        rate = row["tokens"] / seconds / chips
        rates = f"{seconds:.3g} s | {rate:,.0f} | {row['mfu']:.0%} | {links / seconds:.0%}"
    where = f"{row['slice']}, {row['mesh']}"
    return f"| {step} | {where} | {memory} | {rates} | {row['limit']} | {row['compile_seconds']:.0f} s |"


if __name__ == "__main__":
    main()
