"""Writing on equals asking for every token anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import transformer
from limbeck.model.config import ModelConfig
from limbeck.model.decode import SamplingArrays, check_room, generate, greedy, stream
from limbeck.model.errors import UserError
from limbeck.model.transformer import init

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=32
)
PARAMS = {path: 3 * leaf for path, leaf in init(CONFIG, jax.random.key(0)).items()}  # sharper, so that tokens vary
PROMPTS = [[1, 5, 9, 2], [1, 7], [1, 3, 3]]
apply = jax.jit(transformer.apply, static_argnums=0)
NO_STOP = jnp.zeros(31, bool)


def padded(prompts=PROMPTS, length=6):
    rows = np.zeros((len(prompts), length), np.int32)
    for i, prompt in enumerate(prompts):
        rows[i, : len(prompt)] = prompt
    return jnp.asarray(rows), jnp.asarray([len(prompt) for prompt in prompts])


def by_hand(prompt, steps):
    ids, logprobs = list(prompt), []
    for _ in range(steps):
        logits = apply(CONFIG, PARAMS, jnp.asarray([ids])).logits_BTV[0, -1]
        ids.append(int(logits.argmax()))
        logprobs.append(float(jax.nn.log_softmax(logits)[ids[-1]]))
    return ids[len(prompt) :], logprobs


def test_greedy_is_argmax_step_by_step_whatever_the_padding():
    out = generate(CONFIG, PARAMS, *padded(), greedy(3), NO_STOP, 8)
    for row, prompt in enumerate(PROMPTS):
        ids, logprobs = by_hand(prompt, 8)
        assert out.tokens_BT[row].tolist() == ids
        np.testing.assert_allclose(out.logprobs_BT[row], logprobs, atol=1e-4)
    assert out.length_B.tolist() == [8, 8, 8]
    assert not out.stopped_B.any()


def test_a_row_stops_after_its_stop_token_and_the_others_go_on():
    ids, _ = by_hand(PROMPTS[0], 8)
    stop = ids[3]
    out = generate(CONFIG, PARAMS, *padded(), greedy(3), NO_STOP.at[stop].set(True), 8)
    first = ids.index(stop)
    assert out.length_B[0] == first + 1
    assert out.tokens_BT[0, : first + 1].tolist() == ids[: first + 1]
    assert out.stopped_B[0]
    for row in (1, 2):
        expected, _ = by_hand(PROMPTS[row], 8)
        expected = expected[: expected.index(stop) + 1] if stop in expected else expected
        assert out.tokens_BT[row, : out.length_B[row]].tolist() == expected


def test_the_stream_ends_as_generate_does():
    ids, _ = by_hand(PROMPTS[1], 8)
    stop_V = NO_STOP.at[ids[5]].set(True)
    pieces = list(stream(CONFIG, PARAMS, *padded(), greedy(3), stop_V, 8, chunk=3))
    whole = generate(CONFIG, PARAMS, *padded(), greedy(3), stop_V, 8)
    for a, b in zip(pieces[-1], jax.device_get(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert pieces[0].length_B.max() == 3


def test_samples_follow_the_row_key_alone():
    def draw(order):
        tokens_BT, lengths_B = padded([PROMPTS[i] for i in order])
        keys = jax.random.key_data(jax.random.split(jax.random.key(7), 3))[jnp.asarray(order)]
        ones = jnp.ones(3)
        sampling = SamplingArrays(keys, ones, jnp.zeros(3, jnp.int32), ones, 0 * ones)
        return generate(CONFIG, PARAMS, tokens_BT, lengths_B, sampling, NO_STOP, 8).tokens_BT

    straight, turned = draw([0, 1, 2]), draw([2, 0, 1])
    np.testing.assert_array_equal(straight[jnp.asarray([2, 0, 1])], turned)
    assert (straight[0] != generate(CONFIG, PARAMS, *padded(), greedy(3), NO_STOP, 8).tokens_BT[0]).any()


@pytest.mark.parametrize(
    "prompt, new, words", [(0, 4, "prompt is empty"), (30, 3, "32 positions"), (3, 0, "at least 1")]
)
def test_no_room_is_said(prompt, new, words):
    with pytest.raises(UserError, match=words):
        check_room(CONFIG, prompt, new)
