"""A search that is killed goes on: what was asked is not asked again, and what is found is the same."""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import jax
import pytest

from limbeck.experiments import searching
from limbeck.experiments.adaptation_config import SearchConfig
from limbeck.experiments.searching import evaluated_once, found_prompt, proposed_once, searched, worth
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.flops import forward_flops
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.search import Found, How, Proposals, search
from limbeck.prompting.tries import Measured
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template

RECORDS = tuple({"id": f"validation/{i}", "input": str(i), "output": ""} for i in range(32))
PROMPTS = [PromptConfig(examples=("a", "ب"), shots=2, pick="fixed", seed=i) for i in range(9)]


class Killed(BaseException):
    """What no handler may swallow."""


class Scripted:
    """Evaluates and proposes by chance, the same for the same; ends at a call."""

    def __init__(self, dies_at: int = 0) -> None:
        self.asked: list[tuple[PromptConfig, tuple[str, ...]]] = []
        self.proposed = 0
        self.dies_at = dies_at

    def evaluate(self, config: PromptConfig, records: Sequence[Record]) -> Measured:
        if len(self.asked) + self.proposed + 1 == self.dies_at:
            raise Killed
        self.asked.append((config, tuple(record["id"] for record in records)))
        drawn = [random.Random(f"{config} {record['id']}").random() / 3 for record in records]
        return Measured(tuple(drawn), 7 * len(records))

    def propose(self, tried: Sequence[tuple[PromptConfig, float]]) -> Proposals:
        if len(self.asked) + self.proposed + 1 == self.dies_at:
            raise Killed
        self.proposed += 1
        return Proposals((f"say {sum(mean for _, mean in tried):.9f}", "say less"), 5)

    def search(self, folder: Path, how: How, about: str = "a model") -> Found:
        folder.mkdir(exist_ok=True)
        ask, propose = evaluated_once(self.evaluate, folder, [about]), proposed_once(self.propose, folder, [about])
        return search(PROMPTS, ask, RECORDS, budget=32 * 8, how=how, propose=propose)


@pytest.mark.parametrize("how", ["halving", "random"])
def test_killed_after_any_try_it_asks_nothing_twice_and_finds_the_same(tmp_path, how: How):
    whole = Scripted()
    expected = whole.search(tmp_path / "whole", how)
    calls = len(whole.asked) + whole.proposed
    assert whole.proposed > 1 and calls > 8
    for dies_at in range(1, calls + 1):
        first, then = Scripted(dies_at), Scripted()
        with pytest.raises(Killed):
            first.search(tmp_path / str(dies_at), how)
        assert then.search(tmp_path / str(dies_at), how) == expected
        assert first.asked + then.asked == whole.asked  # each once, none lost
        assert first.proposed + then.proposed == whole.proposed
    again = Scripted(dies_at=1)
    assert again.search(tmp_path / "whole", how) == expected and not again.asked


def test_what_another_model_said_does_not_count(tmp_path):
    for about in ("a model", "another", "a model"):
        scripted = Scripted()
        scripted.search(tmp_path / "run", "halving", about)
        fresh = about == "another" or not (tmp_path / "run" / "seen").exists()
        assert bool(scripted.asked) == bool(scripted.proposed) == fresh
        (tmp_path / "run" / "seen").touch()


TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    TOKENIZER.vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=128
)
ROWS = [{"id": str(i), "input": f"fruit {i}", "output": ("pome", "drupe")[i % 2]} for i in range(24)]
TASK = Task(
    "fruits", {"train": tuple(ROWS[:12]), "validation": tuple(ROWS[12:20]), "test": tuple(ROWS[20:])}, Template(),
    ("pome", "drupe"),
)  # fmt: skip


def test_a_killed_search_reports_what_an_uninterrupted_one_does(tmp_path, monkeypatch):
    """Also of tokens: that the examples must be embedded once more is of no try."""
    params, prompt = init(CONFIG, jax.random.key(0)), PromptConfig(shots=1, pick="nearest")

    def run(folder: str) -> dict:
        engine = Engine(CONFIG, params, TOKENIZER, batch_size=4)
        config = SearchConfig(candidates=6, passes=6, how="random", instructions=("Name it.",))
        return searched(config, TASK, engine, prompt, tmp_path / folder, seed=0)

    whole, asked, predict = run("whole"), [], searching.predict

    def dying(task: Task, engine: Engine, records: Sequence[Record], tried: PromptConfig):
        if len(asked) == 1:
            raise Killed
        asked.append(tried)
        return predict(task, engine, records, tried)

    monkeypatch.setattr(searching, "predict", dying)
    with pytest.raises(Killed):
        run("killed")
    monkeypatch.setattr(searching, "predict", lambda *args: (asked.append(args[3]), predict(*args))[1])
    killed = run("killed")
    assert len(asked) == len(set(asked)) == len(whole["tried"]) == 6
    assert sum(tried.pick == "nearest" for tried in asked) > 1  # so both starts made an index
    seconds = {"whole": whole.pop("seconds"), "killed": killed.pop("seconds")}
    assert killed == whole and json.loads(json.dumps(whole))["records"] == 6 * 8
    assert whole["flops"] == forward_flops(CONFIG, params, whole["tokens"], CONFIG.max_len / 4)
    for folder, spent in seconds.items():  # all tries', also those of the start that was killed
        kept = [json.loads(path.read_text()) for path in (tmp_path / folder / "stages").glob("*.json")]
        assert len(kept) == 6 and spent == pytest.approx(sum(each["seconds"] for each in kept))
    back = found_prompt(json.loads(json.dumps(whole)))
    assert back in {found_prompt({"prompt": each["config"]}) for each in whole["tried"]} and hash(back)


def test_a_short_answer_that_is_right_is_worth_something_whatever_the_metric():
    """BLEU alone finds every text of fewer than four words worth nothing."""
    for metric in ("bleu", "chrf", "rouge_l", "token_f1", "exact_match", "accuracy"):
        task = dataclasses.replace(TASK, options=None, kind="generation", metric=metric)
        right, near, wrong = worth(task, ["pome", "dr", "xyz"], ROWS[:3])
        assert right == METRICS["chrf" if metric == "bleu" else metric].score(["pome"], ["pome"]).value
        assert right > near >= wrong == 0
