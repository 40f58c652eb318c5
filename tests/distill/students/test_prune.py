"""Smaller models out of a larger one: what is dead goes without a trace, what matters is measured and kept."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.students.importance import Importance, importance
from limbeck.distill.students.prune import from_layers, picked, pruned, pruned_in_cuts
from limbeck.distill.students.shape import axes, between, proposed, reshaped, sizes
from limbeck.model import transformer
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import block_path, count, cut
from limbeck.model.pretrained import load_pretrained
from limbeck.model.rope import Rope
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.loss import token_loss

TINY = ModelConfig(vocab_size=29, width=12, depth=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=10, max_len=16)
VARIANTS = {
    "plain": {},
    "gpt2": {
        "norm": "layer", "positions": "learned", "gated_mlp": False, "activation": "gelu",
        "attention_bias": True, "output_bias": True, "mlp_bias": True, "embedding_scale": 12**0.5,
    },
    "gemma": {
        "norm_plus_one": True, "norm_placement": "both", "window": 4, "global_layers": (1,), "qk_norm": "head",
        "local_rope": Rope(100.0), "embedding_scale": 12**0.5,
    },
    "olmo": {
        "norm_placement": "post", "qk_norm": "projection", "unrotated_layers": (1,), "tied_embedding": False,
        "norm_eps": 1e-12,  # too small to tell how many heads a norm is over
    },
    "neox": {"norm": "layer", "parallel_residual": True, "rope": Rope(share=0.5), "tied_embedding": False},
    "classifier": {"labels": ("a", "b", "c"), "window": 3},
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)
apply = jax.jit(transformer.apply, static_argnums=0)
classify = jax.jit(transformer.classify, static_argnums=0)
captured = jax.jit(
    lambda *args: transformer.captured(*args, names=("hidden",)), static_argnums=0
)
TOKENS_BT = jax.random.randint(jax.random.key(3), (3, 12), 0, 29)


def built(variant: str = "plain", **more):
    """A model of noise, its norms and biases too, so that nothing hides behind ones and zeros."""
    config = dataclasses.replace(TINY, **(VARIANTS[variant] | more))
    rng = np.random.RandomState(0)

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = 0.3 * rng.normal(size=shape)
        return noise + (1.0 if path.endswith("scale") and not config.norm_plus_one else 0.0)

    return config, {
        path: jnp.asarray(leaf(path, each.shape), jnp.float32) for path, each in transformer.shapes(config).items()
    }


def outputs(config, params):
    """What the model's head says."""
    if config.labels:
        return classify(config, params, TOKENS_BT, jnp.full(3, 12))
    return apply(config, params, TOKENS_BT).logits_BTV


def centred(config, params):
    """The same model with a stream whose channels have mean zero, which layer norm takes away in any case."""
    if config.norm == "rms":
        return params
    writers = ("embed", "positions", "attn/o", "mlp/down")
    return {
        path: leaf - leaf.mean(-1, keepdims=True) if any(f"{name}/" in path for name in writers) else leaf
        for path, leaf in params.items()
    }


def with_dead_parts(config, params):
    """(config, params) that computes the same with more of everything, all of which is dead but not all zero."""
    rng = np.random.RandomState(0)
    group = config.num_heads // config.num_kv_heads
    big = dataclasses.replace(
        config, width=17, depth=4, num_kv_heads=3, num_heads=3 * (group + 1), mlp_dim=13,
        norm_eps=config.norm_eps * config.width / 17, global_layers=(2,) if config.global_layers else (),
        unrotated_layers=(2,) if config.unrotated_layers else (),
    )  # fmt: skip
    if config.embedding_scale != 1:
        big = dataclasses.replace(big, embedding_scale=17**0.5)
    layers = [0, 2]  # the dead ones are 1 and 3
    size, shapes = sizes(big), transformer.shapes(big)
    width = np.sort(rng.permutation(17)[: config.width])

    def alive_of(layer: int) -> dict[str, np.ndarray]:
        own = np.random.RandomState(layer)
        groups = np.sort(own.permutation(3)[: config.num_kv_heads])
        heads = [k * (group + 1) + np.sort(own.permutation(group + 1)[:group]) for k in groups]
        numbers = np.arange(config.head_dim)
        return {
            "D": width,
            "F": np.sort(own.permutation(13)[: config.mlp_dim]),
            "K": (groups[:, None] * config.head_dim + numbers).ravel(),
            "N": (np.concatenate(heads)[:, None] * config.head_dim + numbers).ravel(),
        }

    def one(path: str, leaf: np.ndarray | None, letters: str, alive: dict) -> np.ndarray:
        """A leaf of one layer: noise where a dead thing reads, or what is read of it is zero; else zeros."""
        noise = rng.normal(size=[size[letter] for letter in letters]).astype(np.float32)
        module, _, name = path.rpartition("/")
        if leaf is None:  # a dead layer
            return noise * (module not in ("attn/o", "mlp/down") and not module.endswith("_post_norm"))
        free = ["mlp/up", "mlp/gate", "head", "score"] + ["attn/q", "attn/k"] * (config.qk_norm != "projection")
        out = noise * (name == "scale" or module in free)
        new = leaf
        if name == "scale" and letters[-1] in "DNK":
            one_more = 1.0 if config.norm_plus_one else 0.0
            new = (leaf + one_more) * (leaf.shape[-1] / size[letters[-1]]) ** 0.5 - one_more
        out[np.ix_(*(alive.get(letter, np.arange(size[letter])) for letter in letters))] = new
        return out

    made = {}
    for path in shapes:
        leaf, letters = np.asarray(params[path]), axes(big, path)
        parsed = block_path(path)
        if parsed is None:
            made[path] = one(path, leaf, letters, {"D": width})
            continue
        pieces = [
            one(parsed[1], leaf[layers.index(layer)] if layer in layers else None, letters[1:], alive_of(layer))
            for layer in range(4)
        ]
        made[path] = np.stack(pieces)
    if config.embedding_scale != 1:
        factor = config.embedding_scale / 17**0.5
        made["embed/embedding"] *= factor
        one_more = 1.0 if config.norm_plus_one else 0.0
        made["norm/scale"] = (made["norm/scale"] + one_more) / factor - one_more
        made |= {path: leaf / factor for path, leaf in made.items() if path == "norm/bias"}
    return big, {path: jnp.asarray(leaf) for path, leaf in made.items()}


@variants
def test_what_is_dead_goes_without_a_trace(variant):
    config, params = built(variant)
    params = centred(config, params)
    big, padded = with_dead_parts(config, params)
    # The test's own padding first: it must not change anything, or there is nothing to take back.
    np.testing.assert_allclose(outputs(big, padded), outputs(config, params), rtol=1e-4, atol=1e-5)
    measured = importance(big, padded, [{"tokens_BT": TOKENS_BT}])
    assert np.abs(measured.layers_L[[1, 3]]).max() < 1e-6 < measured.layers_L[[0, 2]].min()
    small, back = pruned(big, padded, measured, config)
    assert small == config
    assert {path: leaf.shape for path, leaf in back.items()} == {path: leaf.shape for path, leaf in params.items()}
    for path in params:
        np.testing.assert_allclose(back[path], params[path], rtol=1e-6, atol=1e-6, err_msg=path)


def test_a_stack_in_runs_is_measured_and_pruned_as_a_whole_one():
    config, params = built()
    to = reshaped(config, width=8, depth=1, num_heads=2, num_kv_heads=1, mlp_dim=6)
    batches = [{"tokens_BT": TOKENS_BT}]
    whole, pieces = (importance(config, some, batches) for some in (params, cut(params, [1])))
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    (_, one), (_, other) = (pruned(config, some, whole, to) for some in (params, cut(params, [2])))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@variants
def test_chosen_layers_compute_what_they_did(variant):
    """Against the whole model in which the other layers add nothing."""
    config, params = built(variant, depth=4)
    layers = [1, 3]
    silent = dict(params)
    for path, leaf in params.items():
        parsed = block_path(path)
        if parsed and parsed[1].startswith(("attn/o/", "mlp/down/", "attn_post_norm", "mlp_post_norm")):
            # A norm's scale may be kept as its difference from one.
            off = -1.0 if path.endswith("scale") and config.norm_plus_one else 0.0
            silent[path] = leaf.at[jnp.asarray([i for i in range(4) if i not in layers])].set(off)
    small, own = from_layers(config, cut(params, [2]), layers)
    assert small.depth == len(layers)
    np.testing.assert_allclose(outputs(small, own), outputs(config, silent), rtol=1e-5, atol=1e-5)
    if variant == "gemma":
        assert (small.window, small.global_layers) == (4, (0,))
        assert from_layers(config, params, [1])[0].window is None  # it alone sees everything


@pytest.mark.parametrize(
    "pick, depth, of, layers",
    [
        ("first", 2, 5, (0, 1)), ("last", 2, 5, (3, 4)), ("spread", 2, 5, (0, 4)), ("spread", 3, 5, (0, 2, 4)),
        ("spread", 6, 12, (0, 2, 4, 7, 9, 11)), ("spread", 1, 5, (0,)), ("spread", 5, 5, (0, 1, 2, 3, 4)),
    ],
)  # fmt: skip
def test_layers_by_name(pick, depth, of, layers):
    assert picked(pick, depth, of) == layers


@pytest.mark.parametrize("of", [1, 2, 7, 13, 32])
def test_spread_layers_are_always_different(of):
    for depth in range(1, of + 1):
        layers = picked("spread", depth, of)
        assert len(set(layers)) == depth and layers == tuple(sorted(layers))
        assert layers[0] == 0 and (depth == 1 or layers[-1] == of - 1)


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


def table(config: ModelConfig, **given) -> Importance:
    """An importance that is even but for what is given."""
    c = config
    names = ("attn_norm", "mlp_norm")
    even = Importance(
        np.ones(c.depth), np.ones((c.depth, c.num_heads)), np.ones((c.depth, c.mlp_dim)), np.ones((c.depth, c.width)),
        np.ones(c.width), {name: np.ones((c.depth, c.width)) for name in names} | {"norm": np.ones(c.width)},
    )  # fmt: skip
    return even._replace(**{name: np.asarray(value, float) for name, value in given.items()})


@pytest.mark.parametrize(
    "heads, kv_heads, queries_stay, keys_stay",
    [
        (2, 1, [[2, 3], [0, 1]], [[1], [0]]),  # a whole group, by the sum of its queries
        (2, 2, [[1, 3], [0, 2]], [[0, 1], [0, 1]]),  # the best query of each group
        (1, 1, [[1], [0]], [[0], [0]]),  # the group by what would stay of it
    ],
)
def test_heads_go_in_groups_or_evenly_within_them(heads, kv_heads, queries_stay, keys_stay):
    config, params = built()
    measured = table(config, heads_LN=[[1, 9, 5, 6], [8, 7, 6, 5]])
    _, small = pruned(config, params, measured, reshaped(config, num_heads=heads, num_kv_heads=kv_heads))
    for name, stay in (("q", queries_stay), ("k", keys_stay), ("v", keys_stay)):
        kernel = params[f"blocks/attn/{name}/kernel"].reshape(2, 12, -1, 4)
        own = small[f"blocks/attn/{name}/kernel"].reshape(2, 12, -1, 4)
        for layer in range(2):
            np.testing.assert_array_equal(own[layer], kernel[layer][:, stay[layer]])
    o_LNHD = params["blocks/attn/o/kernel"].reshape(2, 4, 4, 12)
    own = small["blocks/attn/o/kernel"].reshape(2, -1, 4, 12)
    for layer in range(2):
        np.testing.assert_array_equal(own[layer], o_LNHD[layer, jnp.asarray(queries_stay[layer])])


def test_the_width_is_cut_alike_everywhere_by_what_the_layers_that_stay_read():
    config, params = built()
    width_LD = np.ones((2, 12))
    width_LD[0, :6], width_LD[1, 6:] = 100, 5
    measured = table(config, layers_L=[1, 2], width_LD=width_LD)
    small_config, small = pruned(config, params, measured, reshaped(config, depth=1, width=6))
    assert small_config.depth == 1
    np.testing.assert_array_equal(small["embed/embedding"], params["embed/embedding"][:, 6:])
    np.testing.assert_array_equal(small["blocks/mlp/down/kernel"][0], params["blocks/mlp/down/kernel"][1][:, 6:])
    np.testing.assert_array_equal(small["blocks/mlp/up/kernel"][0], params["blocks/mlp/up/kernel"][1][6:])


def test_layers_that_stay_look_as_far_as_they_did_whatever_is_asked_for():
    config, params = built(depth=3, window=4, global_layers=(1,), unrotated_layers=(2,))
    to = reshaped(config, depth=2, mlp_dim=7)
    assert (to.global_layers, to.unrotated_layers) == ((1,), ())
    small, _ = pruned(config, params, table(config, layers_L=[1, 2, 3]), to)
    assert (small.window, small.global_layers, small.unrotated_layers, small.mlp_dim) == (4, (0,), (1,), 7)


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


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mlp_dim": 11}, "mlp_dim=11 is more than the teacher's 10"),
        ({"depth": 3}, "depth=3 is more than the teacher's 2"),
        ({"head_dim": 2}, "head_dim=2: pruning takes whole heads, so keep the teacher's 4"),
        ({"num_heads": 3, "num_kv_heads": 1}, "num_heads=3 are 3 to each of num_kv_heads=1, but the teacher has 2"),
        ({"vocab_size": 28}, "vocab_size=28, but the teacher's is 29: pruning changes sizes alone"),
        ({"norm": "layer"}, "norm='layer', but the teacher's is 'rms'"),
    ],
)
def test_a_target_that_is_not_in_the_teacher_is_refused(fields, message):
    config, params = built()
    with pytest.raises(UserError, match=message):
        pruned(config, params, table(config), dataclasses.replace(config, **fields))


def test_other_mistakes_are_one_line():
    config, params = built()
    with pytest.raises(UserError, match="num_heads=3 is not a multiple of num_kv_heads=2"):
        reshaped(config, num_heads=3)
    with pytest.raises(UserError, match=r"layers=\(1, 2\): name one or more of the teacher's, 0 to 1"):
        from_layers(config, params, [1, 2])
    with pytest.raises(UserError, match=r"layers=\(1, 0\): list each once, in ascending order"):
        from_layers(config, params, [1, 0])
    with pytest.raises(UserError, match="depth=4: the teacher has 3 layers to choose from, so say 1 to 3"):
        picked("first", 4, 3)
    with pytest.raises(UserError, match="unknown pick 'middle': one of first, last, spread"):
        picked("middle", 1, 3)
    with pytest.raises(UserError, match="no tokens to measure it on"):
        importance(config, params, [])
    with pytest.raises(UserError, match="'blocks/attn/q/lora_a' is not of a plain model"):
        importance(config, params | {"blocks/attn/q/lora_a": jnp.zeros((2, 12, 2))}, [{"tokens_BT": TOKENS_BT}])
    with pytest.raises(UserError, match="'blocks/1:2/attn/q/bias' is not a leaf of all layers alike"):
        pruned(config, params | {"blocks/1:2/attn/q/bias": jnp.zeros((1, 16))}, table(config), config)
    with pytest.raises(UserError, match="'blocks/1:2/attn/q/lora_a' is not a leaf of all layers alike"):
        from_layers(config, params | {"blocks/1:2/attn/q/lora_a": jnp.zeros((1, 12, 2))}, [0])


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
