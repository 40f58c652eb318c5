"""Training on text: a foundation from scratch, or one that goes on; the same loop as any tuning."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from limbeck.evaluation.baseline import compressed_bits_per_byte
from limbeck.evaluation.quantities import duration, quantity
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.cards import tell_quality, train_energy
from limbeck.experiments.machine import provenance
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.rundir import stage
from limbeck.experiments.start import Start, Taught, adapted, begin, first_rows
from limbeck.experiments.text_sources import Source, read_sources, rows_of, tokens_of
from limbeck.experiments.training import trained
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling
from limbeck.model.flops import step_flops
from limbeck.model.params import Params, count, nbytes
from limbeck.model.peak import peak
from limbeck.model.pretrained import load_pretrained
from limbeck.model.pretrained.lineage import data_of
from limbeck.tasks.probability_metrics import perplexity
from limbeck.train.data import Rows, batches
from limbeck.train.loop import Evaluation
from limbeck.train.loss import token_loss
from limbeck.train.select import apply_selection, describe, table
from limbeck.train.validation import losses, mean_loss

_CONTINUED = 60  # tokens of a sample


class Trained(NamedTuple):
    """What training on text gave: its row of the report, and what else a report tells of it."""

    row: dict[str, Any]
    facts: list[tuple[str, str]]
    training: dict[str, Any]
    texts: list[dict[str, str]]
    compressors: dict[str, float]
    skipped: list[str]


def run(config: PretrainingConfig, rundir: Path) -> int:
    """Reads, tokenises, estimates, trains, saves `model/`, reports; exit status 0."""
    done = pretrained(config, rundir)
    metric = next(iter(done.row["metrics"]))
    data = {
        "title": f"Limbeck: {rundir.name}, a foundation of {quantity(done.row['params_total'])} parameters",
        **provenance(rundir, config.seed),
        "seconds": done.training["train_seconds"],
        "metric": metric,
        "facts": done.facts,
        "rows": [
            {"method": "pretrained", **done.row},
            *({"method": name, "metrics": {metric: _value(bits)}} for name, bits in done.compressors.items()),
        ],
        "curves": {"pretrain": done.training["curve"]},
        "evaluations": {
            "pretrain": [{k: v for k, v in each.items() if k != "texts"} for each in done.training["evaluations"]]
        },
        "texts": done.texts,
        "skipped": done.skipped,
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    for text in done.texts:
        print(f"> {text['prompt']}{text['text']}")
    took = duration(done.training["train_seconds"])
    print(f"{took}; the model is {rundir / 'model'}, the report {rundir / 'report.html'}")
    return 0


def pretrained(config: PretrainingConfig, rundir: Path, taught: Taught | None = None) -> Trained:
    """Reads, tokenises, estimates, trains, saves `model/`; with a teacher, `taught` says what is learned of it."""
    sources = read_sources(config)
    start = _start(config, sources, rundir)
    length, rows_at_once = config.fit.length, config.fit.batch_size
    mixture = text_mixture(config, sources, start, rundir)
    rows = [each for each, _ in mixture]
    held_out = [rows_of(source, source.held_out, start.tokenizer, config, rundir) for source in sources]
    stream = batches(mixture, rows_at_once, config.seed)
    loss_fn = token_loss(start.config, z_loss=config.z_loss)
    start, fit = adapted(start, config, lambda n: (loss_fn, first_rows(stream, rows_at_once, n)))
    trainable, frozen = apply_selection(start.selection, start.params)
    print(describe(trainable, frozen), file=sys.stderr)
    if frozen:
        print(table(trainable, frozen), file=sys.stderr)
    # Packed rows, in which a token sees less than half of its row on average: an upper bound.
    per_step = step_flops(start.config, trainable, frozen, rows_at_once * length, length / 2)
    facts = _estimate(config, count(start.params), sum(map(tokens_of, rows)), per_step)
    for name, value in facts:
        print(f"{name:22} {value}", file=sys.stderr)
    evaluate = _evaluation(config, start, held_out, sources)
    data = tuple(data_of(source.name, source.training) for source in sources)
    start = start._replace(past=start.past._replace(data=data))
    if taught is not None:
        start, stream, loss_fn, teaching_flops = taught(start, mixture)
        per_step += teaching_flops
    again = partial(_start, config, sources, rundir)
    training = trained(config, fit, rundir, start, again, loss_fn, stream, evaluate, per_step, "pretrain")
    final = load_pretrained(rundir / "model")
    found = stage(rundir, "validation", lambda: _validated(start, final.params, held_out, evaluate))
    compressed = "bits_per_byte" in found["metrics"]
    row = {
        "metrics": found["metrics"],
        "params_total": count(final.params),
        "params_trainable": count(trainable),
        "bytes": nbytes(final.params),
        "train_seconds": training["train_seconds"],
        **train_energy(training),
        "flops_per_step": per_step,
    }
    tell_quality(rundir / "model", "held-out text", "generation", row)
    skipped = [*(line for part in (*sources, *rows) for line in part.skipped), *training["skipped"]]
    others = stage(rundir, "compressors", lambda: _compressors(sources)) if compressed else {}
    return Trained(row, facts, training, found["texts"], others, skipped)


def text_start(config: PretrainingConfig, rundir: Path) -> Start:
    """The model that a config names, without any training."""
    return _start(config, read_sources(config), rundir)


def text_mixture(
    config: PretrainingConfig, sources: Sequence[Source], start: Start, rundir: Path
) -> list[tuple[Rows, float]]:
    """The training rows of every source, each with its weight in the mixture."""
    rows = [rows_of(source, source.training, start.tokenizer, config, rundir) for source in sources]
    return list(zip(rows, config.weights or map(tokens_of, rows), strict=True))


def assessed(config: PretrainingConfig, start: Start, rundir: Path) -> dict[str, Any]:
    """{"row", "texts"}: a report's row of a model on the held-out text, and what it writes, without any training."""
    sources = read_sources(config)
    held_out = [rows_of(source, source.held_out, start.tokenizer, config, rundir) for source in sources]
    found = _validated(start, start.params, held_out, _evaluation(config, start, held_out, sources))
    size = {"params_total": count(start.params), "bytes": nbytes(start.params)}
    return {"row": {"metrics": found["metrics"], **size}, "texts": found["texts"]}


def _start(config: PretrainingConfig, sources: Sequence[Source], rundir: Path) -> Start:
    texts = [str(text) for source in sources if source.kind == "documents" for text in source.training]
    start = begin(
        config.model,
        rundir,
        texts,
        vocab_size=config.vocab_size,
        max_len=config.max_len,
        tokenizer=config.tokenizer,
        seed=config.seed,
    )
    return start._replace(config=dataclasses.replace(start.config, dtype=config.dtype, remat=config.remat))


def _estimate(config: PretrainingConfig, size: int, tokens: int, per_step: float) -> list[tuple[str, str]]:
    """What the run comes to, before it starts, as (name, value)."""
    total, rate = config.fit.steps * config.fit.batch_size * config.fit.length, peak()
    facts = [
        ("parameters", quantity(size)),
        ("tokens in the text", quantity(tokens)),
        ("tokens to train on", f"{quantity(total)}: {total / tokens:.1f} passes, {total / size:.1f} a parameter"),
        ("for comparison", f"{quantity(20 * size)}: 20 a parameter, about optimal for its FLOPs (arXiv 2203.15556)"),
        ("FLOPs", f"{quantity(per_step * config.fit.steps)}, {quantity(per_step)} a step"),
    ]
    if rate:
        seconds = 2 * per_step * config.fit.steps / rate.flops_per_second
        machine_rate = quantity(rate.flops_per_second, "FLOP/s")
        facts.append(("time", f"{duration(seconds)} at half of this machine's rate, {machine_rate} ({rate.source})"))
    return facts


def _evaluation(
    config: PretrainingConfig, start: Start, held_out: Sequence[Rows], sources: Sequence[Source]
) -> Callable[[Params], Evaluation]:
    loss_fn = token_loss(start.config)
    losses = [mean_loss(loss_fn, rows, config.fit.batch_size) for rows in held_out]
    written = all(source.kind == "documents" for source in sources)  # bits a byte are of text, without a chat's marks
    size = sum(len(str(text).encode()) for source in sources for text in source.held_out)
    prompts = [tuple(start.tokenizer.prompt(prompt)) for prompt in config.prompts]
    room = min(_CONTINUED, start.config.max_len - max(map(len, prompts)))
    sampling = Sampling(room, temperature=0.8, top_p=0.95, seed=config.seed)

    def evaluate(params: Params) -> Evaluation:
        found = [loss(params) for loss in losses]
        weight = sum(each["weight"] for each in found)
        nats = sum(each["loss"] * each["weight"] for each in found)
        metrics: dict[str, Any] = {"validation_loss": nats / weight, "perplexity": math.exp(min(nats / weight, 700.0))}
        if written:
            metrics["bits_per_byte"] = nats / math.log(2) / size
        engine = Engine(start.config, params, start.tokenizer, batch_size=len(prompts))
        answers = engine.generate([GenerateRequest(prompt, sampling, ()) for prompt in prompts])
        metrics["texts"] = [
            {"prompt": prompt, "text": answer.text} for prompt, answer in zip(config.prompts, answers, strict=True)
        ]
        return Evaluation(-nats / weight, metrics)

    return evaluate


def _validated(
    start: Start, params: Params, held_out: Sequence[Rows], evaluate: Callable[[Params], Evaluation]
) -> dict[str, Any]:
    """Metrics of the finished model, with intervals over the rows of the held-out text, and its samples."""
    found = evaluate(params).metrics
    rows = [row for each in held_out for row in losses(token_loss(start.config), each, 1)(params)]
    score = perplexity([row["loss"] * row["weight"] for row in rows], [row["weight"] for row in rows])
    metrics = {"perplexity": {"value": score.value, "ci95": list(score.ci95), "n": score.n}}
    if "bits_per_byte" in found:
        # The same interval in other units: bits a byte are the logarithm of the perplexity, times tokens a byte.
        ratio = found["bits_per_byte"] / math.log(score.value)
        bits = {"value": found["bits_per_byte"], "ci95": [ratio * math.log(end) for end in score.ci95], "n": score.n}
        metrics = {"bits_per_byte": bits, **metrics}
    return {"metrics": metrics, "texts": found["texts"]}


def _compressors(sources: Sequence[Source]) -> dict[str, float]:
    training, held_out = (
        "\n".join(str(text) for source in sources for text in part(source)).encode()
        for part in (lambda source: source.training, lambda source: source.held_out)
    )
    return compressed_bits_per_byte(training, held_out)


def _value(value: float) -> dict[str, Any]:
    return {"value": value, "ci95": None, "n": None}
