import time
from typing import Any

import jax
import pytest

from limbeck.evaluation.measure import all_metrics, measure, timing
from limbeck.inference.engine import Engine
from limbeck.inference.sharing import common_start
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.task import KINDS, Task
from limbeck.tasks.template import Template

ANSWERS = {
    "generation": (["a b", "c"], ["a b", "d"], None),
    "classification": (["good", "bad"], ["good", "good"], ("good", "bad")),
    "multi_label": (["joy, anger", "none"], ["joy", "none"], ("joy", "anger")),
    "regression": (["1", "2.5"], ["1", "3"], None),
}


def task_of(kind: Any, metric: Any = None) -> Task:
    _, right, options = ANSWERS[kind]
    splits = {
        split: tuple({"id": f"{split}/{i}", "input": f"x{i}", "output": answer} for i, answer in enumerate(right))
        for split in ("train", "test")
    }
    return Task("mine", splits, Template(), options, kind=kind, metric=metric)


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_of_the_kind_is_there_and_the_task_s_own_comes_first(kind):
    said, right, _ = ANSWERS[kind]
    fitting = [name for name, metric in METRICS.items() if kind in metric.kinds]
    for own in fitting:
        found = all_metrics(task_of(kind, own), said, right)
        assert list(found) == [own, *(name for name in fitting if name != own)]
    for name, entry in found.items():
        score = METRICS[name].score(said, right)
        assert entry == {"value": score.value, "ci95": list(score.ci95), "n": 2}


def test_no_records_have_no_metrics():
    with pytest.raises(UserError, match="0 records"):
        all_metrics(task_of("regression"), [], [])


ROWS = [{"id": f"{n}", "input": f"میوه {n}", "output": ("sour", "sweet")[n % 2]} for n in range(24)]
TASK = Task("fruit", {"train": tuple(ROWS[:12]), "test": tuple(ROWS[12:])}, Template(), ("sour", "sweet"))
CONFIG = ModelConfig(
    byte_tokenizer().vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=256
)


def test_examples_that_all_prompts_begin_with_have_a_price_of_their_own():
    engine = Engine(CONFIG, init(CONFIG, jax.random.key(0)), byte_tokenizer(), batch_size=4)
    test = TASK.splits["test"]
    fixed, said = measure(TASK, engine, test, PromptConfig(shots=4, pick="fixed"))
    # A prompt's own tokens are the query; the options run behind it, each but for its last token.
    start = len(said.asked[0].prompt_ids) - len(byte_tokenizer().encode(TASK.query(test[0])))
    rest = fixed["prompt_tokens"] - start + sum(len(f" {option}\n") - 1 for option in ("sour", "sweet"))
    total = start + rest
    assert fixed["flops_per_request"] == pytest.approx(forward_flops(CONFIG, engine.params, total, total / 2))
    kept = fixed["flops_per_request_prefix"]
    assert fixed["latency_ms_prefix"] > 0 and kept < 0.5 * fixed["flops_per_request"]
    # All queries begin alike, so a few tokens more than the examples are kept.
    least, most = (forward_flops(CONFIG, engine.params, left, total) for left in (rest - 12, rest))
    assert least < kept <= most
    assert fixed["prompt"] == {"shots": 4, "pick": "fixed", "seed": 0}
    drawn, _ = measure(TASK, engine, test, PromptConfig(shots=4))
    assert not {"latency_ms_prefix", "flops_per_request_prefix"} & drawn.keys()


def test_similar_examples_are_indexed_once_and_what_is_looked_up_is_in_the_price(monkeypatch):
    engine = Engine(CONFIG, init(CONFIG, jax.random.key(0)), byte_tokenizer(), batch_size=4)
    test, calls, embed = TASK.splits["test"][:3], [], Engine.embed

    def counted(self, texts):
        calls.append((self.batch_size, len(texts)))
        return embed(self, texts)

    monkeypatch.setattr(Engine, "embed", counted)
    instruction = "Say whether the fruit is sour or sweet. " * 2  # that is read once and kept
    prompt = PromptConfig(shots=1, pick="nearest", instruction=instruction)
    near, said = measure(TASK, engine, test, prompt)
    assert calls.count((4, 12)) == 1 and (1, 12) not in calls  # the examples, many together
    assert calls.count((1, 1)) > 2 * 2 * len(test)  # as live traffic comes: in both latencies
    plain = sum(len(each.prompt_ids) for each in said.asked) / 3 + sum(len(f" {o}\n") - 1 for o in ("sour", "sweet"))
    query = sum(len(byte_tokenizer().prompt(record["input"])) for record in test) / 3
    parts = [forward_flops(CONFIG, engine.params, tokens, tokens / 2) for tokens in (plain, query)]
    assert near["flops_per_request"] == pytest.approx(sum(parts))
    start = common_start([each.prompt_ids for each in said.asked])
    rest = forward_flops(CONFIG, engine.params, plain - start, start + (plain - start) / 2)
    assert near["flops_per_request_prefix"] == pytest.approx(rest + parts[1])
    calls.clear()
    measure(TASK, engine, test, PromptConfig(shots=1, pick="bm25"))
    assert not calls


def test_short_calls_are_timed_often_and_every_timed_call_is_counted():
    calls = []

    def call(argument):
        calls.append(argument)
        time.sleep(0.01)

    found = timing(call, ["a", "b"])
    assert found.calls == len(calls) - 2 >= 0.5 / 0.02 and 10 <= found.ms < 20
    assert calls[:4] == ["a", "b", "a", "b"]
