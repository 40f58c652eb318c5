"""The menu: every way of tuning as what it adds to the parameters and what of them then trains.

A method is a function that adds leaves, or none, and the patterns of what trains. Its rate is how many times larger
than for full tuning the learning rate is to be, as a sweep on three tasks found it (LOG.md; `limbeck run peft_menu`).
Whatever the method, one step (`step.py`) differentiates what trains and nothing else, and only that is in the
optimiser's state and in checkpoints.
"""

import dataclasses
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from limbeck.model.chosen import choose, unchosen
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, nearest
from limbeck.model.params import Params, block_path, join, merge
from limbeck.model.quantize import dequantized, quantize
from limbeck.train import masks, soft_prompts
from limbeck.train.adapters import add_biases, add_bottleneck, add_ia3, add_lora, add_vera, fold_lora
from limbeck.train.config import Base, MethodConfig, OptimConfig
from limbeck.train.loss import Batch, LossFn
from limbeck.train.mask_file import entries_of_file
from limbeck.train.select import (
    Selection,
    apply_selection,
    bias_norm,
    chosen_only,
    first_blocks,
    last_blocks,
    lora_only,
)

_Criterion = Literal["entries", "random", "magnitude", "fisher", "gradient", "movement"]

KERNELS = r"blocks/(attn|mlp)/\w+/kernel"  # what the low-rank methods go beside: every dense kernel (arXiv 2305.14314)


class Ground(NamedTuple):
    """What a method begins with. `examples(n)` gives a loss and batches of n rows in all, for those that look at data;
    `ids(text)` are a text's tokens."""

    config: ModelConfig
    params: Params
    settings: MethodConfig
    seed: int = 0
    examples: Callable[[int], tuple[LossFn, Sequence[Batch]]] | None = None
    ids: Callable[[str], Sequence[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of tuning: `add` gives the parameters with its leaves, `trains` the patterns of what of them moves."""

    about: str
    trains: tuple[str, ...] | Callable[[Ground], tuple[str, ...]]
    add: Callable[[Ground], Params] = lambda ground: ground.params
    rate: float = 1.0  # times the learning rate of full tuning
    rates: tuple[tuple[str, float], ...] = ()  # and of some of its leaves (OptimConfig.rates)
    base: Base = "as_is"  # how the frozen parameters are kept, unless the settings say more


class Prepared(NamedTuple):
    """The parameters that a method made, what of them trains, and the optimiser's settings with its rates; the method
    in words, and the paths of the leaves that it added."""

    params: Params
    selection: Selection
    optim: OptimConfig
    about: str
    added: frozenset[str]


def prepare(name: str, ground: Ground, optim: OptimConfig, *, also: tuple[str, ...] = ()) -> Prepared:
    """Makes the model ready to be tuned by the method of that name, or with the leaves of that pattern.

    `also` are patterns of what trains besides (a new head). What is frozen is kept as `settings.base` says: in
    bfloat16, or its dense kernels in int8 or NF4. Raises UserError for a name that is neither a method nor a pattern
    that matches, and for settings that the method cannot have.
    """
    method, params = _method(name, ground.params), with_added(name, ground)
    trains = method.trains if isinstance(method.trains, tuple) else method.trains(ground)
    selection = Selection((*trains, *also))
    rates = (*method.rates, *optim.rates)
    optim = dataclasses.replace(optim, learning_rate=optim.learning_rate * method.rate, rates=rates)
    base = method.base if ground.settings.base == "as_is" else ground.settings.base
    added = frozenset(params.keys() - ground.params.keys())
    return Prepared(_based(params, selection, base, added), selection, optim, method.about, added)


def with_added(name: str, ground: Ground) -> Params:
    """The model as the method of that name begins with it, nothing of it kept in fewer bits."""
    return _method(name, ground.params).add(ground)


def _method(name: str, params: Params) -> Method:
    if name in METHODS:
        return METHODS[name]
    try:
        apply_selection(Selection((name,)), params)
    except UserError as error:
        hint = nearest(name, METHODS) or f"; the methods are {', '.join(METHODS)}"
        raise UserError(f"tuning {name!r} is no method{hint}; and as a pattern: {error}") from error
    return Method("the leaves that a pattern names", (name,))


def plain(params: Params) -> Params:
    """The model as other programs know it: what a method added is put into the kernels, float32 in place of codes.

    Bottlenecks and virtual tokens go into no kernel; they stay beside.
    """
    return fold_lora(unchosen(soft_prompts.fold(dequantized(params))))


def with_trained(params: Params, tuned: Params, trained: Iterable[str]) -> Params:
    """The model that a method began with (`with_added`), and in it what trained, under the paths `trained`, of `tuned`.

    Frozen kernels are then those of `params`, in full, whatever the training kept in their place.
    """
    names = {_inner(path) for path in trained}
    return join(params) | {path: leaf for path, leaf in join(tuned).items() if _inner(path) in names}


def _inner(path: str) -> str:
    return (block_path(path) or (None, path))[1]


def _based(params: Params, selection: Selection, base: str, added: Container[str]) -> Params:
    """The parameters with what is frozen of the base in fewer bits."""
    if base == "as_is":
        return params
    trainable, frozen = apply_selection(selection, params)
    if base == "bfloat16":
        # A scale is one number, and an adapter is written with it: what was added keeps its bits.
        half = {path: leaf if path in added else _halved(leaf) for path, leaf in frozen.items()}
        return merge(trainable, half)
    kernels = {path for path in frozen if path.endswith("/kernel") and ("/attn/" in path or "/mlp/" in path)}
    if not kernels:
        raise UserError(f"base={base}: every dense kernel trains, so there is none to keep in {base}; choose another")
    return merge(trainable, quantize(frozen, base))


def _halved(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf


def _blocks(ground: Ground, first: bool) -> tuple[str, ...]:
    depth, blocks = ground.config.depth, ground.settings.blocks
    if blocks > depth:
        raise UserError(f"blocks={blocks}: the model has {depth}")
    return (first_blocks(blocks) if first else last_blocks(depth, blocks)).patterns


def _lora(ground: Ground, **more: object) -> Params:
    own = ground.settings
    return add_lora(
        ground.params,
        jax.random.key(ground.seed),
        rank=own.rank,
        alpha=own.alpha,
        targets=own.targets or KERNELS,
        **more,  # pyright: ignore[reportArgumentType]
    )


def _chosen(ground: Ground, criterion: _Criterion) -> Params:
    own = ground.settings
    choice: dict[str, Any] = {"targets": own.targets or KERNELS, "share": own.share}
    match criterion:
        case "entries":
            if not own.entries:
                raise UserError("entries is empty: name the file that says which entries train")
            indices = entries_of_file(ground.params, own.entries)
        case "random":
            indices = masks.random_entries(ground.params, **choice, seed=ground.seed)
        case "magnitude":
            indices = masks.magnitude_entries(ground.params, **choice)
        case _:
            if ground.examples is None:
                raise UserError(f"{criterion} looks at examples, and there are none here: use random or magnitude")
            loss_fn, batches = ground.examples(own.examples)
            if criterion == "fisher":
                indices = masks.fisher_entries(loss_fn, ground.params, batches, **choice)
            else:
                indices = masks.gradient_entries(loss_fn, ground.params, batches, **choice, score=criterion)
    return choose(ground.params, indices)


def _text_ids(ground: Ground) -> Sequence[int]:
    if ground.ids is None:
        raise UserError(f"text={ground.settings.text!r}: there is no tokenizer here to read it with")
    return ground.ids(ground.settings.text)


def _virtual(ground: Ground) -> tuple[ModelConfig, Params, jax.Array]:
    return ground.config, ground.params, jax.random.key(ground.seed)


def _prompt(ground: Ground) -> Params:
    init, ids = ("text", _text_ids(ground)) if ground.settings.text else ("vocabulary", ())
    return soft_prompts.add_prompt(*_virtual(ground), length=ground.settings.length, init=init, text_ids=ids)


def _prefix(ground: Ground) -> Params:
    # A text's keys and values are a far better start than noise (Li & Liang, section 7.4); any text will do.
    ids = _text_ids(ground) if ground.settings.text else tuple(range(min(ground.config.vocab_size, 64)))
    return soft_prompts.add_prefix(*_virtual(ground), length=ground.settings.length, init="text", text_ids=ids)


def _p_tuning(ground: Ground) -> Params:
    return soft_prompts.add_p_tuning(*_virtual(ground), length=ground.settings.length)


def _bottleneck(ground: Ground, halves: tuple[str, ...]) -> Params:
    return add_bottleneck(ground.params, jax.random.key(ground.seed), rank=ground.settings.rank, halves=halves)


def _head(ground: Ground) -> tuple[str, ...]:
    if not ground.params.keys() & {"head/kernel", "score/kernel"}:
        raise UserError("tuning head: this model's head is its embedding; use `embeddings`")
    return ("(head|score)/kernel", "norm/.*")


def _biases(ground: Ground) -> Params:
    has = any(path.endswith("/bias") for path in ground.params)
    return ground.params if has else add_biases(ground.params)


def _vera(ground: Ground) -> Params:
    own = ground.settings
    return add_vera(ground.params, jax.random.key(ground.seed), rank=own.rank, targets=own.targets or KERNELS)


_LOW_RANK, _ENTRIES = lora_only().patterns, chosen_only().patterns

METHODS: Mapping[str, Method] = {
    "full": Method("every weight and bias", (".*",)),
    "bias": Method("biases (BitFit, arXiv 2106.10199); a model without any gets them", (".*/bias",), _biases, 20),
    "norms": Method("the norms' scales and biases", (".*norm/(scale|bias)",), rate=30),
    "bias_norm": Method("biases and norms", bias_norm().patterns, _biases, 20),
    "attention": Method("the attention half of every block", ("blocks/attn/.*",), rate=2),
    "embeddings": Method("the embeddings", ("(embed|positions)/embedding",), rate=2),
    "head": Method("the head and the final norm", _head, rate=5),
    "first_blocks": Method("the first blocks", partial(_blocks, first=True), rate=2),
    "last_blocks": Method("the last blocks and the final norm", partial(_blocks, first=False), rate=3),
    "lora": Method("low-rank adapters (arXiv 2106.09685)", _LOW_RANK, _lora, 10),
    "rslora": Method(
        "low-rank adapters scaled by alpha / sqrt(rank) (arXiv 2312.03732)",
        _LOW_RANK,
        partial(_lora, stabilized=True),
        10,
    ),
    "lora_plus": Method(
        "low-rank adapters, b with 16 times a's rate (arXiv 2402.12354)", _LOW_RANK, _lora, 2, ((".*/lora_b", 16.0),)
    ),
    "lora_orthogonal": Method(
        "low-rank adapters that begin orthonormal", _LOW_RANK, partial(_lora, start="orthogonal"), 10
    ),
    "pissa": Method(
        "low-rank adapters that begin as the kernels' principal part (arXiv 2404.02948)",
        _LOW_RANK,
        partial(_lora, start="pissa"),
        4,
    ),
    "dora": Method(
        "low-rank adapters and the columns' norms (arXiv 2402.09353)",
        (r".*/lora_([ab]|magnitude)",),
        partial(_lora, magnitude=True),
        10,
    ),
    "qlora": Method(
        "low-rank adapters over kernels in NF4 (arXiv 2305.14314)", _LOW_RANK, _lora, 10, base="nf4"
    ),
    "vera": Method("vectors around shared random matrices (arXiv 2310.11454)", (r".*/vera_[db]",), _vera, 30),
    "ia3": Method(
        "factors on keys, values and the MLP (arXiv 2205.05638)",
        (r".*/ia3_(in|out)",),
        lambda ground: add_ia3(ground.params),
        30,
    ),
    "houlsby": Method(
        "small networks after both halves of a block (arXiv 1902.00751)",
        (r".*_adapter/.*",),
        partial(_bottleneck, halves=("attn", "mlp")),
        10,
    ),
    "pfeiffer": Method(
        "small networks after the MLPs (arXiv 2005.00247)",
        (r".*_adapter/.*",),
        partial(_bottleneck, halves=("mlp",)),
        10,
    ),
    "prompt": Method("virtual tokens (arXiv 2104.08691)", soft_prompts.PROMPT_TRAINS, _prompt, 30),
    "p_tuning": Method(
        "virtual tokens behind a small network (arXiv 2103.10385)", soft_prompts.P_TUNING_TRAINS, _p_tuning, 2
    ),
    "prefix": Method("keys and values before every text (arXiv 2101.00190)", soft_prompts.PREFIX_TRAINS, _prefix, 20),
    "fisher": Method(
        "the entries of the largest Fisher information (arXiv 2111.09839)",
        _ENTRIES,
        partial(_chosen, criterion="fisher"),
        6,
    ),
    "magnitude": Method("the largest entries", _ENTRIES, partial(_chosen, criterion="magnitude"), 6),
    "random": Method("random entries (SHiRA, arXiv 2406.13175)", _ENTRIES, partial(_chosen, criterion="random"), 6),
    "gradient": Method("the entries of the largest gradients", _ENTRIES, partial(_chosen, criterion="gradient"), 6),
    "movement": Method(
        "the entries that the loss moves away from zero most (arXiv 2005.07683)",
        _ENTRIES,
        partial(_chosen, criterion="movement"),
        6,
    ),
    "entries": Method("the entries that a file names", _ENTRIES, partial(_chosen, criterion="entries"), 6),
}
