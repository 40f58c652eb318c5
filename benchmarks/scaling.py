"""What a training step costs as rows get longer, batches bigger and models deeper, and to which power it grows.

    .venv/bin/python benchmarks/scaling.py
    .venv/bin/python benchmarks/scaling.py --width 256 --lengths 128 256 512 1024 2048

One of the three changes at a time, the others stay at the base. All settings take turns, and the power is fitted to
each round by itself (a straight line through the logarithms), so its spread is that of the machine. Beside it stands
the power of the counted FLOPs over the same settings: a step that grows slower than its arithmetic has a fixed cost,
one that grows faster leaves the caches.
"""

import dataclasses
import sys
from pathlib import Path

import tyro
from contest import console, restart_with_environment, summary, table, write_json


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    lengths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Tokens of a row."""
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Rows of a batch."""
    depths: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Layers."""
    base: tuple[int, int, int] = (128, 8, 4)
    """Length, rows and depth where they stay."""
    width: int = 128
    vocab_size: int = 4096
    rounds: int = 5
    """How often each setting has its turn."""
    seconds: float = 0.2
    """About how long a turn takes at least."""
    json: Path | None = None
    """Keep all figures in this file."""


def main(args: Args) -> int:
    from limbeck_step import Trainer, exponent, llama, random_batch

    from limbeck.model.flops import step_flops

    out = console()
    kinds = {
        "length": [(length, args.base[1], args.base[2]) for length in args.lengths],
        "rows": [(args.base[0], rows, args.base[2]) for rows in args.rows],
        "depth": [(args.base[0], args.base[1], depth) for depth in args.depths],
    }
    settings = list(dict.fromkeys(setting for group in kinds.values() for setting in group))
    ready, flops, turns = {}, {}, {}
    with out.status("") as status:
        for number, (length, rows, depth) in enumerate(settings, 1):
            status.update(f"compiling {number} of {len(settings)}")
            trainer = Trainer(llama(args.width, depth, args.vocab_size, length))
            batch = random_batch(args.vocab_size, rows, length)
            trainer.seconds(batch)
            steps = max(1, round(args.seconds / trainer.seconds(batch)))
            ready[length, rows, depth] = trainer, batch, steps
            shapes = trainer.state.trainable
            flops[length, rows, depth] = step_flops(trainer.config, shapes, {}, rows * length, length / 2)
            turns[length, rows, depth] = []
        for number in range(args.rounds):
            status.update(f"round {number + 1} of {args.rounds}")
            for setting, (trainer, batch, steps) in ready.items():
                turns[setting].append(trainer.seconds(batch, steps))
    results = {}
    for axis, (kind, group) in enumerate(kinds.items()):
        sizes = [setting[axis] for setting in group]
        rest = [f"{name} {value}" for at, (name, value) in enumerate(zip(kinds, args.base, strict=True)) if at != axis]
        made = table(
            f"{kind}: width {args.width}, vocabulary {args.vocab_size:,}, {', '.join(rest)}",
            [kind, "ms/step", "tokens/s", "GFLOP/s", "power from the row above", "of the FLOPs"],
        )
        for at, setting in enumerate(group):
            seconds, tokens = turns[setting], setting[0] * setting[1]
            local = ["", ""]
            if at:
                pair, before = sizes[at - 1 : at + 1], group[at - 1]
                powers = [exponent(pair, both) for both in zip(turns[before], seconds, strict=True)]
                local = [summary(powers).text(), f"{exponent(pair, [flops[before], flops[setting]]):.2f}"]
            made.add_row(
                f"{sizes[at]:,}",
                summary([s * 1e3 for s in seconds]).text(".1f"),
                summary([tokens / s for s in seconds]).text(",.0f"),
                summary([flops[setting] / s / 1e9 for s in seconds]).text(".0f"),
                *local,
            )
        fitted = summary([exponent(sizes, round_) for round_ in zip(*(turns[s] for s in group), strict=True)])
        counted = exponent(sizes, [flops[setting] for setting in group])
        out.print(made)
        out.print(f"seconds grow as {kind} to the power {fitted.text()}; counted FLOPs: {counted:.2f}\n")
        results[kind] = {
            "sizes": sizes, "power": fitted._asdict(), "power_of_flops": counted,
            "seconds": [turns[setting] for setting in group], "flops": [flops[setting] for setting in group],
        }  # fmt: skip
    write_json(args.json, {"width": args.width, "vocab_size": args.vocab_size, "base": args.base, **results})
    return 0


if __name__ == "__main__":
    parsed = tyro.cli(Args, description=__doc__)
    restart_with_environment()
    sys.exit(main(parsed))
