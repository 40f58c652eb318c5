"""Models that were trained, made smaller: what matters beats chance, and cuts take turns with training."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from limbeck.distill.students.importance import Importance, importance
from limbeck.distill.students.prune import pruned, pruned_in_cuts
from limbeck.distill.students.shape import between, proposed, reshaped
from limbeck.model import transformer
from limbeck.model.config import ModelConfig
from limbeck.model.params import count
from limbeck.model.pretrained import load_pretrained
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.loss import token_loss


@pytest.fixture(scope="module")
def trained():
    """A tiny model that has learned a language in which a token says which three may stand two places on."""
    config = ModelConfig(24, 24, 2, 4, 2, 8, 32, 16, scan=False)
    follows = np.random.RandomState(0).rand(24, 24).argsort(1)[:, :3]

    def batch_at(step: int) -> dict:
        rng = np.random.RandomState(step)
        tokens = list(rng.randint(24, size=(2, 16)))
        for _ in range(15):
            tokens.append(follows[tokens[-2], rng.choice(3, 16, p=[0.8, 0.15, 0.05])])
        tokens_BT = np.stack(tokens, 1)
        shape = (16, 16)
        return {
            "tokens_BT": tokens_BT[:, :-1], "targets_BT": tokens_BT[:, 1:], "weights_BT": np.ones(shape, np.float32),
            "positions_BT": np.tile(np.arange(16), (16, 1)), "segments_BT": np.ones(shape, np.int32),
        }  # fmt: skip

    settings = FitConfig(300, 16, 16, OptimConfig(learning_rate=1e-2), log_every=300)
    fitted = fit(token_loss(config), init(config, jax.random.key(0)), batch_at, settings)
    return config, fitted.trainable, [batch_at(step) for step in range(1000, 1004)]


@partial(jax.jit, static_argnums=0)
def losses(config: ModelConfig, params, batch):
    return token_loss(config)(params, batch, jax.random.key(0))[0]


def loss_of(config: ModelConfig, params, batches) -> float:
    return float(np.mean([losses(config, params, batch) for batch in batches]))


def shuffled(measured: Importance, seed: int) -> Importance:
    """Importance by the throw of a die, with the true energies."""
    rng = np.random.RandomState(seed)
    fields = ("layers_L", "heads_LN", "channels_LF", "width_LD", "last_D")
    return measured._replace(**{name: rng.rand(*getattr(measured, name).shape) for name in fields})


@pytest.mark.parametrize(
    "size", [{"mlp_dim": 16}, {"num_heads": 2}, {"width": 18}, {"mlp_dim": 24, "width": 20}], ids=str
)
def test_what_matters_is_worth_more_than_as_much_by_chance(trained, size):
    config, params, batches = trained
    whole = loss_of(config, params, batches)
    assert whole < 1.3  # nats a token; the language has 0.77, and chance 3.18
    to = reshaped(config, **size)
    measured = importance(config, params, batches[:2])
    kept = loss_of(*pruned(config, params, measured, to), batches)
    by_chance = [loss_of(*pruned(config, params, shuffled(measured, seed), to), batches) for seed in range(5)]
    assert kept < np.mean(by_chance) - 0.05


def test_cuts_shrink_step_by_step_and_train_between(trained):
    config, params, batches = trained
    to = proposed(config, 0.3)
    shapes = between(config, to, 3)
    assert len(shapes) == 3 and shapes[-1] == to
    totals = [sum(leaf.size for leaf in transformer.shapes(shape).values()) for shape in [config, *shapes]]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4
    seen = []

    def train(config, params):
        seen.append(count(params))
        return {path: 0 * leaf if path == "norm/scale" else leaf for path, leaf in params.items()}

    def measure(config, params):
        return importance(config, params, batches[:1])

    last, small = pruned_in_cuts(config, params, shapes, measure, train)
    assert last == to and count(small) == totals[-1]
    assert seen == totals[1:3]
    assert not small["norm/scale"].any()  # what training made of it went on


@pytest.mark.shared
def test_a_real_model_in_half_its_size(shared_data):
    loaded = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    config, params, tokenizer = loaded.config, loaded.params, loaded.tokenizer
    assert tokenizer is not None
    lines = (shared_data / "tinystories" / "validation.jsonl").read_text("utf-8").splitlines()[:60]
    texts = [json.loads(line)["text"].replace("\n\n", "\n") for line in lines]
    ids = [token for text in texts for token in [tokenizer.bos_id, *tokenizer.encode(text)]]
    rows = np.asarray(ids[: 32 * 129]).reshape(32, 129)
    batches = [{"tokens_BT": part[:, :-1]} for part in (rows[:8], rows[8:16])]
    measured = importance(config, params, batches)
    held_out = [
        {
            "tokens_BT": rows[16:, :-1], "targets_BT": rows[16:, 1:], "weights_BT": np.ones((16, 128), np.float32),
            "positions_BT": np.tile(np.arange(128), (16, 1)), "segments_BT": np.ones((16, 128), np.int32),
        }
    ]  # fmt: skip
    for to in (reshaped(config, mlp_dim=128), reshaped(config, num_heads=6, num_kv_heads=3), proposed(config, 0.5)):
        small, own = pruned(config, params, measured, to)
        assert {path: leaf.shape for path, leaf in own.items()} == {
            path: leaf.shape for path, leaf in transformer.shapes(small).items()
        }
        by_chance = [loss_of(*pruned(config, params, shuffled(measured, seed), to), held_out) for seed in range(3)]
        kept = loss_of(small, own, held_out)
        assert kept < np.mean(by_chance) - 0.1
