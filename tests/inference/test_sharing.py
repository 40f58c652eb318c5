"""What is run once changes nothing but how much is run: against each option with its whole prompt by itself."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling, ScoreRequest
from limbeck.inference.sharing import FEWEST, LEAST, longest_short, shared_starts, slots
from limbeck.model import decode
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.rope import Rope
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import apply, init
from limbeck.train.soft_prompts import add_prefix, add_prompt

TOKENIZER = byte_tokenizer()
TINY = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=320
)  # fmt: skip
MODELS = {
    "rotary": {},
    "learned": {"norm": "layer", "positions": "learned", "gated_mlp": False, "attention_bias": True},
    "window_unrolled": {"window": 24, "global_layers": (1,), "scan": False, "num_kv_heads": 1},
    "gemma": {"attention_softcap": 5.0, "logit_softcap": 9.0, "embedding_scale": 4.0, "norm_placement": "both",
              "window": 100, "global_layers": (0,), "local_rope": Rope(500.0), "tied_embedding": False},
}  # fmt: skip
NAMES = ["plum", "lemon", "گلابی", "fig", "rose-apple", "kiwi", "date", "سیب", "quince", "pear"]
SHOWN = "".join(f"{name}: {('sour', 'sweet')[i % 2]}\n" for i, name in enumerate((NAMES + NAMES)[:16]))
OPTIONS = tuple(tuple(TOKENIZER.encode(text)) for text in (" sour\n", " sweet\n"))


def prompt(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.prompt(text))


@functools.cache
def model(name: str):
    config = dataclasses.replace(TINY, **MODELS[name])
    return config, {path: 1.5 * leaf for path, leaf in init(config, jax.random.key(0)).items()}


def engine(name="rotary", share=True, batch_size=16, **more) -> Engine:
    config, params = model(name)
    return Engine(dataclasses.replace(config, **more), params, TOKENIZER, batch_size, share=share)


QUERIES = [f"{name[:n]}:" for n in range(1, 9) for name in NAMES]
SCORED = [ScoreRequest(prompt(SHOWN + query), OPTIONS) for query in QUERIES]
WRITTEN = [GenerateRequest(prompt(SHOWN + query), Sampling(6)) for query in QUERIES[:20]]


def check_equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5, rtol=3e-7)
        assert (one.greedy, one.lengths) == (other.greedy, other.lengths)


@pytest.mark.parametrize("name", MODELS)
def test_sixteen_examples_and_two_labels_are_fifteen_times_less_to_run(name):
    shared, plain = engine(name), engine(name, share=False)
    check_equal(shared.score(SCORED), plain.score(SCORED))
    assert plain.tokens_run == sum(len(r.prompt) + len(option) - 1 for r in SCORED for option in OPTIONS)
    assert plain.tokens_run >= 15 * shared.tokens_run
    start = len(prompt(SHOWN))
    rest = sum(len(r.prompt) - start for r in SCORED)
    assert shared.tokens_run == start + rest + len(SCORED) * sum(len(option) - 1 for option in OPTIONS)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_behind_a_shared_start_is_the_same(name):
    shared, plain = engine(name), engine(name, share=False)
    for one, other in zip(shared.generate(WRITTEN), plain.generate(WRITTEN), strict=True):
        assert (one.text, one.tokens, one.stopped) == (other.text, other.tokens, other.stopped)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    written = plain.tokens_run - sum(len(request.prompt) for request in WRITTEN)
    start = len(prompt(SHOWN))
    assert shared.tokens_run == start + sum(len(r.prompt) - start for r in WRITTEN) + written


def test_order_company_and_batch_size_change_nothing():
    whole = engine().score(SCORED)
    texts = engine().generate(WRITTEN)
    odd = ScoreRequest(prompt("x"), ((5, 6, 7), (9,)))
    mixed = [odd, *SCORED[10:14], ScoreRequest(SCORED[3].prompt, OPTIONS[:1]), *SCORED[30:38]]
    for size in (3, 16):
        check_equal(engine(batch_size=size).score(SCORED[::-1]), whole[::-1])
        found = engine(batch_size=size).score(mixed)
        check_equal(found[1:5] + found[6:], whole[10:14] + whole[30:38])
        check_equal(found[:1], engine(share=False).score([odd]))
        assert found[5].logprobs == pytest.approx(whole[3].logprobs[:1], abs=1e-5)
        again = engine(batch_size=size).generate(WRITTEN[5:12])
        assert [answer.text for answer in again] == [answer.text for answer in texts[5:12]]
    alone = engine(batch_size=1)
    check_equal([alone.score([request])[0] for request in SCORED[:2]], whole[:2])


def test_options_of_many_lengths_and_numbers_are_scored_as_if_alone():
    rng = np.random.default_rng(0)
    requests = [
        ScoreRequest(prompt(SHOWN[: 40 + n] + "fig:"), tuple(tuple(rng.integers(3, 99, k)) for k in lengths))
        for n, lengths in enumerate([(1, 1), (1, 5), (3,), (2, 1, 6), (1,), (4, 4, 4, 4, 1), (2, 2)])
    ]
    shared = engine(batch_size=4)
    check_equal(shared.score(requests), engine(share=False).score(requests))
    one_token = engine()
    one_token.score([ScoreRequest(prompt("fig:"), ((5,), (6,), (7,)))])
    assert one_token.tokens_run == len(prompt("fig:"))


def test_an_option_is_greedy_where_the_model_would_write_it():
    some = engine(batch_size=4)
    written = [answer.tokens for answer in some.generate(WRITTEN[:8])]
    for share in (True, False):
        requests = []
        for request, ids in zip(WRITTEN, written, strict=False):
            other = (*ids[:-1], (ids[-1] + 1) % 256)
            requests.append(ScoreRequest(request.prompt, (ids, ids[:1], other, ((ids[0] + 1) % 256, *ids[1:]))))
        for scores in engine(share=share, batch_size=4).score(requests):
            assert scores.greedy == (True, True, False, False)
            assert all(type(each) is bool for each in scores.greedy)  # they go into a store as JSON


def test_adapters_share_each_by_itself_and_behind_their_own_virtual_tokens():
    config, params = model("rotary")
    prompted = add_prompt(config, params, jax.random.key(1), length=3)
    prefixed = add_prefix(config, params, jax.random.key(2), length=2, text_ids=(7, 8))
    some, plain = engine(batch_size=4), engine(share=False, batch_size=4)
    names = ["", some.attach(prompted), some.attach(prefixed)]
    assert names == ["", plain.attach(prompted), plain.attach(prefixed)]
    requests = [dataclasses.replace(r, adapter=name) for r in SCORED[:6] for name in names]
    check_equal(some.score(requests), plain.score(requests))
    assert plain.tokens_run > 8 * some.tokens_run
    texts = [dataclasses.replace(r, adapter=name) for r in WRITTEN[:5] for name in names]
    one, other = some.generate(texts), plain.generate(texts)
    assert [answer.tokens for answer in one] == [answer.tokens for answer in other]


def test_a_prefix_in_some_layers_alone_is_run_plainly():
    config, params = model("rotary")
    made = add_prefix(config, params, jax.random.key(2), length=2, text_ids=(7, 8))
    some = {path.replace("attn/prefix", "1:2/attn/prefix"): leaf for path, leaf in made.items()}
    some = {path: leaf[1:] if "prefix" in path else leaf for path, leaf in some.items()}
    one, other = (Engine(config, some, TOKENIZER, 4, share=share) for share in (True, False))
    check_equal(one.score(SCORED[:5]), other.score(SCORED[:5]))


@pytest.mark.parametrize(("original", "times"), [(60, 1.5), (217, 1.3), (300, 15)])
def test_a_text_turns_by_its_own_length_and_not_by_how_far_it_is_padded(original, times):
    """With longrope: all texts long, some, none."""
    dims = TINY.head_dim // 2
    rope = Rope(scaling="longrope", original_max_len=original, short_factor=(1.0,) * dims, long_factor=(3.0,) * dims)
    one, other = engine(rope=rope), engine(rope=rope, share=False)
    config, params = one.config, one.params
    assert longest_short(config) == original and longest_short(TINY) is None
    requests = [dataclasses.replace(r, options=(OPTIONS[0][:1], OPTIONS[1])) for r in SCORED]
    some = one.score(requests)
    check_equal(some, other.score(requests))
    assert one.tokens_run < other.tokens_run / times
    lengths = [len(r.prompt) + len(option) - 1 for r in requests for option in r.options]
    assert original != 217 or min(lengths) < 217 < max(lengths)
    for i in (0, 25, 79):
        for option, logprob in zip(requests[i].options, some[i].logprobs, strict=True):
            assert logprob == pytest.approx(by_hand(config, params, requests[i].prompt, option), abs=1e-4)


def by_hand(config, params, before, option):
    ids = jnp.asarray([[*before, *option][:-1]])
    logprobs_TV = jax.nn.log_softmax(apply(config, params, ids).logits_BTV[0])[-len(option) :]
    return sum(float(logprobs_TV[i, token]) for i, token in enumerate(option))


def test_many_starts_are_a_few_programs():
    some, programs = engine(batch_size=4), cast(Any, decode._left_by)
    seen = programs._cache_size()
    for length in range(100, 128, 4):
        some.score([ScoreRequest((*range(3, length), *rest), OPTIONS) for rest in ((1, 2), (2,), (3, 4), (5,))])
    assert programs._cache_size() == seen + 1


# What is shared


tokens = st.lists(st.integers(0, 1), max_size=6).map(tuple)


@given(st.lists(st.tuples(st.integers(0, 2), tokens), min_size=1, max_size=30), st.integers(1, 8))
@settings(deadline=None)
def test_every_prompt_is_in_one_group_and_begins_with_what_is_shared(drawn, batch_size):
    beginnings = [(), (7,) * LEAST, (8,) * (LEAST + 5)]
    prompts = [(*beginnings[which], 1, *rest) for which, rest in drawn]
    starts = shared_starts(prompts, [3] * len(prompts), batch_size)
    assert sorted(i for start in starts for i in start.members) == list(range(len(prompts)))
    for length, members in starts:
        if length:
            assert length >= LEAST and len(members) >= FEWEST
            assert len({prompts[i][:length] for i in members}) == 1
            assert all(len(prompts[i]) > length for i in members)
    assert sum(start.length == 0 for start in starts) <= 1


def test_a_start_is_shared_where_that_pays():
    alike = [(9,) * 40 + (i,) for i in range(4)]
    others = [(i,) * 50 for i in range(10, 16)]
    assert shared_starts(alike, [2] * 4, 64) == [(40, [0, 1, 2, 3])]
    assert shared_starts(alike[:3], [2] * 3, 64) == [(0, [0, 1, 2])]  # too few
    assert shared_starts([p[9:] for p in alike], [2] * 4, 64) == [(0, [0, 1, 2, 3])]  # too short
    assert shared_starts([*others, *alike], [2] * 10, 64) == [(0, list(range(10)))]  # 60 idle rows cost more
    assert shared_starts([*others, *alike], [2] * 10, 4) == [(40, [6, 7, 8, 9]), (0, list(range(6)))]
    assert shared_starts([alike[0]] * 5, [2] * 5, 4) == [(40, list(range(5)))]  # the last token is left to run


def test_slots_are_few_and_hold_the_start():
    sizes = {slots(length) for length in range(32, 1025)}
    assert sizes == {32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024}
    assert all(length <= slots(length) <= 1.5 * length for length in range(32, 1025))


@pytest.mark.parametrize("name", MODELS)
def test_a_beginning_that_is_kept_answers_as_the_whole_prompt_does(name):
    alone = engine(name, share=False)
    kept = alone.keep(prompt(SHOWN))
    length = len(prompt(SHOWN))
    rests = [dataclasses.replace(each, prompt=each.prompt[length:], adapter=kept) for each in SCORED[:6]]
    assert alone.tokens_run == length
    before = alone.tokens_run
    check_equal(alone.score(rests), engine(name, share=False).score(SCORED[:6]))
    assert alone.tokens_run - before < 0.2 * length * len(rests)
    written = [dataclasses.replace(each, prompt=each.prompt[length:], adapter=kept) for each in WRITTEN[:4]]
    texts = [each.text for each in engine(name, share=False).generate(WRITTEN[:4])]
    assert [each.text for each in alone.generate(written)] == texts


def test_what_cannot_be_kept_is_one_line():
    rope = Rope(scaling="longrope", factor=4.0, original_max_len=64, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4)
    with pytest.raises(UserError, match="cannot keep a prompt's beginning"):
        engine(rope=rope).keep(prompt(SHOWN))
    with pytest.raises(UserError, match="prompt is empty"):
        engine().keep(())
    with pytest.raises(UserError, match="320 positions"):
        engine().keep([1] * 320)
