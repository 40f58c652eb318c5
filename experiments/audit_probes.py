"""What an audit asks of a model: each set of items that a config names, read before any model is."""

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from limbeck.evaluation.bias import built_in, generations, groups, occupations, pairs, questions, swaps, winobias
from limbeck.evaluation.bias.mentions import group_counts, load_group_words, read_group_words
from limbeck.evaluation.bias.rows import BiasRow
from limbeck.evaluation.canaries import exposure_rows, read_canaries
from limbeck.evaluation.extraction import extraction_rows, occurrences
from limbeck.experiments.audit_config import AuditConfig
from limbeck.inference.engine import Engine
from limbeck.inference.job import BulkRequest
from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.inference.store import PredictionStore
from limbeck.inference.stored import stored_results
from limbeck.model.errors import UserError
from limbeck.model.pretrained.lineage import data_of
from limbeck.model.progress import no_progress
from limbeck.model.tokenizer import Tokenizer
from limbeck.prompting.config import PromptConfig
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Record, Task
from limbeck.tasks.texts import read_texts

T = TypeVar("T")


class Unanswered(UserError):
    """A set of items of which some are refused by a model, such as sentences that it has no room for."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """An engine whose answers are kept in a store, so that an audit that is killed goes on where it was."""

    engine: Engine
    store: Path

    @property
    def tokenizer(self) -> Tokenizer:
        """The engine's."""
        return self.engine.tokenizer

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """As `Engine.score`."""
        return [each for each in self._answers(requests) if isinstance(each, Scores)]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """As `Engine.generate`."""
        with no_progress():  # what asks for texts shows how far it is
            return [each for each in self._answers(requests) if isinstance(each, Generation)]

    def _answers(self, requests: Sequence[ScoreRequest] | Sequence[GenerateRequest]) -> list[Any]:
        asked = [BulkRequest(self._shown(request), request) for request in requests]
        found = stored_results(self.engine, asked, self.store)
        if refused := found.count(None):
            with PredictionStore(self.store) as store:
                reason = store.failures()[0]["reason"]
            raise Unanswered(f"the model refuses {refused} of {len(found)} items: {reason}")
        return found

    def _shown(self, request: ScoreRequest | GenerateRequest) -> str:
        """The text by which a store's reader finds a request."""
        first = request.options[0] if isinstance(request, ScoreRequest) else ()
        return self.tokenizer.decode((*request.prompt, *first)).strip() or "(no text)"


class Probe(NamedTuple):
    """What is measured of a model, by which items, what is to be known beside it, and in which section a card tells it.

    `digest` is that of all that is asked; `left_out` has a line for each item of the file that is not.
    """

    measure: Callable[[Kept], Sequence[BiasRow]]
    digest: str
    caveats: str = ""
    section: str = "bias"
    left_out: tuple[str, ...] = ()


def probes_of(config: AuditConfig) -> dict[str, Probe]:
    """By title, in the order of the report. Raises UserError for a file that cannot be read."""
    found = {
        "Built-in sentences": _asking(built_in.probe, built_in.load_pairs(), built_in.CAVEATS, config),
        "Built-in questions": _asking(questions.question_rows, questions.load_questions(), questions.CAVEATS, config),
    }
    if config.pairs:
        asked = pairs.read_pairs(config.pairs)
        found[f"Sentence pairs of {_title(config.pairs)}"] = _asking(pairs.pair_rows, asked, pairs.CAVEATS, config)
    if config.questions:
        asked = questions.read_questions(config.questions)
        title = f"Questions of {_title(config.questions)}"
        found[title] = _asking(questions.question_rows, asked, questions.CAVEATS, config)
    if config.winobias:
        read = winobias.read_winobias(config.winobias)
        probe = _asking(winobias.winobias_rows, read.pairs, winobias.CAVEATS, config)
        found["WinoBias"] = probe._replace(left_out=read.skipped)
    if config.occupations:
        shares = occupations.read_occupations(config.occupations)
        frames = occupations.read_frames(config.frames) if config.frames else occupations.FRAMES
        found[f"Occupations of {_title(config.occupations)}"] = Probe(
            lambda model: occupations.table_rows(model, shares, frames),
            _digest([*shares.items(), *frames]),
            occupations.CAVEATS,
        )
    if config.generations:
        found["Who is spoken of in free text"] = _writing(config)
    if config.task:
        found |= _of_task(config)
    if config.training:
        texts, held_out = (texts_of(path) for path in (config.training, config.held_out))
        asked = some(texts, config)
        found["Text that comes out again"] = Probe(
            lambda model: extraction_rows(
                model, asked, some(held_out, config), occurrences(model.tokenizer, asked, texts)
            ),
            _digest([asked, texts, held_out, config.limit]),
            section="memorisation",
        )
    if config.canaries:
        kept = read_canaries(config.canaries)
        found["Canaries"] = Probe(
            lambda model: exposure_rows(model, kept, seed=config.seed),
            _digest([*kept.items(), config.seed]),
            section="memorisation",
        )
    return found


def task_of(config: AuditConfig, source: str) -> Task:
    """A task, by the description that goes with it. Raises UserError for one that is no JSON object."""
    described = None
    if config.description:
        with contextlib.suppress(ValueError):
            described = json.loads(config.description)
        if not isinstance(described, dict):
            raise UserError(f"description={config.description!r:.80} is no JSON object, such as a task.json holds")
    return load_task(source, description=described)


def texts_of(path: str) -> list[str]:
    """The documents of a text source."""
    return [each.text for each in read_texts(path).documents]


def some(items: Sequence[T], config: AuditConfig) -> Sequence[T]:
    """As many of the items as the config asks for, drawn by its seed and in their order: files are sorted by kind."""
    if not 0 < config.limit < len(items):
        return items
    return [items[i] for i in sorted(random.Random(config.seed).sample(range(len(items)), config.limit))]


def _digest(asked: Iterable[Any]) -> str:
    return data_of("", map(repr, asked)).digest


def _asking(
    rows_of: Callable[[Kept, Sequence[T]], Sequence[BiasRow]], items: Sequence[T], caveats: str, config: AuditConfig
) -> Probe:
    asked = some(items, config)
    drawn = f"{len(asked)} of {len(items)} items, drawn by seed {config.seed}. " if len(asked) < len(items) else ""
    return Probe(lambda model: rows_of(model, asked), _digest(asked), drawn + caveats)


def _writing(config: AuditConfig) -> Probe:
    """Whom free text speaks of, beside equal shares and, where it is known, the text that the model was trained on."""
    words = read_group_words(config.words) if config.words else load_group_words()
    reference = None
    if config.training:
        counts = group_counts(texts_of(config.training), words)
        reference = {name: int(counts_N.sum()) for name, counts_N in counts.items()}

    def rows(model: Kept) -> Sequence[BiasRow]:
        texts = generations.generate_texts(model, samples=config.generations, seed=config.seed)
        return generations.representation_rows(texts, words, reference)

    listed = [(name, group, sorted(each)) for name, groups in words.items() for group, each in groups.items()]
    return Probe(rows, _digest([listed, reference, config.generations, config.seed]), generations.CAVEATS)


def _of_task(config: AuditConfig) -> dict[str, Probe]:
    """What a task's own records show: with words of groups swapped, and by the groups that they are of."""
    task = task_of(config, config.task)
    if config.split not in task.splits:
        raise UserError(f"split={config.split!r}: task {task.name!r} has {', '.join(task.splits)}")
    records = some(task.splits[config.split], config)
    listed = swaps.read_swaps(*config.swaps) if config.swaps else swaps.load_swaps()
    digest = _digest([task.digest(), records, sorted(listed.to.items()), config.shots, config.seed])
    found = {}
    if len(swaps.changed(task, records, listed)) >= 2:
        found[f"{task.name}, with words swapped"] = Probe(
            lambda model: swaps.counterfactual_rows(task, _ask(task, model, config), records, listed),
            digest,
            swaps.CAVEATS,
        )
    if task.group_field:
        found[f"{task.name}, by {task.group_field}"] = Probe(
            lambda model: _grouped(task, _ask(task, model, config), records), digest, groups.CAVEATS
        )
    if not found:
        raise UserError(
            f"task {task.name!r}: no word to swap in two of its {len(records)} {config.split} records, and no group: "
            'give --swaps a list of words that it has, or name a field as "group" in its task.json'
        )
    return found


def _ask(task: Task, model: Kept, config: AuditConfig) -> swaps.Ask:
    engine = model.engine
    if engine.config.labels:
        return swaps.ask_head(task, engine.config, engine.params, engine.tokenizer)
    return swaps.ask_prompted(task, engine, PromptConfig(shots=config.shots, seed=config.seed))


def _grouped(task: Task, ask: swaps.Ask, records: Sequence[Record]) -> Sequence[BiasRow]:
    assert task.group_field is not None
    answers, probability_NO = ask(records)
    right = [task.answer(record) for record in records]
    labels = task.options if task.kind == "classification" and task.options else ()
    of = [record[task.group_field] for record in records]
    return groups.group_rows(of, right, answers, probability_NO if labels else None, labels=labels)


def _title(path: str) -> str:
    """A file's name, and its folder's, which says more than "test.jsonl"."""
    return "/".join(Path(path).parts[-2:])
