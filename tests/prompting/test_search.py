"""Search for a prompt: what is planted is found, the budget holds, nothing is asked twice, luck is not hidden."""

import dataclasses
import random
import statistics
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.formats import Format
from limbeck.prompting.predict import predict
from limbeck.prompting.search import Found, How, Proposals, candidates, rungs, search
from limbeck.prompting.tries import Measured, Tries
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template

RECORDS = tuple({"id": f"validation/{i}", "input": str(i), "output": ""} for i in range(64))
PROMPTS = [PromptConfig(seed=i) for i in range(33)]  # a candidate's seed is its name here
HOWS: tuple[How, ...] = ("halving", "random")

Quality = Callable[[PromptConfig, Record], float]


class Scripted:
    """Evaluates by a function, ten tokens a record; holds that a candidate is never asked the same twice."""

    def __init__(self, quality: Quality) -> None:
        self.quality = quality
        self.asked: dict[PromptConfig, list[str]] = {}

    def __call__(self, config: PromptConfig, records: Sequence[Record]) -> Measured:
        assert records
        asked = self.asked.setdefault(config, [])
        asked += [record["id"] for record in records]
        assert len(set(asked)) == len(asked)
        return Measured(tuple(self.quality(config, record) for record in records), 10 * len(records))


def drawn(chance: Callable[[PromptConfig], float], salt: int = 0) -> Quality:
    """Right with a candidate's chance, for each record on its own; the same whenever it is asked."""

    def quality(config: PromptConfig, record: Record) -> float:
        return float(random.Random(f"{salt} {config} {record['id']}").random() < chance(config))

    return quality


def planted(config: PromptConfig) -> float:
    return {0: 0.5, 21: 0.9}.get(config.seed, 0.4)


@pytest.mark.parametrize("how", HOWS)
def test_the_best_is_found(how: How) -> None:
    found = search(PROMPTS, Scripted(drawn(planted)), RECORDS, how=how, budget=33 * 64)
    assert found.config == PROMPTS[21]
    right = [drawn(planted)(PROMPTS[21], record) for record in RECORDS]
    assert found.quality == statistics.fmean(right) > found.unoptimised
    assert found.unoptimised == statistics.fmean(drawn(planted)(PROMPTS[0], record) for record in RECORDS)


def test_halving_finds_it_with_fewer_answers_than_random_search() -> None:
    def finds(how: How, passes: int) -> int:
        runs = (
            search(PROMPTS, Scripted(drawn(planted, seed)), RECORDS, how=how, budget=64 * passes, seed=seed)
            for seed in range(20)
        )
        return sum(found.config == PROMPTS[21] for found in runs)

    assert finds("halving", 11) >= 19  # a third of what random search needs to try them all
    assert finds("random", 11) <= 12
    assert finds("random", 33) == 20


@pytest.mark.parametrize("how", HOWS)
def test_the_unoptimised_prompt_is_never_eliminated_and_wins_ties(how: How) -> None:
    same = search(PROMPTS, Scripted(lambda *_: 0.25), RECORDS, how=how, budget=800)
    assert same.config == PROMPTS[0] and same.quality == same.unoptimised == 0.25

    # Bad on what is asked first, best on the whole: only because it answers everything is it found.
    first = set(RECORDS[i]["id"] for i in _order(seed=3)[:16])
    late: Quality = lambda config, record: float((config.seed == 0) != (record["id"] in first))  # noqa: E731
    found = search(PROMPTS, Scripted(late), RECORDS, how=how, budget=800, seed=3)
    assert found.config == PROMPTS[0] and found.quality == 0.75
    assert found.tries[0].config == PROMPTS[0] and found.tries[0].records == 64


def _order(seed: int) -> list[int]:
    evaluate = Scripted(lambda *_: 0.0)
    search(PROMPTS[:1], evaluate, RECORDS, budget=64, seed=seed)
    return [int(name.split("/")[1]) for name in evaluate.asked[PROMPTS[0]]]


def test_of_equals_the_first_given_wins() -> None:
    better: Quality = lambda config, _: float(config.seed > 3)  # noqa: E731
    for seed in range(5):
        assert search(PROMPTS, Scripted(better), RECORDS, budget=33 * 64, seed=seed).config == PROMPTS[4]


@settings(max_examples=60, deadline=None)
@given(
    how=st.sampled_from(HOWS),
    count=st.integers(1, 33),
    size=st.integers(1, 64),
    over=st.integers(0, 1500),
    seed=st.integers(0, 5),
    proposing=st.booleans(),
)
def test_the_budget_holds_and_what_was_spent_is_said(
    how: How, count: int, size: int, over: int, seed: int, proposing: bool
) -> None:
    evaluate = Scripted(drawn(planted, seed))
    propose = (lambda tried: Proposals((f"try {len(tried)}", "and this"), 7)) if proposing else None
    budget = size + over
    found = search(PROMPTS[:count], evaluate, RECORDS[:size], how=how, budget=budget, seed=seed, propose=propose)
    asked = evaluate.asked
    assert found.records == sum(map(len, asked.values())) <= budget
    assert found.tokens == 10 * found.records
    assert [(row.config, row.records, row.tokens) for row in found.tries] == [
        (config, len(asked[config]), 10 * len(asked[config])) for config in (row.config for row in found.tries)
    ]
    assert {row.config for row in found.tries} == set(asked)
    whole = asked[PROMPTS[0]]
    assert len(whole) == size
    assert all(whole[: len(ids)] == ids for ids in asked.values())  # nested: the few are part of the many
    best = max(row.quality or 0.0 for row in found.tries if row.records == size)
    assert found.quality == best
    if not proposing and budget >= count * size:
        assert [row.records for row in found.tries] == [size] * count


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 4000), st.integers(0, 99), st.sampled_from(HOWS))
def test_whoever_goes_on_a_ladder_is_affordable(count: int, size: int, budget: int, seed: int, how: How) -> None:
    rng = np.random.default_rng(seed)
    prices_CN = rng.integers(1, 50, (count, size)).cumsum(1)
    found = rungs(how, prices_CN, budget)
    if not found:
        assert budget < prices_CN[0, -1]
        return
    assert found[-1][1] == size
    alive, spent, known = list(range(found[0][0])), 0, 0
    for going, upto in found:
        more = {c: prices_CN[c, upto - 1] - (prices_CN[c, known - 1] if known else 0) for c in alive}
        alive = sorted(alive, key=lambda c: -more[c])[:going]
        assert len(alive) == going and upto > known
        spent += sum(more[c] for c in alive)
        known = upto
    assert spent <= budget


def test_a_ladder_uses_what_it_may() -> None:
    ones = np.ones((32, 64), int).cumsum(1)
    assert rungs("halving", ones, 32 * 64) == [(32, 64)]  # enough for all in full
    assert rungs("halving", ones, 10 * 64) == [(32, 8), (16, 16), (8, 32), (4, 64)]
    assert rungs("halving", ones, 6 * 64) == [(32, 4), (16, 8), (8, 16), (4, 32), (2, 64)]
    assert rungs("halving", ones, 100) == [(6, 4), (3, 8), (2, 16), (1, 64)]  # fewer take part: 4 records say something
    assert rungs("random", ones, 200) == [(3, 64)]
    assert rungs("halving", ones, 63) == rungs("random", ones, 63) == []


@pytest.mark.parametrize("how", HOWS)
def test_a_budget_of_tokens_is_never_exceeded(how: How) -> None:
    long = lambda config, record: 10 + config.seed % 7 + int(record["input"]) % 3  # noqa: E731

    def evaluate(config: PromptConfig, records: Sequence[Record]) -> Measured:  # a shared prefix costs less
        return Measured((0.0,) * len(records), sum(long(config, record) for record in records) - len(records))

    for budget in range(703, 12000, 700):
        found = search(PROMPTS, evaluate, RECORDS, how=how, budget=budget, cost=long, seed=budget)
        assert found.tokens <= budget
        assert budget < 2000 or found.tokens > 0.4 * budget
    with pytest.raises(UserError, match="a budget of 600 tokens: the unoptimised prompt alone takes 703 for the 64"):
        search(PROMPTS, evaluate, RECORDS, how=how, budget=600, cost=long)


def test_a_wrong_forecast_or_answer_is_no_users_mistake() -> None:
    with pytest.raises(ValueError, match="took 640 tokens, forecast as 320"):
        search(PROMPTS, Scripted(lambda *_: 0.0), RECORDS, budget=9000, cost=lambda *_: 5)
    with pytest.raises(ValueError, match="64 records need as many finite"):
        search(PROMPTS, lambda *_: Measured((1.0,), 1), RECORDS, budget=9000)
    with pytest.raises(ValueError, match="64 records need as many finite"):
        search(PROMPTS, Scripted(lambda *_: float("nan")), RECORDS, budget=9000)


@pytest.mark.parametrize("how", HOWS)
def test_the_same_call_finds_the_same(how: How) -> None:
    def run(seed: int) -> tuple[Found, Scripted]:
        evaluate = Scripted(drawn(planted))
        return search(PROMPTS, evaluate, RECORDS, how=how, budget=500, seed=seed), evaluate

    (one, asked), (again, asked_again) = run(1), run(1)
    assert one == again and asked.asked == asked_again.asked
    assert [*asked.asked] == [*asked_again.asked]
    other = run(2)[1]
    assert other.asked[PROMPTS[0]] != asked.asked[PROMPTS[0]] and [*other.asked] != [*asked.asked]


def test_given_twice_is_asked_once() -> None:
    evaluate = Scripted(drawn(planted))
    assert search([*PROMPTS[:3], *PROMPTS[:3]], evaluate, RECORDS, budget=6 * 64).records <= 3 * 64


def test_with_nothing_to_find_the_choice_looks_better_than_it_is() -> None:
    def optimism(count: int) -> list[float]:
        return [
            search(
                PROMPTS[:count], Scripted(drawn(lambda _: 0.5, seed)), RECORDS, budget=count * 64, seed=seed
            ).quality - 0.5
            for seed in range(60)
        ]

    def standard_error(values: list[float]) -> float:
        return statistics.stdev(values) / len(values) ** 0.5

    chosen, alone = optimism(9), optimism(1)
    assert statistics.fmean(chosen) > 5 * standard_error(chosen)
    assert abs(statistics.fmean(alone)) < 4 * standard_error(alone)


# Proposals


def test_proposals_are_tried_in_the_best_prompt_so_far() -> None:
    worth = {"": 0.3, "good": 0.6, "better": 0.7, "bad": 0.1}
    told: list[list[tuple[PromptConfig, float]]] = []

    def quality(config: PromptConfig, record: Record) -> float:
        return worth[config.instruction or ""] + 0.1 * (config.seed == 2)

    def propose(tried: Sequence[tuple[PromptConfig, float]]) -> Proposals:
        told.append(list(tried))
        texts = ("good", "bad", "good", " ", "") if len(told) == 1 else ("better", "good")
        return Proposals(texts if len(told) < 3 else (), 100)

    evaluate = Scripted(quality)
    found = search(PROMPTS[:3], evaluate, RECORDS, how="random", budget=10 * 64, propose=propose)
    assert found.config == dataclasses.replace(PROMPTS[2], instruction="better")
    assert found.proposing_tokens == 300 and found.tokens == 10 * found.records
    new = [dataclasses.replace(PROMPTS[2], instruction=text) for text in ("good", "bad", "better")]
    assert [row.config for row in found.tries if row.proposed] == new
    assert [config for config, _ in told[0]] == PROMPTS[:3] and [q for _, q in told[0]] == pytest.approx(
        [0.3, 0.3, 0.4]
    )
    assert [config for config, _ in told[2]] == [*PROMPTS[:3], *new] and len(told) == 3


def test_nothing_new_ends_the_proposals() -> None:
    calls = []
    propose = lambda tried: calls.append(tried) or Proposals(("again", " "))  # noqa: E731
    found = search(PROMPTS[:1], Scripted(lambda *_: 0.0), RECORDS, budget=9000, propose=propose, rounds=9)
    assert len(calls) == 2 and found.records == 2 * 64 and found.config == PROMPTS[0]


def test_no_proposals_are_written_that_there_is_no_budget_for() -> None:
    def propose(tried: Sequence) -> Proposals:
        raise AssertionError

    search(PROMPTS[:1], Scripted(lambda *_: 0.0), RECORDS, budget=2 * 64 - 1, propose=propose)


def test_what_cannot_be_asked_is_left_out_and_said_but_the_unoptimised_prompt_is_an_error() -> None:
    def quality(config: PromptConfig, record: Record) -> float:
        if "long" in (config.instruction or ""):
            raise UserError("record 7 has 99 tokens")
        return 1.0 if config.instruction else 0.0

    propose = lambda tried: Proposals(("far too long", "short"))  # noqa: E731
    long = PromptConfig(instruction="a long one")
    found = search([PROMPTS[0], long], Scripted(quality), RECORDS, budget=640, propose=propose)
    assert found.config.instruction == "short"
    refused = [row for row in found.tries if row.error]
    assert [row.config.instruction for row in refused] == ["a long one", "far too long"]
    assert all(row[1:4] == (None, 0, 0) and row.error == "record 7 has 99 tokens" for row in refused)
    assert [row.proposed for row in refused] == [False, True]
    with pytest.raises(UserError, match="record 7 has 99 tokens"):
        search([long], Scripted(quality), RECORDS, budget=640)


def test_a_forecast_that_is_refused_is_no_cost() -> None:
    def cost(config: PromptConfig, record: Record) -> int:
        if config.seed == 1:
            raise UserError("does not fit")
        return 10

    found = search(PROMPTS[:3], Scripted(drawn(planted)), RECORDS, budget=64 * 30, cost=cost)
    assert [(row.config.seed, row.records, row.error) for row in found.tries] == [
        (0, 64, ""),
        (1, 0, "does not fit"),
        (2, 64, ""),
    ]


def test_one_that_cannot_go_on_has_what_it_answered_in_the_table() -> None:
    late = _order(seed=0)[20]

    def quality(config: PromptConfig, record: Record) -> float:
        if config.seed and record["id"] == f"validation/{late}":
            raise UserError("too long")
        return float(config.seed > 0)

    found = search(PROMPTS[:9], Scripted(quality), RECORDS, budget=64 * 4, seed=0)
    assert found.config == PROMPTS[0] and found.quality == 0
    assert any(row.error and row.records and row.quality == 1 for row in found.tries)
    assert found.records == sum(row.records for row in found.tries)


# Together


def test_a_real_model_is_searched_and_what_is_chosen_answers_as_it_did() -> None:
    tokenizer = byte_tokenizer()
    config = ModelConfig(
        tokenizer.vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=128
    )
    engine = Engine(config, init(config, jax.random.key(1)), tokenizer, batch_size=4)
    records = [{"id": str(i), "input": f"fruit {i}", "output": ("pome", "drupe")[i % 2]} for i in range(24)]
    splits = {"train": tuple(records[:12]), "validation": tuple(records[12:22]), "test": tuple(records[22:])}
    task = Task("fruits", splits, Template(), ("pome", "drupe"))

    def evaluate(tried: PromptConfig, part: Sequence[Record]) -> Measured:
        assert {record["id"] for record in part} <= {record["id"] for record in splits["validation"]}
        before = engine.tokens_run
        asked = predict(task, engine, part, tried).asked
        return Measured(tuple(float(each.answer == each.right) for each in asked), engine.tokens_run - before)

    given = candidates(task, PromptConfig(shots=2), 5, 0, formats=(Format(" ->"),))
    found = search(given, evaluate, splits["validation"], budget=38)
    assert len(found.tries) == 5 and 10 < found.records <= 38 and found.tokens == engine.tokens_run
    assert found.quality == statistics.fmean(evaluate(found.config, splits["validation"]).qualities)
    assert found.quality >= found.unoptimised


# Mistakes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"candidates": []}, "no candidates to search among: give at least the unoptimised prompt"),
        ({"validation": []}, "no validation records: a prompt is chosen on that split, never on test"),
        ({"budget": 63}, "a budget of 63 records: the unoptimised prompt alone takes 64 for the 64 validation records"),
        ({"candidates": [PromptConfig(calibration="batch")]}, "calibration='batch' hangs on which records are asked"),
        ({"how": "halvng"}, "unknown search 'halvng': one of halving, random; did you mean 'halving'"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(changed: dict, message: str) -> None:
    call = {"candidates": PROMPTS, "validation": RECORDS, "budget": 640, "evaluate": Scripted(lambda *_: 0.0)} | changed
    with pytest.raises(UserError, match=message) as error:
        search(**call)
    assert "\n" not in str(error.value)


def test_the_mean_is_the_same_however_it_was_parted() -> None:
    values = {record["id"]: 0.1 * i for i, record in enumerate(RECORDS)}
    whole, parts = (Tries(Scripted(lambda _, r: values[r["id"]]), RECORDS, None, 999) for _ in range(2))
    for tries in (whole, parts):
        tries.add(PROMPTS[:1])
    whole.ask(PROMPTS[0], 64)
    for upto in (3, 4, 40, 20, 64):
        parts.ask(PROMPTS[0], upto)
    assert whole.mean(PROMPTS[0]) == parts.mean(PROMPTS[0]) and parts.records == 64 and parts.left == 999 - 64
