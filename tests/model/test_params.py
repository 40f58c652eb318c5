"""The pattern language and the layouts of a stack."""

import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.model.params import apart, count, cut, digest, first_match, join, merge, nbytes, runs, split


def stack(depth: int = 4) -> dict:
    return {
        "embed/embedding": jnp.arange(6.0).reshape(3, 2),
        "blocks/attn/q/kernel": jnp.arange(depth * 4.0).reshape(depth, 2, 2),
        "blocks/attn/q/bias": jnp.arange(depth * 2.0).reshape(depth, 2),
        "norm/scale": jnp.ones(2),
    }


@pytest.mark.parametrize(
    "patterns, trainable",
    [
        ([".*"], {"embed/embedding", "blocks/attn/q/kernel", "blocks/attn/q/bias", "norm/scale"}),
        (["blocks/attn/q/kernel"], {"blocks/attn/q/kernel"}),
        ([".*/bias", "norm/.*"], {"blocks/attn/q/bias", "norm/scale"}),
        (["blocks/3/.*"], {"blocks/3:4/attn/q/kernel", "blocks/3:4/attn/q/bias"}),
        (["blocks/[12]/.*/kernel"], {"blocks/1:3/attn/q/kernel"}),
        (["blocks/(0|2)/.*/bias"], {"blocks/0:1/attn/q/bias", "blocks/2:3/attn/q/bias"}),
    ],
)
def test_split_takes_what_the_patterns_name_and_merge_puts_it_back(patterns, trainable):
    params = stack()
    moving, still = split(params, patterns)
    assert moving.keys() == trainable
    assert not moving.keys() & still.keys()
    whole = join(merge(moving, still))
    assert whole.keys() == params.keys()
    for path in params:
        np.testing.assert_array_equal(whole[path], params[path])
    assert count(merge(moving, still)) == count(params) == 6 + 16 + 8 + 2
    assert nbytes(params) == 4 * count(params)
    assert digest(merge(moving, still)) == digest(params)


def test_first_match_wins_layer_by_layer():
    matches = first_match(["blocks/0/.*", "blocks/.*", ".*"], stack(2))
    assert matches == {
        "embed/embedding": [2],
        "blocks/attn/q/kernel": [0, 1],
        "blocks/attn/q/bias": [0, 1],
        "norm/scale": [2],
    }


def test_a_dead_pattern_names_the_nearest_path():
    with pytest.raises(UserError, match="matches no parameter; did you mean 'blocks/attn/q/kernel'"):
        split(stack(), [".*", "blocks/atn/q/kernel"])
    with pytest.raises(UserError, match="not a regular expression"):
        split(stack(), ["(("])


def test_runs_must_follow_one_another():
    pieces = cut(stack(), [1, 3])
    assert [(run.start, run.stop) for run in runs(pieces)] == [(0, 1), (1, 3), (3, 4)]
    del pieces["blocks/1:3/attn/q/kernel"], pieces["blocks/1:3/attn/q/bias"]
    with pytest.raises(UserError, match="not one stack"):
        runs(pieces)


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape"])
def test_the_digest_sees_every_change(change):
    params = stack()
    other = dict(params)
    if change == "value":
        other["norm/scale"] = params["norm/scale"].at[1].set(1.0000001)
    elif change == "name":
        other["norm/scales"] = other.pop("norm/scale")
    elif change == "dtype":
        other["norm/scale"] = params["norm/scale"].astype(jnp.bfloat16)
    else:
        other["norm/scale"] = params["norm/scale"][None]
    assert digest(other) != digest(params)


def test_a_leaf_that_only_some_layers_have_stays_a_piece():
    """An adapter in layers 1 and 2 of 4, of another rank in each third: pieces of it beside whole leaves."""
    params = {
        "blocks/attn/q/kernel": jnp.arange(8.0).reshape(4, 2),
        "blocks/1:2/attn/q/lora_a": jnp.ones((1, 2, 3)),
        "blocks/2:3/attn/q/lora_a": jnp.ones((1, 2, 3)),
        "blocks/3:4/attn/q/lora_a": jnp.ones((1, 2, 5)),
        "norm/scale": jnp.ones(2),
    }
    found = runs(params)
    assert [(run.start, run.stop, sorted(run.leaves)) for run in found] == [
        (0, 1, ["attn/q/kernel"]),
        *((layer, layer + 1, ["attn/q/kernel", "attn/q/lora_a"]) for layer in (1, 2, 3)),
    ]
    np.testing.assert_array_equal(found[2].leaves["attn/q/kernel"], [[4, 5]])
    joined = join(params)
    assert {path: leaf.shape for path, leaf in joined.items()} == {
        "blocks/attn/q/kernel": (4, 2),
        "blocks/1:3/attn/q/lora_a": (2, 2, 3),
        "blocks/3:4/attn/q/lora_a": (1, 2, 5),
        "norm/scale": (2,),
    }
    assert digest(params) == digest(joined) == digest(cut(joined, [2]))
    assert join(cut(joined, [1, 2, 3])).keys() == joined.keys()


def test_a_layer_s_leaf_is_there_once():
    with pytest.raises(UserError, match="blocks/0:1/norm/scale is there twice"):
        cut({"blocks/norm/scale": jnp.ones((2, 3)), "blocks/0:1/norm/scale": jnp.ones((1, 3))}, ())


def test_layers_are_taken_apart_without_a_copy():
    """A serving process would else hold its weights twice."""
    params = {"blocks/m/kernel": jnp.arange(4 * 32 * 16.0).reshape(4, 32, 16), "norm/scale": jnp.ones(3)}
    pieces = apart(params)
    assert [*pieces] == [*(f"blocks/{i}:{i + 1}/m/kernel" for i in range(4)), "norm/scale"]
    start = params["blocks/m/kernel"].unsafe_buffer_pointer()
    for i in range(4):
        assert pieces[f"blocks/{i}:{i + 1}/m/kernel"].unsafe_buffer_pointer() - start == i * 32 * 16 * 4
    np.testing.assert_array_equal(join(pieces)["blocks/m/kernel"], params["blocks/m/kernel"])
    halves = apart(cut(params, [2]))
    assert [*halves] == [*pieces] and digest(halves) == digest(params)
