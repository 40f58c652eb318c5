"""Which heads, channels and layers stay by a given importance, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import TOKENS_BT, built

from limbeck.distill.students.importance import Importance, importance
from limbeck.distill.students.prune import from_layers, picked, pruned
from limbeck.distill.students.shape import reshaped
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import cut


def table(config: ModelConfig, **given) -> Importance:
    """An importance that is even but for what is given."""
    c = config
    names = ("attn_norm", "mlp_norm")
    even = Importance(
        np.ones(c.depth), np.ones((c.depth, c.num_heads)), np.ones((c.depth, c.mlp_dim)), np.ones((c.depth, c.width)),
        np.ones(c.width), {name: np.ones((c.depth, c.width)) for name in names} | {"norm": np.ones(c.width)},
    )  # fmt: skip
    return even._replace(**{name: np.asarray(value, float) for name, value in given.items()})


def test_a_stack_in_runs_is_measured_and_pruned_as_a_whole_one():
    config, params = built()
    to = reshaped(config, width=8, depth=1, num_heads=2, num_kv_heads=1, mlp_dim=6)
    batches = [{"tokens_BT": TOKENS_BT}]
    whole, pieces = (importance(config, some, batches) for some in (params, cut(params, [1])))
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    (_, one), (_, other) = (pruned(config, some, whole, to) for some in (params, cut(params, [2])))
    jax.tree.map(np.testing.assert_array_equal, one, other)


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
