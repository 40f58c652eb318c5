"""The loss over all rows is one mean by weight, however the rows fall into batches."""

import jax
import numpy as np
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.transformer import init
from limbeck.train.data import pack, pad
from limbeck.train.examples import example
from limbeck.train.loss import token_loss
from limbeck.train.validation import mean_loss

CONFIG = ModelConfig(vocab_size=31, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=16)
PARAMS = init(CONFIG, jax.random.key(0))
RNG = np.random.default_rng(0)
EXAMPLES = [example(RNG.integers(1, 31, n).tolist(), 1) for n in RNG.integers(3, 16, 21)]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("rows", [pack(EXAMPLES, 16), pad(EXAMPLES, [8, 16])], ids=["packed", "padded"])
def test_the_mean_over_all_rows(rows, batch_size):
    found = mean_loss(token_loss(CONFIG), rows, batch_size)(PARAMS)
    assert found["weight"] == sum(len(one.ids) - 1 for one in EXAMPLES)
    alone = [mean_loss(token_loss(CONFIG), pack([one], 16), 1)(PARAMS) for one in EXAMPLES]
    total = sum(one["loss"] * one["weight"] for one in alone)
    np.testing.assert_allclose(found["loss"], total / found["weight"], rtol=1e-5)
