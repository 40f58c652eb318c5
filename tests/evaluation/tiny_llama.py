"""A tiny Llama for lm-eval to ask, and its requests."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.pretrained import save_pretrained
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer
from limbeck.model.transformer import init

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size,
    width=16,
    depth=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=16,
    max_len=32,
    tied_embedding=False,
    family="llama",
)


def weights(config: ModelConfig, seed: int, spread: float) -> Params:
    """Weights of a seed, `spread` times as large as a new model's."""
    return {path: spread * leaf for path, leaf in init(config, jax.random.key(seed)).items()}


def saved(folder: Path, tokenizer: Tokenizer, seed: int, spread: float, **shape: int) -> Path:
    """The folder, with a somewhat larger Llama that has this vocabulary and the weights of a seed."""
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, width=32, depth=2, **shape)
    save_pretrained(folder, config, weights(config, seed, spread), tokenizer)
    return folder


def instance(kind: str, *args: Any) -> Any:
    """A request, as lm-eval makes it of a task's record."""
    return pytest.importorskip("lm_eval.api.instance").Instance(kind, {}, args, 0)
