"""What is dead in a model goes without a trace."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from tiny_models import TOKENS_BT, built, outputs, variants

from limbeck.distill.students.importance import importance
from limbeck.distill.students.prune import pruned
from limbeck.distill.students.shape import axes, sizes
from limbeck.model import transformer
from limbeck.model.params import block_path


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
