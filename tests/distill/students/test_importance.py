"""How much each part of a model matters: by what it writes to the stream, at every token that is not padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import TOKENS_BT, built

from limbeck.distill.students.importance import importance
from limbeck.model import transformer

captured = jax.jit(
    lambda *args: transformer.captured(*args, names=("hidden",)), static_argnums=0
)


@pytest.mark.parametrize("variant", ["plain", "gpt2"])
def test_importance_is_what_it_says(variant):
    """Heads and channels against the stream of a model in which one part alone writes to it."""
    config, params = built(variant, depth=1)
    measured = importance(config, params, [{"tokens_BT": TOKENS_BT[:1]}, {"tokens_BT": TOKENS_BT[1:]}])
    none = params | {path: 0 * leaf for path, leaf in params.items() if "attn/o/" in path or "mlp/down/" in path}

    def added(**leaves) -> float:
        kernels = {f"blocks/{name.replace('_', '/')}/kernel": leaf for name, leaf in leaves.items()}
        _, seen = captured(config, none | kernels, TOKENS_BT)
        return float(jnp.linalg.norm(seen["hidden"][1] - seen["hidden"][0], axis=-1).mean())

    o_ND, down_FD = params["blocks/attn/o/kernel"], params["blocks/mlp/down/kernel"]
    for head in range(4):
        rows = jnp.arange(16) // 4 == head
        assert measured.heads_LN[0, head] == pytest.approx(added(attn_o=jnp.where(rows[:, None], o_ND, 0)), rel=1e-4)
    _, seen = captured(config, params, TOKENS_BT)
    before, after = np.asarray(seen["hidden"], np.float64)
    cosine = (before * after).sum(-1) / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1)
    assert measured.layers_L[0] == pytest.approx((1 - cosine).mean(), rel=1e-4)

    def normed(x_BTD, name):
        x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True) if config.norm == "layer" else x_BTD
        np.testing.assert_allclose(measured.energy[name].squeeze(), np.square(x_BTD).mean((0, 1)), rtol=1e-4)
        stem = "" if name == "norm" else "blocks/"
        scale, bias = (np.asarray(params.get(f"{stem}{name}/{leaf}", 0.0)).squeeze() for leaf in ("scale", "bias"))
        return x_BTD / np.sqrt(np.square(x_BTD).mean(-1, keepdims=True)) * scale + bias

    np.testing.assert_allclose(measured.last_D, np.abs(normed(after, "norm")).mean((0, 1)), rtol=1e-3)
    _, seen = captured(config, params | {"blocks/mlp/down/kernel": 0 * down_FD}, TOKENS_BT)
    bias_D = np.asarray(params.get("blocks/mlp/down/bias", jnp.zeros((1, 12))))[0]
    middle = np.asarray(seen["hidden"], np.float64)[1] - bias_D
    read = (np.abs(normed(before, "attn_norm")) + np.abs(normed(middle, "mlp_norm"))) / 2
    np.testing.assert_allclose(measured.width_LD[0], read.mean((0, 1)), rtol=1e-3)
    # A channel of the MLP reads what attention wrote, so attention stays and its update is taken off.
    for channel in (0, 7):
        alone = params | {"blocks/mlp/down/kernel": down_FD.at[0].mul((jnp.arange(10) == channel)[:, None])}
        _, seen = captured(config, alone, TOKENS_BT)
        size = np.linalg.norm(np.asarray(seen["hidden"])[1] - bias_D - middle, axis=-1).mean()
        assert measured.channels_LF[0, channel] == pytest.approx(size, rel=1e-3)


def test_padding_is_not_measured():
    config, params = built("gpt2")
    positions_BT = jnp.tile(jnp.arange(12), (3, 1))
    garbage_BT = jnp.concatenate([TOKENS_BT, 28 - TOKENS_BT[:, :4]], 1)
    rows = {
        "tokens_BT": garbage_BT,
        "positions_BT": jnp.pad(positions_BT, ((0, 0), (0, 4))),
        "segments_BT": jnp.pad(jnp.ones_like(TOKENS_BT), ((0, 0), (0, 4))),
        "weights_BT": jnp.zeros((3, 16)),
    }
    with_padding = importance(config, params, [rows])
    without = importance(config, params, [{"tokens_BT": TOKENS_BT}])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), with_padding, without)
