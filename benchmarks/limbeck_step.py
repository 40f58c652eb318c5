"""Limbeck's training step on random tokens, as the benchmarks take it. Not meant to be run by hand."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.transformer import apply, init
from limbeck.train.config import OptimConfig
from limbeck.train.loss import Batch, LossFn, Metrics, token_loss
from limbeck.train.optim import make_optimizer
from limbeck.train.step import init_state, make_step


def next_token_batch(tokens_BT: np.ndarray) -> Batch:
    """One document a row; the last token has no next one and weighs nothing."""
    rows, length = tokens_BT.shape
    weights_BT = np.ones((rows, length), np.float32)
    weights_BT[:, -1] = 0.0
    return {
        "tokens_BT": tokens_BT,
        "targets_BT": np.roll(tokens_BT, -1, 1),
        "weights_BT": weights_BT,
        "positions_BT": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segments_BT": np.ones((rows, length), np.int32),
    }


def random_batch(vocab_size: int, rows: int, length: int) -> Batch:
    """Tokens drawn evenly from the vocabulary, always the same."""
    rng = np.random.default_rng(0)
    return next_token_batch(rng.integers(0, vocab_size, (rows, length)).astype(np.int32))


def llama(width: int, depth: int, vocab_size: int, length: int, **more: Any) -> ModelConfig:
    """A Llama of usual proportions: heads of 32, an MLP of 2.75 widths."""
    heads = max(1, width // 32)
    return ModelConfig(
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        num_heads=heads,
        num_kv_heads=max(1, heads // 2),
        head_dim=width // heads,
        mlp_dim=width * 11 // 4,
        max_len=length,
        **more,
    )


def plain_loss(config: ModelConfig) -> LossFn:
    """`token_loss` the short way: float32 logits [B, T, V] of the whole batch, and no loop."""

    def loss_fn(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        own = {name: jnp.asarray(array) for name, array in batch.items()}
        logits_BTV = apply(
            config, params, own["tokens_BT"], positions_BT=own["positions_BT"], segments_BT=own["segments_BT"]
        ).logits_BTV
        picked_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), own["targets_BT"][..., None], -1)[..., 0]
        weight = own["weights_BT"].sum()
        loss = -(own["weights_BT"] * picked_BT).sum() / weight
        return loss, {"loss": loss, "weight": weight}

    return loss_fn


class Trainer:
    """Parameters that train, all of them unless some are `frozen`, with AdamW unless `optim` says otherwise."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params | None = None,
        loss_fn: LossFn | None = None,
        optim: OptimConfig = OptimConfig(),  # noqa: B008
        frozen: Params | None = None,
    ) -> None:
        self.config, self.frozen = config, frozen or {}
        self.optimizer = make_optimizer(optim, 1000)
        self.train = make_step(loss_fn or token_loss(config), self.optimizer)
        self.state = init_state(self.optimizer, params or init(config, jax.random.key(0)))
        self.key = jax.random.key(0)

    def step(self, batch: Batch) -> jax.Array:
        """Takes a step; its loss, perhaps not worked out yet."""
        self.state, metrics = self.train(self.state, self.frozen, batch, self.key)
        return metrics["loss"]

    def finish(self, loss: jax.Array) -> float:
        """Waits until the step is over."""
        jax.block_until_ready(self.state)
        return float(loss)

    def seconds(self, batch: Batch, steps: int = 1) -> float:
        """Seconds a step, over so many."""
        began = time.perf_counter()
        losses = [self.step(batch) for _ in range(steps)]
        self.finish(losses[-1])
        return (time.perf_counter() - began) / steps


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms: values grow as sizes to this power."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
