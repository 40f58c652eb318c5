"""What a training begins with: a foundation from a folder, or random parameters of a named size."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.model.pretrained import load_pretrained
from limbeck.model.sizes import SIZES, UNROLLED, sized
from limbeck.model.tokenizer import Tokenizer, load_tokenizer, train_bpe
from limbeck.model.transformer import init
from limbeck.train.adapters import add_head, add_lora
from limbeck.train.select import Selection


class Start(NamedTuple):
    """A model, its tokenizer, and what of it is to train."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    selection: Selection


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
        return Start(config, loaded.params, loaded.tokenizer, Selection())
    path = Path(tokenizer) if tokenizer else rundir / "tokenizer.json"
    if not tokenizer and not path.exists():
        train_bpe(texts, vocab_size).save(path)
    own = load_tokenizer(path)
    config = sized(model, own.vocab_size, max_len)
    return Start(config, init(config, jax.random.key(seed)), own, Selection())


def adapted(
    start: Start, *, labels: Sequence[str], trains: Sequence[str], lora_rank: int, lora_targets: str, seed: int
) -> Start:
    """The same with a head for `labels`, if there are any, and with low-rank adapters, if their rank is not 0.

    `trains` are the patterns of what trains, in whose place adapters come; a new head always trains.
    """
    config, params, patterns = start.config, start.params, tuple(trains)
    key, head_key = jax.random.split(jax.random.key(seed))
    if lora_rank:
        params = add_lora(params, key, rank=lora_rank, targets=lora_targets)
        patterns = (r".*/lora_[ab]",)
    if labels:
        config, params = add_head(config, params, labels, head_key)
        patterns = (*patterns, "score/.*")
    return Start(config, params, start.tokenizer, Selection(patterns))
