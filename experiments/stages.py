"""The stages of the lesson: what each has in common, and how one is trained or measured once.

A stage leaves its result in the run's folder and is not computed again: `models/<name>` holds what training made,
`stages/<name>.json` what was measured, `checkpoints/<name>` a training that is under way.
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from limbeck.distill.teacher import without_teacher
from limbeck.evaluation.energy import Meter
from limbeck.evaluation.measure import measure
from limbeck.experiments.lesson_config import LessonConfig
from limbeck.experiments.origins import made_here, training_cost
from limbeck.experiments.rundir import MetricsLog, cache_folder, stage
from limbeck.experiments.start import Past
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.flops import step_flops
from limbeck.model.params import Params, count, digest, join, merge
from limbeck.model.pretrained import lineage_of, load_pretrained, save_pretrained
from limbeck.model.pretrained.lineage import Lineage
from limbeck.model.sharding import placed
from limbeck.model.tokenizer import Tokenizer, load_tokenizer, train_bpe
from limbeck.prompting.config import PromptConfig
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Record, Task
from limbeck.tasks.world import corpus
from limbeck.train.config import FitConfig
from limbeck.train.data import Rows, Stream, batches, pack
from limbeck.train.examples import chunked, completions, documents
from limbeck.train.loop import fit
from limbeck.train.loss import LossFn, token_loss
from limbeck.train.optim import make_optimizer, optimizer_bytes
from limbeck.train.row_cache import cached, rows_key
from limbeck.train.select import Selection, apply_selection, describe, moved


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What every stage needs."""

    config: LessonConfig
    folder: Path
    task: Task
    tokenizer: Tokenizer
    foundation: list[str]  # the foundation's texts
    log: Callable[[dict], None]

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """The stage's result, from its file if an earlier start got that far."""
        return stage(self.folder, name, compute)

    def engine(self, name: str) -> Engine:
        """The trained model of that name, ready to answer."""
        model = load_pretrained(self.folder / "models" / name)
        return Engine(model.config, model.params, self.tokenizer)

    def lineage(self, name: str) -> Lineage:
        """Where the trained model of that name comes from."""
        folder = self.folder / "models" / name
        return lineage_of(load_pretrained(folder), folder)


def prepare(config: LessonConfig, rundir: Path) -> Lesson:
    """The task, the foundation's text and a tokenizer learned from it."""
    task = load_task(config.task)
    texts = list(corpus(config.seed, config.documents))
    if task.name != "world":
        # A foundation has read text like the user's, but none of the answers.
        texts += [task.query(record) for record in task.splits["train"]]
    path = rundir / "tokenizer.json"
    if not path.exists():
        train_bpe(texts, config.base.vocab_size, line_prefix=True).save(path)
    tokenizer = load_tokenizer(path)
    return Lesson(config, rundir, task, tokenizer, texts, MetricsLog(rundir).append)


def stream_of(
    lesson: Lesson, settings: FitConfig, task_share: float, written: Sequence[Record] = ()
) -> Stream:
    """Batches of foundation text and of task examples, the training split and the `written`; their share is given."""
    length, sources = settings.length, []
    if task_share > 0:
        rows = _task_rows(lesson, [*lesson.task.splits["train"], *written], length)
        length = rows.groups[0]["tokens_BT"].shape[1]
        sources.append((rows, task_share))
    if task_share < 1:
        sources.append((_text_rows(lesson, length), 1 - task_share))
    return batches(sources, settings.batch_size, lesson.config.seed)


def _task_rows(lesson: Lesson, records: Sequence[Record], length: int) -> Rows:
    """The records packed into rows of `length` tokens, or of as many as the longest needs: no answer is cut."""

    def make() -> Rows:
        examples = completions(lesson.task, records, lesson.tokenizer)
        return pack(examples, max(length, max(len(example.ids) - 1 for example in examples)))

    texts = [lesson.task.digest(), *(lesson.task.place(record) + json.dumps(record) for record in records)]
    key = rows_key("completions", lesson.tokenizer, {"length": length}, texts)
    return cached(cache_folder(lesson.folder) / "rows", key, make)


def _text_rows(lesson: Lesson, length: int) -> Rows:
    """The foundation's texts, in pieces packed into rows."""

    def make() -> Rows:
        return pack(chunked(documents(lesson.foundation, lesson.tokenizer), length), length)

    key = rows_key("documents", lesson.tokenizer, {"length": length}, lesson.foundation)
    return cached(cache_folder(lesson.folder) / "rows", key, make)


def train(
    lesson: Lesson,
    name: str,
    model: ModelConfig,
    start_from: Callable[[], Params],
    settings: FitConfig,
    stream: Stream,
    selection: Selection = Selection(),
    loss_fn: LossFn | None = None,
    *,
    past: Past,
) -> dict[str, Any]:
    """Trains and saves `models/<name>`; returns what the training cost and what it moved."""

    def compute() -> dict[str, Any]:
        params = placed(model, start_from())
        trainable, frozen = apply_selection(selection, params)
        print(f"{name}: {describe(trainable, frozen)}", file=sys.stderr)
        checkpoints = lesson.folder / "checkpoints" / name
        with Meter() as meter:
            fitted = fit(
                loss_fn or token_loss(model),
                params,
                stream,
                settings,
                selection=selection,
                seed=lesson.config.seed,
                name=name,
                checkpoints=checkpoints,
                log=lesson.log,
                example_name=stream.name,
            )
        final = without_teacher(join(merge(fitted.trainable, fitted.frozen)))
        rows, length = stream(0)["tokens_BT"].shape
        per_step = step_flops(model, trainable, without_teacher(frozen), rows * length, length / 2)
        cost = training_cost(meter, fitted.seconds, per_step * settings.steps)
        method = name if without_teacher(frozen) else "full"
        made = {"parameters": count(final), "trained": count(trainable), "method": method, "cost": cost}
        lineage = made_here(name, past, lesson.config, **made)
        save_pretrained(lesson.folder / "models" / name, model, final, lesson.tokenizer, lineage=lineage)
        shutil.rmtree(checkpoints, ignore_errors=True)
        by_leaf = moved(apply_selection(selection, params)[0], fitted.trainable)
        still = moved(without_teacher(frozen), without_teacher(fitted.frozen))
        return {
            "digest": digest(final),
            "params_trainable": count(trainable),
            "train_seconds": fitted.seconds,
            "cost": cost,
            "optimizer_bytes": optimizer_bytes(make_optimizer(settings.optim, settings.steps), trainable),
            "flops_per_step": per_step,
            "train_flops": per_step * settings.steps,
            "leaves_moved": sorted(path for path, changed in by_leaf.items() if changed),
            "leaves_unmoved": sorted(path for path, changed in by_leaf.items() if not changed),
            "frozen_moved": sorted(path for path, changed in still.items() if changed),
            "frozen_leaves": len(still),
            "curve": fitted.curve,
        }

    return lesson.stage(f"train_{name}", compute)


def measured(lesson: Lesson, name: str, engine: Engine, shots: int) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        test = lesson.task.splits["test"]
        row, predictions = measure(lesson.task, engine, test, PromptConfig(shots=shots, seed=lesson.config.seed))
        return {"row": row, "answers": list(predictions.answers)}

    return lesson.stage(name, compute)
