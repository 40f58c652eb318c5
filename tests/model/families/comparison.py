"""What Limbeck computes for a folder of `make_fixtures.py`, set against what is written in it. Needs no PyTorch."""

import dataclasses
import functools
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file

from limbeck.model.config import ModelConfig
from limbeck.model.decode import generate, greedy
from limbeck.model.params import Params, join
from limbeck.model.pretrained import Pretrained, load_pretrained, save_pretrained
from limbeck.model.pretrained.layout import tensors
from limbeck.model.transformer import classify, hidden, logits

LOGITS = 2e-4  # absolute, hidden states too
GRADIENTS = 1e-4  # relative to the largest entry of the tensor; the loss relative to itself
TRAINED_LOSSES = 1e-5  # absolute

# Most of the time goes into compiling; the tiny models need no fast code.
_COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_OPTIMIZER = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)


class Case(NamedTuple):
    """A folder, the model that we read from it, and what transformers computed."""

    folder: Path
    model: Pretrained
    expected: dict[str, np.ndarray]

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def params(self) -> Params:
        return self.model.params


@functools.cache
def load(folder: Path) -> Case:
    """The case in a folder; loaded once."""
    return Case(folder, load_pretrained(folder), load_file(folder / "expected.safetensors"))


class Measured(NamedTuple):
    """One training step: what the step saw, and the parameters after it."""

    loss: jax.Array
    out_BTV: jax.Array  # logits, or a classifier's scores at every position
    hidden_BTD: jax.Array
    grads: Params
    params: Params
    state: Any


def _forward(config: ModelConfig, params: Params, tokens_BT: Any, mask_BT: Any) -> tuple[jax.Array, jax.Array]:
    positions_BT = jnp.maximum(jnp.cumsum(mask_BT, 1) - 1, 0)
    hidden_BTD, _ = hidden(config, params, tokens_BT, positions_BT=positions_BT, segments_BT=mask_BT)
    if config.labels:
        return hidden_BTD @ params["score/kernel"], hidden_BTD
    return logits(config, params, hidden_BTD), hidden_BTD


forward = jax.jit(_forward, static_argnums=0, compiler_options=_COMPILER)


@partial(jax.jit, static_argnums=0, compiler_options=_COMPILER)
def measure(config: ModelConfig, params: Params, state: Any, tokens_BT: Any, mask_BT: Any, labels_B: Any) -> Measured:
    """Loss, outputs, gradients and an AdamW step, in one compiled function for both paddings and all steps."""

    def loss_and_outputs(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        out_BTV, hidden_BTD = _forward(config, params, tokens_BT, mask_BT)
        if config.labels:
            last_B = jnp.max(jnp.where(mask_BT > 0, jnp.arange(mask_BT.shape[1]), 0), 1)
            score_BC = out_BTV[jnp.arange(len(last_B)), last_B]
            loss = _label_loss(score_BC, labels_B)
        else:
            pair_BT = mask_BT[:, :-1] * mask_BT[:, 1:]
            loss_BT = optax.softmax_cross_entropy_with_integer_labels(out_BTV[:, :-1], tokens_BT[:, 1:])
            loss = (loss_BT * pair_BT).sum() / pair_BT.sum()
        return loss, (out_BTV, hidden_BTD)

    (loss, outputs), grads = jax.value_and_grad(loss_and_outputs, has_aux=True)(params)
    updates, state = _OPTIMIZER.update(grads, state, params)
    return Measured(loss, *outputs, grads, optax.apply_updates(params, updates), state)  # type: ignore[arg-type]


def _label_loss(score_BC: jax.Array, labels_B: jax.Array) -> jax.Array:
    if score_BC.shape[1] == 1:
        return jnp.mean((score_BC[:, 0] - labels_B) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(score_BC, labels_B).mean()


@functools.cache
def steps(folder: Path) -> list[Measured]:
    """Four forward passes of the right-padded batch with a step of AdamW after each."""
    case = load(folder)
    batch = (case.expected["tokens_BT"], case.expected["mask_BT"], _labels(case))
    params, state = case.params, _OPTIMIZER.init(case.params)
    out = []
    for _ in range(4):
        out.append(measure(case.config, params, state, *batch))
        params, state = out[-1].params, out[-1].state
    return out


def _labels(case: Case) -> np.ndarray:
    return case.expected.get("labels_B", np.zeros(len(case.expected["tokens_BT"]), np.int32))


def left(x_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    """Right-padded rows, padded on the left instead."""
    return np.stack([np.roll(row, int((1 - mask).sum())) for row, mask in zip(x_BT, mask_BT, strict=True)])


def assert_close(actual: Any, expected: np.ndarray, mask_BT: np.ndarray, what: str) -> None:
    """Within 2e-4 at every real position."""
    real = mask_BT.astype(bool)
    distance = np.abs(np.asarray(actual)[real] - expected[real]).max()
    assert distance <= LOGITS, f"{what}: off by {distance:.2e}"


def check_right_padded(case: Case) -> None:
    measured, mask_BT = steps(case.folder)[0], case.expected["mask_BT"]
    assert_close(measured.out_BTV, case.expected["logits_BTV"], mask_BT, "logits")
    assert_close(measured.hidden_BTD, case.expected["hidden_BTD"], mask_BT, "hidden states")


def check_left_padded(case: Case) -> None:
    mask_BT = case.expected["mask_BT"]
    batch = (left(case.expected["tokens_BT"], mask_BT), left(mask_BT, mask_BT), _labels(case))
    measured = measure(case.config, case.params, _OPTIMIZER.init(case.params), *batch)
    assert_close(measured.out_BTV, case.expected["left_logits_BTV"], batch[1], "left-padded logits")
    np.testing.assert_allclose(measured.loss, case.expected["losses"][0], rtol=GRADIENTS)


def check_gradients(case: Case) -> None:
    measured, expected = steps(case.folder)[0], case.expected
    np.testing.assert_allclose(measured.loss, expected["losses"][0], rtol=GRADIENTS)
    grads = {tensor.name: tensor.make() for tensor in tensors(case.config, join(measured.grads))}
    names = {key.removeprefix("grad/") for key in expected if key.startswith("grad/")}
    assert grads.keys() == names
    for name in names:
        reference = expected[f"grad/{name}"]
        distance = np.abs(grads[name] - reference).max() / np.abs(reference).max()
        assert distance <= GRADIENTS, f"gradient of {name}: off by {distance:.2e} of its largest entry"


def check_training(case: Case) -> None:
    losses = np.stack([measured.loss for measured in steps(case.folder)])
    np.testing.assert_allclose(losses, case.expected["losses"], rtol=0, atol=TRAINED_LOSSES)


@partial(jax.jit, static_argnums=(0, 3), compiler_options=_COMPILER)
def _write_on(config: ModelConfig, params: Params, prompt_BT: jax.Array, count: int) -> jax.Array:
    batch, length = prompt_BT.shape
    never_V = jnp.zeros(config.vocab_size, bool)
    lengths_B = jnp.full(batch, length, jnp.int32)
    return generate(config, params, prompt_BT, lengths_B, greedy(batch), never_V, count).tokens_BT


def check_greedy(case: Case) -> None:
    prefixes = [key.removesuffix("prompt_BT") for key in case.expected if key.endswith("prompt_BT")]
    assert prefixes or case.config.labels
    for prefix in prefixes:
        prompt_BT = jnp.asarray(case.expected[f"{prefix}prompt_BT"], jnp.int32)
        written_BT = case.expected[f"{prefix}greedy_BT"]
        np.testing.assert_array_equal(
            _write_on(case.config, case.params, prompt_BT, written_BT.shape[1]), written_BT, f"after {prefix}prompt_BT"
        )


def check_short_batch(case: Case) -> None:
    """Longrope in texts that the short factors serve."""
    tokens_BT, mask_BT = case.expected["short_tokens_BT"], case.expected["short_mask_BT"]
    out_BTV, _ = forward(case.config, case.params, tokens_BT, mask_BT)
    assert_close(out_BTV, case.expected["short_logits_BTV"], mask_BT, "logits")


def check_scores(case: Case) -> None:
    lengths_B = jnp.asarray(case.expected["mask_BT"].sum(1))
    score_BC = classify(case.config, case.params, jnp.asarray(case.expected["tokens_BT"]), lengths_B)
    np.testing.assert_allclose(score_BC, case.expected["scores_BC"], rtol=0, atol=LOGITS)


def check_published_config(case: Case, folder: Path) -> None:
    """The spelling of published checkpoints means the same."""
    folder.mkdir()
    shutil.copy(case.folder / "config_published.json", folder / "config.json")
    shutil.copy(case.folder / "model.safetensors", folder)
    again = load_pretrained(folder).config
    assert _fields(again) == _fields(case.config)


def check_round_trip(case: Case, folder: Path) -> None:
    """Saved and loaded, the config is equal and every bit of the parameters the same, in the file and in memory."""
    save_pretrained(folder, case.config, case.params)
    again = load_pretrained(folder)
    assert _fields(again.config) == _fields(case.config)
    _assert_same_bits(again.params, case.params)
    saved: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        saved |= load_file(file)
    _assert_same_bits(saved, load_file(case.folder / "model.safetensors"))


def _fields(config: ModelConfig) -> dict[str, Any]:
    """The whole config, with the field that `==` leaves out."""
    return dataclasses.asdict(config)


def _assert_same_bits(some: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert some.keys() == other.keys()
    for name in some:
        one, two = np.asarray(some[name]), np.asarray(other[name])
        assert one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes(), name
