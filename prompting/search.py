"""The prompt that does best on validation within a budget: random search and successive halving over candidates.

Examples come from train and the choice from validation; the test split is never handed in here.
"""

import bisect
import dataclasses
import math
import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from limbeck.model.errors import UserError, one_of
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.formats import FORMATS, Format, formatted
from limbeck.prompting.tries import Cost, Evaluate, Tries, Try
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import render

How = Literal["halving", "random"]

_FIRST = 4  # records at least by which halving first tells candidates apart


class Proposals(NamedTuple):
    """Instructions to try, and the tokens that went through a model for them."""

    texts: tuple[str, ...]
    tokens: int = 0


class Found(NamedTuple):
    """The prompt chosen, its quality on the validation records and the unoptimised one's, all tries, what was spent."""

    config: PromptConfig
    quality: float
    unoptimised: float
    tries: tuple[Try, ...]
    records: int  # answers asked for, over all candidates
    tokens: int  # those of the answers
    proposing_tokens: int  # those of writing proposals, which are not of the budget


Propose = Callable[[Sequence[tuple[PromptConfig, float]]], Proposals]


def candidates(
    task: Task,
    config: PromptConfig,
    count: int,
    seed: int,
    instructions: Sequence[str] = (),
    formats: Sequence[Format] = FORMATS,
) -> list[PromptConfig]:
    """At most `count` prompts, the config itself first, the others drawn by `seed`, none twice.

    They combine instructions, examples (`config.shots` fixed ones out of train), their orders, and formats. In a task
    with groups, whose examples are of each record's own group, other seeds stand for other examples. A training record
    whose query stands in another split too is never an example: it could not be shown before that record.
    Raises UserError for a count below 1, and for more shots than train has records to draw.
    """
    if count < 1:
        raise UserError(f"{count} candidates: ask for at least 1, which is the unoptimised prompt")
    rng = random.Random(seed)
    own = task.template.instruction if config.instruction is None else config.instruction
    spoken = [{}, *({"instruction": text} for text in dict.fromkeys(instructions) if text != own)]
    shown = _examples(task, config, math.isqrt(count) + 1, rng)
    dressed = formatted(task, config, formats)
    total = len(spoken) * len(shown) * len(dressed)
    found = [config]
    for index in rng.sample(range(1, total), min(count, total) - 1):
        rest, at = divmod(index, len(dressed))
        found.append(dataclasses.replace(dressed[at], **spoken[rest % len(spoken)], **shown[rest // len(spoken)]))
    return found


def _examples(task: Task, config: PromptConfig, several: int, rng: random.Random) -> list[dict[str, Any]]:
    """What a prompt's examples can be: as the config has them; several sets, each in several orders."""
    if config.shots == 0:
        return [{}]
    if task.group_field is not None:
        drawn = config.pick in ("random", "balanced", "fixed")
        return [{}, *({"seed": config.seed + n} for n in range(1, several * several) if drawn)]
    pool = showable(task, config)
    if len(pool) < config.shots:
        raise UserError(
            f"{config.shots} shots: the train split has {len(pool)} records with queries of their own, that stand in"
            " no other split; ask for that many at most"
        )
    sets = [config.examples] if config.examples else []
    sets += [tuple(rng.sample(pool, config.shots)) for _ in range(several)]
    orders = [one for ids in sets for one in (ids, *(tuple(rng.sample(ids, len(ids))) for _ in range(several - 1)))]
    fixed = [ids for ids in dict.fromkeys(orders) if ids != config.examples]
    return [{}, *({"pick": "fixed", "examples": ids, "order": "as_is"} for ids in fixed)]


def showable(task: Task, config: PromptConfig) -> list[str]:
    """The ids of the training records that can stand before every record of the other splits, one for each query."""

    def texts(record: Record) -> set[str]:
        queries = {task.query(record)}
        if config.query is not None:
            queries.add(render(config.query, {**record, task.answer_field: "", "options": ""}).rstrip())
        return {unicodedata.normalize("NFC", query) for query in queries}

    others = [record for split, records in task.splits.items() if split != "train" for record in records]
    seen = set().union(*map(texts, others))
    pool = []
    for record in task.splits["train"]:
        own = texts(record)
        if seen.isdisjoint(own):
            pool.append(record["id"])
        seen |= own
    return pool


def search(
    candidates: Sequence[PromptConfig],
    evaluate: Evaluate,
    validation: Sequence[Record],
    *,
    budget: int,
    how: How = "halving",
    seed: int = 0,
    propose: Propose | None = None,
    rounds: int = 3,
    cost: Cost | None = None,
) -> Found:
    """The candidate of the highest mean quality over `validation`; of equals the first.

    `candidates[0]` is the unoptimised prompt: it answers every validation record, first. "random" has as many others
    as the budget allows answer all of them. "halving" has all (or as many as it allows) answer a few, the better half
    twice as many, and so on until one or more answer all (Jamieson & Talwalkar 2015, arXiv 1502.07943); the few are
    part of the many, and no candidate is asked the same twice. The same call finds the same.

    The budget is in records answered; with `cost`, which says how many tokens a candidate may take at most for a
    record, in tokens. It is never exceeded. `propose` is told every candidate so far with its mean, `rounds` times, and
    its instructions are tried in the best prompt so far; the budget is parted evenly between the candidates given and
    the rounds. A candidate that cannot be put to the model (UserError) is left out, and the table says why.

    Raises UserError: no candidates, no validation records, a budget below one pass of the unoptimised prompt, halving
    with batch calibration, which needs all records at once; and what is raised for the unoptimised prompt.
    """
    one_of("search", how, get_args(How))
    given = list(dict.fromkeys(candidates))
    if not given:
        raise UserError("no candidates to search among: give at least the unoptimised prompt")
    if how == "halving" and any(config.calibration == "batch" for config in given):
        raise UserError("calibration='batch' hangs on which records are asked together: search with how='random'")
    if not validation:
        raise UserError("no validation records: a prompt is chosen on that split, never on test; give the task one")
    rng = random.Random(seed)
    tries = Tries(evaluate, rng.sample(validation, len(validation)), cost, budget)
    unoptimised, *fresh = tries.add(given)
    one_pass = int(tries.prices_N(unoptimised)[-1])
    if budget < one_pass:
        raise UserError(
            f"a budget of {budget} {'tokens' if cost else 'records'}: the unoptimised prompt alone takes {one_pass} for"
            f" the {len(validation)} validation records; allow that, and about as much for each prompt to try in full"
        )
    tries.ask(unoptimised, len(validation))
    rng.shuffle(fresh)  # where the budget is too small for all, the order given says nothing
    proposing_tokens = 0
    for left in range(rounds if propose else 0, -1, -1):
        _compete(tries, fresh, how, tries.left // (left + 1))
        if propose is None or left == 0 or tries.left < one_pass:
            break
        proposals = propose(tries.so_far())
        proposing_tokens += proposals.tokens
        best = tries.best()
        texts = [text for text in proposals.texts if text.strip()]
        fresh = tries.add([dataclasses.replace(best, instruction=text) for text in texts], proposed=True)
        if not fresh:
            break
    best = tries.best()
    return Found(
        best,
        tries.mean(best),
        tries.mean(unoptimised),
        tries.table(),
        tries.records,
        tries.tokens,
        proposing_tokens,
    )


def _compete(tries: Tries, fresh: Sequence[PromptConfig], how: How, share: int) -> None:
    """Asks the candidates rung by rung, for `share` of the budget, or for more if that is not enough for one."""
    askable = [config for config in fresh if _possible(tries, config, lambda config: tries.prices_N(config))]
    if not askable:
        return
    prices_CN = np.stack([tries.prices_N(config) for config in askable])
    allowed = min(tries.left, max(share, int(prices_CN[0, -1])))
    alive = askable
    for place, (count, upto) in enumerate(rungs(how, prices_CN, allowed)):
        alive = (tries.ranked(alive) if place else alive)[:count]
        alive = [config for config in alive if _possible(tries, config, lambda config, to=upto: tries.ask(config, to))]


def _possible(tries: Tries, config: PromptConfig, act: Callable[[PromptConfig], Any]) -> bool:
    """Does it; False where it raises UserError, which is noted: what a search puts together may not fit a model."""
    try:
        act(config)
    except UserError as error:
        tries.refuse(config, str(error))
        return False
    return True


def rungs(how: How, prices_CN: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """(how many candidates go on, how many records each has then answered), from the first rung to all N records.

    `prices_CN` is what the first 1 ... N records cost for each candidate. The first so many candidates take part; empty
    where the budget is not enough for one. Whichever go on, the budget is enough.
    """
    total = prices_CN.shape[1]
    if how == "random":
        count = int((np.cumsum(prices_CN[:, -1]) <= budget).sum())
        return [(count, total)] if count else []
    least = min(_FIRST, total)
    for count in range(len(prices_CN), 0, -1):
        costs = lambda first, count=count: _dearest(_ladder(count, first, total), prices_CN[:count])  # noqa: E731
        first = bisect.bisect_right(range(total + 1), budget, lo=least, key=costs) - 1
        if first >= least:
            return _ladder(count, first, total)
    return []


def _ladder(count: int, first: int, total: int) -> list[tuple[int, int]]:
    """The better half goes on to twice as many records."""
    found = []
    while count > 1 and first < total:
        found.append((count, first))
        count, first = -(-count // 2), 2 * first
    return [*found, (count, total)]


def _dearest(ladder: Sequence[tuple[int, int]], prices_CN: np.ndarray) -> int:
    """What it costs if those that go on are always the dearest."""
    spent, known = 0, 0
    for count, upto in ladder:
        more_C = prices_CN[:, upto - 1] - (prices_CN[:, known - 1] if known else 0)
        spent += int(np.sort(more_C)[len(more_C) - count :].sum())
        known = upto
    return spent
