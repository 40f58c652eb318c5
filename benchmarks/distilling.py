"""What a step of distillation costs, beside a plain tuning step of the same student on the same tokens.

    .venv/bin/python benchmarks/distilling.py
    .venv/bin/python benchmarks/distilling.py --teacher-width 512 --teacher-depth 8 --vocab-size 32768

A live teacher reads along; a cached one was asked before, and its likeliest tokens, or draws from it, are in the
batch; on own answers the student writes half of every row first. All take turns, and times are divided by the plain
step's in the same round. A cached teacher is to cost 1.1 plain steps at most.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from contest import console, restart_with_environment, summary, table, write_json

AIM = 1.1  # of a plain step, for a cached teacher


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
    rounds: int = 9
    """How often each has its turn."""
    seconds: float = 1.0
    """About how long a turn of the plain step takes."""
    json: Path | None = None
    """Keep all figures in this file."""


def main(args: Args) -> int:
    out = console()
    with out.status("") as status:
        ways = _ways(args, status.update)
        trainer, batch = ways["plain"]
        steps = max(1, round(args.seconds / trainer.seconds(batch)))
        turns: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds):
            status.update(f"round {number + 1} of {args.rounds}")
            for name, (trainer, batch) in ways.items():
                turns[name].append(trainer.seconds(batch, steps))
    title = f"student {args.width} x {args.depth}, teacher {args.teacher_width} x {args.teacher_depth}, vocabulary "
    made = table(f"{title}{args.vocab_size:,}, {args.rows} x {args.length} tokens", ["", "ms/step", "of a plain step"])
    shares = {}
    for name, seconds in turns.items():
        shares[name] = summary([own / plain for own, plain in zip(seconds, turns["plain"], strict=True)])
        made.add_row(name, summary([1e3 * each for each in seconds]).text(".1f"), shares[name].text())
    out.print(made)
    for name in ("cached, likeliest", "cached, with the rest", "cached, drawn"):
        share = shares[name].median
        print(f"{'kept' if share <= AIM else 'MISSED'}: {name}: {share:.2f} of a plain step, at most {AIM}")
    figures = {name: share._asdict() for name, share in shares.items()}
    write_json(args.json, {"args": dataclasses.asdict(args) | {"json": None}, "seconds": turns, "shares": figures})
    return 0


def _ways(args: Args, tell: Callable[[str], Any]) -> dict[str, tuple[Any, Any]]:
    """(trainer, batch) of every way, compiled and warm."""
    import jax
    import numpy as np
    from limbeck_step import Trainer, llama, random_batch

    from limbeck.distill.config import DistilConfig
    from limbeck.distill.rows.on_policy import on_policy
    from limbeck.distill.teacher import distillation_loss, with_teacher
    from limbeck.model.transformer import init
    from limbeck.train.loss import token_loss

    student = llama(args.width, args.depth, args.vocab_size, args.length)
    teacher = llama(args.teacher_width, args.teacher_depth, args.vocab_size, args.length)
    theirs = with_teacher({}, init(teacher, jax.random.key(1)))
    batch = dict(random_batch(args.vocab_size, args.rows, args.length))
    rng = np.random.default_rng(0)
    shape = (args.rows, args.length, args.kept)
    likely_BTK = np.sort(rng.dirichlet(np.ones(args.kept), shape[:2]).astype(np.float32) * 0.9)[..., ::-1]
    cached = {
        **batch,
        "teacher_ids_BTK": np.argsort(rng.random((*shape[:2], args.vocab_size), np.float32))[..., : args.kept].astype(
            np.int32
        ),
        "teacher_logprobs_BTK": np.log(np.maximum(likely_BTK, 1e-6)),
    }
    own = {
        **batch,
        "prompt_B": np.full(args.rows, args.length // 2, np.int32),
        "own_B": np.ones(args.rows, np.float32),
    }
    live = distillation_loss(student, teacher)
    sampling = {"new_tokens": args.length // 2, "temperature": 1.0, "stop_ids": (), "pad_id": 0, "hard_weight": 0.0}
    written = on_policy(live, student, **sampling)
    made = {
        "plain": (token_loss(student), {}, batch),
        "live": (live, theirs, batch),
        "cached, likeliest": (distillation_loss(student, None, DistilConfig(cache="topk")), {}, cached),
        "cached, with the rest": (distillation_loss(student, None, DistilConfig(cache="topk_tail")), {}, cached),
        "cached, drawn": (distillation_loss(student, None, DistilConfig(cache="sampled")), {}, cached),
        "own answers": (written, theirs, own),
    }
    ways = {}
    for name, (loss_fn, frozen, its_batch) in made.items():
        tell(f"compiling: {name}")
        trainer = Trainer(student, init(student, jax.random.key(0)), loss_fn, frozen=frozen)
        trainer.seconds(its_batch, 2)
        ways[name] = (trainer, its_batch)
    return ways


if __name__ == "__main__":
    parsed = tyro.cli(Args, description=__doc__)
    restart_with_environment()
    sys.exit(main(parsed))
