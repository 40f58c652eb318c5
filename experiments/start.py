"""What a training begins with: a foundation from a folder, or random parameters of a named size."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from limbeck.distill.schedules import Named
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.hosts import from_leader, leads, together
from limbeck.model.params import Params, merge
from limbeck.model.pretrained import lineage_of, load_pretrained
from limbeck.model.pretrained.lineage import Data, Lineage, Role
from limbeck.model.sharding import placed
from limbeck.model.sizes import SIZES, UNROLLED, sized
from limbeck.model.tokenizer import Tokenizer, load_tokenizer, train_bpe
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig
from limbeck.train.data import Rows
from limbeck.train.heads import add_head
from limbeck.train.loss import Batch, LossFn
from limbeck.train.methods import Ground, prepare
from limbeck.train.select import Selection, apply_selection


class Past(NamedTuple):
    """What a model that is being made comes from: other models, data, how a teacher teaches it."""

    parents: tuple[tuple[Role, Lineage], ...] = ()
    data: tuple[Data, ...] = ()
    objective: str = ""
    teaching: Mapping[str, Any] = {}


class Start(NamedTuple):
    """A model, its tokenizer, what of it is to train, the paths of the leaves that a way of tuning added, its past."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    selection: Selection
    added: frozenset[str] = frozenset()
    past: Past = Past()


# What a teacher makes of a training on rows, each with its weight in the mixture: the model and what it needs beside
# it, batches, loss, and how many FLOPs a step the teacher costs.
Taught = Callable[[Start, Sequence[tuple[Rows, float]]], tuple[Start, Named, LossFn, float]]


def begin(
    model: str, rundir: Path, texts: Sequence[str], *, vocab_size: int, max_len: int, tokenizer: str = "", seed: int = 0
) -> Start:
    """The foundation `model`, a file or a folder; or, if that is the name of a size, random parameters.

    For the latter `tokenizer` names one, or a byte-level BPE is learned from `texts` and kept in the run's folder.
    All of it is to train. Raises UserError for a model without a tokenizer.
    """
    if model not in SIZES:
        loaded = load_pretrained(model)
        if loaded.tokenizer is None:
            raise UserError(f"{model} has no tokenizer: put its tokenizer.json into the folder")
        config = dataclasses.replace(loaded.config, scan=loaded.config.depth > UNROLLED)
        past = Past((("base", lineage_of(loaded, model)),))
        return Start(config, loaded.params, loaded.tokenizer, Selection(), past=past)
    path = Path(tokenizer) if tokenizer else rundir / "tokenizer.json"
    if not tokenizer and not from_leader(leads() and path.exists()):
        if leads():
            train_bpe(texts, vocab_size).save(path)
        together("the tokenizer is written")
    own = load_tokenizer(path)
    config = sized(model, own.vocab_size, max_len)
    return Start(config, init(config, jax.random.key(seed)), own, Selection())


def with_head(start: Start, labels: Sequence[str], seed: int) -> Start:
    """The same with a head for `labels`, which trains whatever else does; as it is without any, or with that head."""
    if not labels or start.config.labels == tuple(labels):
        return start
    config, params = add_head(start.config, start.params, labels, jax.random.split(jax.random.key(seed))[1])
    return start._replace(config=config, params=params)


def adapted(
    start: Start,
    config: PretrainingConfig | TuningConfig,
    examples: Callable[[int], tuple[LossFn, Sequence[Batch]]],
) -> tuple[Start, FitConfig]:
    """(the model with what `config.tuning` adds to it and a selection of what trains, how to fit it).

    `examples(n)` gives the loss and batches of n rows, for a method that looks at data first.
    """
    also = ("score/.*",) if start.config.labels else ()
    made = prepare(config.tuning, ground(start, config, examples), config.fit.optim, also=also)
    print(f"tuning {config.tuning}: {made.about}", file=sys.stderr)
    fit = dataclasses.replace(config.fit, optim=made.optim)
    params = placed(start.config, made.params)  # a method makes its leaves without knowing of a mesh
    params = merge(*apply_selection(made.selection, params))  # a stack is cut once: whole and pieces would both be held
    return start._replace(params=params, selection=made.selection, added=made.added), fit


def ground(
    start: Start,
    config: PretrainingConfig | TuningConfig,
    examples: Callable[[int], tuple[LossFn, Sequence[Batch]]] | None = None,
) -> Ground:
    """What a way of tuning begins with, in a run."""
    return Ground(start.config, start.params, config.method, config.seed, examples, start.tokenizer.encode)


def first_rows(stream: Callable[[int], Batch], batch_size: int, count: int) -> list[Batch]:
    """The first batches of a stream, of `count` rows in all or a few more."""
    return [stream(step) for step in range(-(-count // batch_size))]
