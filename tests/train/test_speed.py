"""Measured, not only counted: what a step costs, as ratios within one run. `make bench` prints the table."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.flops import step_flops
from limbeck.model.transformer import init
from limbeck.train.adapters import add_lora
from limbeck.train.config import OptimConfig
from limbeck.train.loss import token_loss
from limbeck.train.optim import make_optimizer
from limbeck.train.select import Selection, apply_selection, bias_norm, last_blocks, lora_only
from limbeck.train.step import init_state, make_step

pytestmark = pytest.mark.bench

CONFIG = ModelConfig(
    vocab_size=4096, width=256, depth=6, num_heads=8, num_kv_heads=8, head_dim=32, mlp_dim=688, max_len=128,
    attention_bias=True, mlp_bias=True,
)
ROWS, LENGTH = 16, 128


def median_seconds(call, repeats: int = 9) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[repeats // 2]


def matmul_rate() -> float:
    """FLOPs a second of a float32 product, the machine's roofline."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(jnp.matmul)
    return 2 * 2048**3 / median_seconds(lambda: product(a, a).block_until_ready())


def measured(config: ModelConfig, params: dict, selection: Selection) -> tuple[float, float]:
    """(seconds of a step, FLOPs of a step as counted from shapes)."""
    ids = jax.random.randint(jax.random.key(1), (ROWS, LENGTH + 1), 0, config.vocab_size)
    batch = {
        "tokens_BT": ids[:, :-1],
        "targets_BT": ids[:, 1:],
        "weights_BT": jnp.ones((ROWS, LENGTH)),
        "positions_BT": jnp.tile(jnp.arange(LENGTH), (ROWS, 1)),
        "segments_BT": jnp.ones((ROWS, LENGTH), jnp.int32),
    }
    trainable, frozen = apply_selection(selection, params)
    optimizer = make_optimizer(OptimConfig(), 100)
    step = make_step(token_loss(config), optimizer)
    state = init_state(optimizer, trainable)

    def run() -> None:
        nonlocal state
        state, _ = step(state, frozen, batch, jax.random.key(0))
        jax.block_until_ready(state.trainable)

    return median_seconds(run), step_flops(config, trainable, frozen, ROWS * LENGTH, LENGTH / 2)


def test_tuning_less_costs_less(capsys):
    params = init(CONFIG, jax.random.key(0))
    lora = add_lora(params, jax.random.key(0), rank=8)
    kinds = {
        "full": (CONFIG, params, Selection()),
        "full, unrolled": (dataclasses.replace(CONFIG, scan=False), params, Selection()),
        "full, rematerialised": (dataclasses.replace(CONFIG, remat="full"), params, Selection()),
        "lora on q, v": (CONFIG, lora, lora_only()),
        "biases and norms": (CONFIG, params, bias_norm()),
        "last block": (CONFIG, params, last_blocks(CONFIG.depth)),
    }
    rate = matmul_rate()
    seconds, flops = zip(*(measured(*kind) for kind in kinds.values()), strict=True)
    with capsys.disabled():
        print(f"\nmatmul {rate / 1e9:.0f} GFLOP/s")
        for name, took, work in zip(kinds, seconds, flops, strict=True):
            print(
                f"{name:22} {took * 1e3:6.0f} ms  {took / seconds[0]:5.2f} of full  counted {work / flops[0]:5.2f}  "
                f"{work / took / rate:5.2f} of the matmul rate"
            )
    by_name = dict(zip(kinds, seconds, strict=True))
    assert by_name["last block"] < 0.7 * by_name["full"]
    assert by_name["lora on q, v"] < 0.95 * by_name["full"]
