"""All that a prompt's result says: what it scored, how far prompts that mean the same lie apart, other readings of it.

Dimension key: `N` records, `S` drawn answers of each.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from limbeck.evaluation.asked import changes, load_asked, write_asked
from limbeck.evaluation.measure import all_metrics, measure, measured
from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig, View
from limbeck.prompting.predict import Asked, ensemble, predict, stored_scores
from limbeck.prompting.prompts import scored
from limbeck.prompting.scores import best, view
from limbeck.prompting.sensitivity import spread, variants
from limbeck.prompting.votes import accuracy_by_samples
from limbeck.tasks.task import Task

# Of an ensemble's prompts, which are asked one after another; the search for one of them is in its training.
_SUMMED = (
    "prompt_tokens", "latency_ms_p50", "joules_per_prediction", "flops_per_request", "train_seconds", "train_flops",
)  # fmt: skip
_OF_THE_MODEL = ("params_total", "params_trainable", "bytes", "joules_source")


def prompted(
    run: Path, task: Task, engine: Engine, name: str, prompt: PromptConfig, *, count: int, records: int, seed: int
) -> dict[str, Any]:
    """{"row", "answers"} of one prompt over the test split; what was asked is kept in the run's folder.

    To what `measure` says the row adds "variants": what at most `count` prompts that mean the same scored on so many
    of the records, the prompt itself first, [{"changes", "value", "ci95", "n"}], or {"changes", "error"} where one
    cannot be asked; their "spread"; "views" and "by_samples", where there are such.
    """
    test = task.splits["test"]
    row, said = measure(task, engine, test, prompt)
    write_asked(run, name, task.metric, (each._asdict() for each in said.asked), row["prompt"])
    row |= {"views": views(task, said.asked)} if scored(task, prompt) and prompt.calibration == "none" else {}
    if prompt.samples > 1 and task.kind != "regression":
        read_NS, right_N = [each.read for each in said.asked], [each.right for each in said.asked]
        row["by_samples"] = accuracy_by_samples(read_NS, right_N, range(1, prompt.samples + 1))
    some = np.random.default_rng(seed).permutation(len(test))[:records]
    part, tried = [test[i] for i in sorted(some)], []
    right = [task.answer(record) for record in part]
    for other in variants(task, prompt, count, seed):
        different = changes(other, prompt)
        try:
            answers = predict(task, engine, part, other).answers
        except UserError as error:  # the prompt itself went through: this form of it is too long, say
            print(f"{name}: a variant is left out: {error}", file=sys.stderr)
            tried.append({"changes": different, "error": str(error)})
            continue
        tried.append({"changes": different, **measured(task.metric, answers, right)})
    values = [each["value"] for each in tried if "value" in each]
    if len(values) > 1:
        row |= {"spread": spread(values)._asdict(), "variants": tried}
    return {"row": row, "answers": list(said.answers)}


def views(task: Task, asked: Sequence[Asked]) -> dict[str, dict[str, Any]]:
    """{view: {"value", "ci95", "n"}} of the task's metric, for every view of the option scores that were stored."""
    assert task.options is not None
    stored, right = stored_scores(asked), [each.right for each in asked]
    parts = {"pmi": stored.alone_NO, "domain_pmi": stored.domain_NO}
    found = {}
    for name in get_args(View):
        if name not in parts or parts[name] is not None:
            answers = [task.options[index] for index in best(view(stored, name))]
            found[name] = measured(task.metric, answers, right)
    return found


def together(run: Path, task: Task, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"row", "answers"} of all these prompts as an `ensemble`, of equals the last one's answer.

    They are asked one after another: its cost is the sum of theirs. Their records are read from the run's folder.
    """
    asked = [[Asked(**{key: row[key] for key in Asked._fields}) for row in load_asked(run, name)] for name in rows]
    answers = ensemble(task, asked[::-1])
    costs: dict[str, list[Any]] = {key: [row.get(key) for row in rows.values()] for key in _SUMMED}
    row = {
        "metrics": all_metrics(task, answers, [each.right for each in asked[0]]),
        "prompt": {"members": list(rows)},
        **{key: next(iter(rows.values())).get(key) for key in _OF_THE_MODEL},
        **{key: None if None in values else sum(values) for key, values in costs.items()},
    }
    return {"row": row, "answers": list(answers)}
