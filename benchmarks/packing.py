"""Packing beside padding on real data: tokens that count a second, and how much of a batch is padding.

    .venv/bin/python benchmarks/packing.py stories.jsonl --field text       # a text a line: all of it counts
    .venv/bin/python benchmarks/packing.py folder/of/a/task                 # records: what answers counts

Three ways to lay the same examples into batches of the same number of places: packed side by side; each in a row of
its own as long as the longest example; each in a row of the shortest of a few lengths (powers of two, and the
longest) that holds it. The whole data set is laid out and its batches are counted; a batch of every shape is then
timed, in turns, and a pass over the data is the sum. Attention in a packed row of T places costs T a token also where
the texts in it are short, so short rows pay on long data only: try --length.
"""

import dataclasses
import json as json_lines
import sys
from pathlib import Path

import numpy as np
import tyro
from contest import console, restart_with_environment, summary, table, write_json

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import load_tokenizer, train_bpe
from limbeck.tasks.sources import load_task
from limbeck.train.data import Rows, pack, pad
from limbeck.train.examples import Example, chunked, completions, documents
from limbeck.train.loss import Batch


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    data: tyro.conf.Positional[str]
    """A JSONL file of texts (with --field), or a task by its name or path."""
    field: str | None = None
    """The field that holds the text; without it `data` is a task and its training split is read."""
    length: int = 512
    """Places in a packed row; longer texts are cut into pieces, for a longer record the row grows."""
    places: int = 2048
    """Places in a batch, the same for all three."""
    vocab_size: int = 4096
    """Of the byte-pair tokenizer that is made of the data, unless --tokenizer names one."""
    tokenizer: Path | None = None
    width: int = 128
    depth: int = 4
    rounds: int = 7
    """How often each shape has its turn."""
    json: Path | None = None
    """Keep all figures in this file."""


def main(args: Args) -> int:
    from limbeck_step import Trainer, llama

    out = console()
    examples, vocab_size = _examples(args)
    longest = max(len(example.ids) - 1 for example in examples)
    length = max(longest, args.length)
    buckets = sorted({*(1 << bit for bit in range(4, 24) if 1 << bit < longest), longest})
    ways = {"packed": pack(examples, length), "longest": pad(examples, [longest]), "buckets": pad(examples, buckets)}
    counted = sum(int(example.counts[1:].sum()) for example in examples)
    tokens = sum(len(example.ids) - 1 for example in examples)
    seconds: dict[str, list[float]] = {name: [0.0] * args.rounds for name in ways}
    batches, places = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    trainers = {}
    with out.status("") as status:
        for name, rows in ways.items():
            for batch, count in _batches(rows, args.places):
                shape = batch["tokens_BT"].shape
                status.update(f"compiling {shape}")
                if shape not in trainers:
                    trainers[shape] = Trainer(llama(args.width, args.depth, vocab_size, length)), batch, []
                    trainers[shape][0].seconds(batch)
                batches[name] += count
                places[name] += count * shape[0] * shape[1]
        for number in range(args.rounds):
            status.update(f"round {number + 1} of {args.rounds}")
            for trainer, batch, taken in trainers.values():
                taken.append(trainer.seconds(batch, 2))
    for name, rows in ways.items():
        for batch, count in _batches(rows, args.places):
            taken = trainers[batch["tokens_BT"].shape][2]
            seconds[name] = [so_far + count * each for so_far, each in zip(seconds[name], taken, strict=True)]
    title = f"{args.data}: {len(examples):,} examples, {tokens:,} tokens of which {counted:,} count, longest "
    title += f"{longest}; width {args.width}, depth {args.depth}"
    made = table(title, ["rows are", "of length", "batches", "padding", "counted tokens/s", "of packed"])
    lengths = {name: " ".join(str(group["tokens_BT"].shape[1]) for group in rows.groups) for name, rows in ways.items()}
    result = {}
    for name in ways:
        ratio = summary([a / b for a, b in zip(seconds["packed"], seconds[name], strict=True)])
        speed = summary([counted / each for each in seconds[name]])
        padding = 1 - tokens / places[name]
        made.add_row(
            "packed" if name == "packed" else f"padded to {name}",
            lengths[name], f"{batches[name]:,}", f"{padding:.1%}", speed.text(",.0f"), ratio.text(),
        )  # fmt: skip
        result[name] = {
            "lengths": lengths[name], "batches": batches[name], "padding": padding,
            "counted_tokens_per_second": speed._asdict(), "speed_of_packed": ratio._asdict(),
        }  # fmt: skip
    out.print(made)
    write_json(args.json, {"examples": len(examples), "tokens": tokens, "counted": counted, **result})
    return 0


def _examples(args: Args) -> tuple[list[Example], int]:
    """(the examples, the vocabulary's size)."""
    if args.field is None:
        task = load_task(args.data)
        records = task.splits["train"]
        texts = [task.prompt(record) + task.target(record) for record in records]
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else train_bpe(texts, args.vocab_size)
        return completions(task, records, tokenizer), tokenizer.vocab_size
    texts = []
    for number, line in enumerate(Path(args.data).read_text(encoding="utf-8").splitlines(), 1):
        row = json_lines.loads(line)
        if args.field not in row:
            raise UserError(f"{args.data}:{number}: no field {args.field!r}: it has {', '.join(row)}")
        texts.append(row[args.field])
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else train_bpe(texts, args.vocab_size)
    return chunked(documents(texts, tokenizer), args.length), tokenizer.vocab_size


def _batches(rows: Rows, places: int) -> list[tuple[Batch, int]]:
    """Of each length one batch of about so many places, and how many of them a pass over the data takes."""
    found = []
    for group in rows.groups:
        count, length = group["tokens_BT"].shape
        size = max(1, places // length)
        # A length with less than a batch of rows fills up with rows in which nothing counts.
        batch = {name: np.resize(array[:size], (size, length)) for name, array in group.items()}
        batch["weights_BT"][count:] = 0.0
        found.append((batch, -(-count // size)))
    return found


if __name__ == "__main__":
    parsed = tyro.cli(Args, description=__doc__)
    restart_with_environment()
    try:
        sys.exit(main(parsed))
    except (UserError, OSError) as mistake:
        sys.exit(f"packing: {mistake}")
