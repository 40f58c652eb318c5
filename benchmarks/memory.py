"""Memory of a training step: what the chunked loss and rematerialisation save, and what they cost in time.

    .venv/bin/python benchmarks/memory.py
    .venv/bin/python benchmarks/memory.py --width 256 --depth 8 --rows 16 --length 256

Two tables. The loss: Limbeck's, which holds a few rows of logits at a time, beside a plain one that holds float32
logits [B, T, V], over a growing vocabulary. And `remat`: what the backward pass computes again. `workspace` is what
XLA lays out for temporaries (parameters and the optimiser's state apart); `resident` is by how much the process grew
at its highest while it took steps. Each row is a process of its own; seconds are taken in turns.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import tyro
from contest import (
    HERE,
    Contender,
    Json,
    Summary,
    answer_requests,
    console,
    forget_peak,
    memory,
    summary,
    table,
    write_json,
)  # fmt: skip
from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    vocabularies: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536)
    """For the first table."""
    vocab_size: int = 4096
    """For the second table."""
    width: int = 128
    depth: int = 4
    rows: int = 8
    length: int = 128
    rounds: int = 5
    """How often each has its turn, of two steps."""
    json: Path | None = None
    """Keep all figures in this file."""


def main(args: Args) -> int:
    out = console()
    shape = {name: getattr(args, name) for name in ("width", "depth", "rows", "length")}
    losses = []
    for vocab_size in args.vocabularies:
        specs = [{**shape, "vocab_size": vocab_size, "loss": loss, "remat": "none"} for loss in ("plain", "chunked")]
        losses += _measured(specs, args.rounds, out)
    same = {**shape, "vocab_size": args.vocab_size, "loss": "chunked"}
    remats = _measured([{**same, "remat": remat} for remat in ("none", "dots", "full")], args.rounds, out)
    about = f"width {args.width}, depth {args.depth}, {args.rows} x {args.length} tokens"

    made = table(
        f"loss, by vocabulary: {about}",
        ["vocabulary", "embedding MiB", "logits MiB", "plain: workspace", "resident", "chunked: workspace", "resident",
         "seconds, chunked / plain"],
    )  # fmt: skip
    for plain, chunked in zip(losses[::2], losses[1::2], strict=True):
        made.add_row(
            f"{plain['vocab_size']:,}",
            f"{plain['embedding_mib']:.1f}",
            f"{plain['logits_mib']:.1f}",
            *(f"{each[name]:.0f}" for each in (plain, chunked) for name in ("workspace_mib", "resident_mib")),
            _ratio(chunked, plain).text(),
        )
    out.print(made)
    copies = {loss: _copies(losses[start::2]) for start, loss in ((0, "plain"), (1, "chunked"))}
    for loss, value in copies.items():
        out.print(f"{loss}: the workspace grows by {value:.1f} arrays of the embedding's size as the vocabulary grows")

    made = table(
        f"remat: {about}, vocabulary {args.vocab_size:,}",
        ["remat", "workspace MiB", "resident MiB", "of none", "seconds, of none"],
    )
    for each in remats:
        made.add_row(
            each["remat"],
            f"{each['workspace_mib']:.0f}",
            f"{each['resident_mib']:.0f}",
            f"{each['workspace_mib'] / remats[0]['workspace_mib']:.2f}",
            _ratio(each, remats[0]).text(),
        )
    out.print(made)
    write_json(args.json, {"losses": losses, "remats": remats, "embedding_copies": copies})
    return 0


def _ratio(one: Json, other: Json) -> Summary:
    return summary([a / b for a, b in zip(one["seconds"], other["seconds"], strict=True)])


def _copies(rows: list[Json]) -> float:
    first, last = rows[0], rows[-1]
    grown = last["embedding_mib"] - first["embedding_mib"]
    return (last["workspace_mib"] - first["workspace_mib"]) / grown if grown else float("nan")


def _measured(specs: list[Json], rounds: int, out: Console) -> list[Json]:
    """Each spec with what was measured, all of them in turns."""
    workers = [Contender(str(spec), [sys.executable, str(HERE / "memory.py"), "worker"]) for spec in specs]
    try:
        with out.status(f"vocabulary {specs[0]['vocab_size']:,}"):
            found = [spec | worker.ask(**spec) for spec, worker in zip(specs, workers, strict=True)]
            turns: list[list[Json]] = [[] for _ in specs]
            for _ in range(rounds):
                for worker, done in zip(workers, turns, strict=True):
                    done.append(worker.ask(steps=2))
    finally:
        for worker in workers:
            worker.close()
    return [
        each | {"seconds": [turn["seconds"] for turn in done], "resident_mib": done[-1]["resident_mib"]}
        for each, done in zip(found, turns, strict=True)
    ]


def start(request: Json) -> tuple[Json, Callable[[Json], Json]]:
    """In a process of its own: compiles one step; from then on takes as many as it is told."""
    import jax
    import jax.numpy as jnp
    from limbeck_step import Trainer, llama, plain_loss, random_batch

    vocab_size, rows, length = request["vocab_size"], request["rows"], request["length"]
    config = llama(request["width"], request["depth"], vocab_size, length, remat=request["remat"])

    trainer = Trainer(config, loss_fn=plain_loss(config) if request["loss"] == "plain" else None)
    batch = jax.tree.map(jnp.asarray, random_batch(vocab_size, rows, length))
    trainer.train = compiled = trainer.train.lower(trainer.state, {}, batch, trainer.key).compile()  # pyright: ignore
    forget_peak()
    before, _ = memory()

    def run(order: Json) -> Json:
        seconds = trainer.seconds(batch, order["steps"])
        return {"seconds": seconds, "resident_mib": memory()[1] - before}

    run({"steps": 1})
    about = {
        "workspace_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "embedding_mib": 4 * vocab_size * config.width / 2**20,
        "logits_mib": 4 * rows * length * vocab_size / 2**20,
    }
    return about, run


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        answer_requests(start)
    else:
        sys.exit(main(tyro.cli(Args, description=__doc__)))
