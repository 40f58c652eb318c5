"""The search for a better prompt in a run: what each record's answer is worth, and tries that are asked once, ever."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.evaluation.asked import changes, in_words
from limbeck.evaluation.scales import BY_RECORD
from limbeck.experiments.adaptation_config import SearchConfig
from limbeck.experiments.rundir import stage, stage_seconds
from limbeck.inference.engine import Engine
from limbeck.model.flops import forward_flops
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import examples_for, predict
from limbeck.prompting.proposals import proposer
from limbeck.prompting.search import Proposals, Propose, candidates, search
from limbeck.prompting.tries import Evaluate, Measured
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.number_metrics import number
from limbeck.tasks.task import Record, Task


def searched(
    config: SearchConfig, task: Task, engine: Engine, prompt: PromptConfig, folder: Path, seed: int
) -> dict[str, Any]:
    """The prompt that does best on the validation split, what was tried and what that took; JSON.

    Every try is kept in `folder`: a run that is killed asks nothing twice, and finds and reports the same.
    """
    validation = task.splits["validation"]

    def evaluate(tried: PromptConfig, records: Sequence[Record]) -> Measured:
        examples_for(task, engine, tried)(records[0])  # what examples are looked up in is of no try
        before = engine.tokens_run
        said = predict(task, engine, records, tried)
        return Measured(tuple(worth(task, said.answers, records)), engine.tokens_run - before)

    folder.mkdir(exist_ok=True)
    about = [engine.weights_digest, engine.tokenizer_digest, engine.dtype, task.digest()]
    propose = proposer(engine, task, config.proposer, seed=seed) if config.proposer else None
    found = search(
        candidates(task, prompt, config.candidates, seed, config.instructions),
        evaluated_once(evaluate, folder, about),
        validation,
        budget=int(config.passes * len(validation)),
        how=config.how,
        seed=seed,
        propose=proposed_once(propose, folder, [*about, config.proposer, seed]) if propose else None,
    )
    tokens = found.tokens + found.proposing_tokens
    return {
        "prompt": dataclasses.asdict(found.config),
        "validation": found.quality,
        "unoptimised": found.unoptimised,
        "records": found.records,
        "tokens": tokens,
        "tried": [{**each._asdict(), "config": dataclasses.asdict(each.config)} for each in found.tries],
        "seconds": stage_seconds(folder, *(path.stem for path in (folder / "stages").iterdir())),
        "flops": forward_flops(engine.config, engine.params, tokens, engine.config.max_len / 4),
    }


def evaluated_once(evaluate: Evaluate, folder: Path, about: Sequence[Any]) -> Evaluate:
    """`evaluate`, with what it found kept in `folder` after each call: the same is not asked again by a later start.

    The same is the candidate, the ids of the records, and `about`, which says of which model and task.
    """

    def ask(config: PromptConfig, records: Sequence[Record]) -> Measured:
        question = [*about, dataclasses.asdict(config), [record["id"] for record in records]]
        found = stage(folder, _name(question), lambda: evaluate(config, records)._asdict())
        return Measured(tuple(found["qualities"]), found["tokens"])

    return ask


def proposed_once(propose: Propose, folder: Path, about: Sequence[Any]) -> Propose:
    """`propose` likewise: the same is what was tried, how well it did, and `about`."""

    def ask(tried: Sequence[tuple[PromptConfig, float]]) -> Proposals:
        question = [*about, [[dataclasses.asdict(config), mean] for config, mean in tried]]
        found = stage(folder, _name(question), lambda: propose(tried)._asdict())
        return Proposals(tuple(found["texts"]), found["tokens"])

    return ask


def found_prompt(found: Mapping[str, Any]) -> PromptConfig:
    """The prompt that was found, out of JSON."""
    return PromptConfig(**{name: _tuples(value) for name, value in found["prompt"].items()})


def about_search(found: Mapping[str, Any], prompt: PromptConfig, test: float) -> list[list[str]]:
    """What was found, and by how much; `test` is the mean worth of its answers to the test split."""
    return [
        ["searched prompt", in_words(changes(prompt)) or "the task's own template"],
        [
            "search",
            f"{len(found['tried'])} prompts, {found['records']:,} answers, {found['tokens']:,} tokens; on validation "
            f"{found['validation']:.3f} (the first prompt {found['unoptimised']:.3f}), on test {test:.3f}: validation "
            f"flattered it by {found['validation'] - test:+.3f}",
        ],
    ]


def worth(task: Task, said: Sequence[str], records: Sequence[Record]) -> list[float]:
    """What each record's answer is worth; more is better.

    Of a number it is the squared error, negative; what is no number is as far off as the training split has answers.
    """
    if task.kind == "regression":
        seen = [task.number(record) for record in task.splits["train"]]
        low, high, rights = min(seen), max(seen), [task.number(record) for record in records]
        worst = [max(abs(right - low), abs(right - high), 1.0) for right in rights]
        read = [number(answer) for answer in said]
        triples = zip(read, rights, worst, strict=True)
        return [-((most if told is None else told - right) ** 2) for told, right, most in triples]
    metric = METRICS[BY_RECORD.get(task.metric, task.metric)]
    sign = 1 if metric.higher_is_better else -1
    pairs = zip(said, records, strict=True)
    return [sign * metric.score([answer], [task.answer(record)]).value for answer, record in pairs]


def _name(question: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
