"""Tasks of lm-evaluation-harness by name, run with an engine of ours: what `limbeck evaluate` does."""

import contextlib
import importlib.metadata
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from limbeck.evaluation.lm_eval_adapter import LimbeckLM
from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError, nearest

_BOOTSTRAPS = 1000  # of the standard errors that have no formula
_SEEDS = (0, 1234)  # lm-eval's own, of Python's and of the other random numbers


def load_tasks(names: Sequence[str], include_path: str | None = None, num_fewshot: int | None = None) -> dict[str, Any]:
    """lm-eval's tasks by their names, those of groups or tags, patterns with *, or YAML files; several with commas.

    `include_path` is a folder with task files of one's own. `num_fewshot` is for all tasks but those that say that they
    are asked without examples. Raises UserError for a name that there is not, a task that cannot be made, such as one
    whose records are not there, and one that runs code which the model writes.
    """
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    words = [word for name in names for word in name.split(",") if word]
    files = [word for word in words if word.endswith((".yaml", ".yml")) and os.path.isfile(word)]
    if include_path is not None and not os.path.isdir(include_path):
        raise UserError(f"no folder {include_path}: name the one that holds your task files")
    manager = TaskManager(include_path=include_path, include_defaults=False)  # lm-eval has 14,000, which take seconds
    if not set(words) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=include_path)
    found: dict[str, None] = dict.fromkeys(files)
    for word in words:
        matches = [word] if word in files else manager.match_tasks([word])
        if not matches:
            raise UserError(f"unknown task {word!r}{nearest(word, manager.all_tasks)}; `lm-eval ls tasks` lists them")
        found.update(dict.fromkeys(matches))
    random.seed(_SEEDS[0])  # some tasks shuffle their records
    np.random.seed(_SEEDS[1])
    try:
        loaded: Any = manager.load(list(found))
    except Exception as error:  # whatever a task's file leads to
        said = " ".join(str(error).split()) or "no reason given"
        raise UserError(f"{', '.join(found)}: cannot be loaded: {type(error).__name__}: {said[:300]}") from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"task {name!r} runs code that the model writes, which is not done here: leave it out")
        own = task.get_config("num_fewshot")
        if own != 0:
            task.set_config(key="num_fewshot", value=num_fewshot if num_fewshot is not None else own or 0)
        task.set_fewshot_seed(seed=_SEEDS[1])
    return loaded


def evaluate(engine: Engine, tasks: dict[str, Any], limit: int | None = None, chat: bool = False) -> dict[str, Any]:
    """Runs what `load_tasks` gave, all records or the first `limit` of each task; results that JSON can hold.

    For each task and group its version, the examples in a prompt, records, and metrics with their standard errors;
    the digests of the model and of its tokenizer. `chat` asks in conversations, by the tokenizer's template.
    """
    from lm_eval.evaluator import evaluate as run  # pyright: ignore[reportMissingImports]

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # it would fork this process, whose threads do not survive that
    model = LimbeckLM(engine)
    if chat and engine.tokenizer.chat_template is None:
        raise UserError("this model's tokenizer has no chat template: leave --chat out, or add a chat_template.jinja")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            results: Any = run(
                model,
                tasks,
                limit=limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=False,
                apply_chat_template=chat,
                fewshot_as_multiturn=True,
            )
        except jinja2.TemplateError as error:
            raise UserError(f"a task's template does not fit its records: {error}") from error
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "model_digest": engine.weights_digest,
        "tokenizer_digest": engine.tokenizer_digest,
        "dtype": engine.dtype,
        "limit": limit,
        "chat": chat,
        "cut": model.cut,
        "tasks": {name: _entry(name, results) for name in results["results"]},
    }


def _entry(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    measured = results["results"][name]
    better = results["higher_is_better"].get(name, {})
    metrics = []
    for key in measured:
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            values = [_number(measured.get(one)) for one in (key, f"{metric}_stderr,{kind}")]
            metrics.append(dict(zip(("metric", "filter", "value", "stderr"), (metric, kind, *values), strict=True)))
            metrics[-1]["higher_is_better"] = better.get(metric)
    return {
        "title": measured.get("alias", name),
        "version": results["versions"].get(name),
        "shots": results["n-shot"].get(name),
        "records": measured.get("sample_len"),
        "parts": results["group_subtasks"].get(name, []),
        "metrics": metrics,
    }


def _number(value: Any) -> float | str | None:
    """A float; as text where JSON has no number for it, and None for what was not measured."""
    if not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else str(float(value))
