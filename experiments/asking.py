"""How a prediction job asks: the model it asks, and what it makes of a query, in bulk or of a single one later."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.inference.engine import Engine
from limbeck.inference.requests import (
    EmbedRequest,
    GenerateRequest,
    Generation,
    HeadRequest,
    Request,
    Result,
    Sampling,
    ScoreRequest,
    Scores,
    Values,
)
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.quantize import quantize
from limbeck.model.tokenizer.chat import render
from limbeck.model.tokenizer.join import join
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import answer_tokens, examples_for, query_text, read_answer
from limbeck.prompting.prompts import Prompt, make_prompt, words
from limbeck.prompting.votes import majority
from limbeck.tasks.label_metrics import join_labels
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields
from limbeck.train.peft_format import load_adapter

_OF_ANSWERS = (
    *("options", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop"),
    *("description", "quantise", "coded_cache", "dtype"),
)
_OF_WRITING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "stop", "coded_cache")
PROMPT = "prompt"  # the field that is asked where there is no task
_NEW_TOKENS = 64

Asked = tuple[Request, ...] | UserError  # what is asked about a record, or why nothing is


class Asking(NamedTuple):
    """A job's way of asking.

    `ask` makes the requests of records that have the fields `names`, `about` the text by which a look-up finds them.
    `settings` says all of it but what the weights, the tokenizer and the task are.
    """

    task: Task | None
    options: tuple[str, ...] | None
    names: tuple[str, ...]
    settings: dict[str, Any]
    ask: Callable[[Sequence[Record]], Iterator[Asked]]
    about: Callable[[Record], str]
    read: Callable[[Sequence[Result]], str | None]


def open_engine(config: PredictionConfig) -> tuple[Engine, str]:
    """(the model of a config, quantised and cast as it says; the name of its adapter in it)."""
    if not config.model:
        raise UserError("no model is said: give --model, a file or a folder")
    model = load_pretrained(config.model, dtype=config.dtype or None)
    if model.tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer; put its tokenizer.json beside it")
    params = quantize(model.params, config.quantise) if config.quantise else model.params
    digest = None if config.quantise else model.digest
    engine = Engine(
        model.config, params, model.tokenizer, config.batch_size, digest, coded_cache=config.coded_cache
    )
    return engine, engine.attach(load_adapter(config.adapter, engine.config, engine.params)) if config.adapter else ""


def asking(config: PredictionConfig, engine: Engine, adapter: str, task: Task | None) -> Asking:
    """Raises UserError for what the task or the model does not allow, and for settings that would change nothing."""
    form = _form(config, engine, task)
    _check_idle(config, form, task)
    prompt = dataclasses.replace(config.prompt, seed=config.seed, max_new_tokens=config.max_new_tokens)
    if form == "write" and task and task.kind == "classification" and not prompt.writes:
        prompt = dataclasses.replace(prompt, samples=2)  # which says that the answer is written
    names = [PROMPT]
    if task is None:
        ask = _of_prompts(config, engine, adapter, form)
    else:
        names = fields(task.template.query)
        if form in ("head", "embed"):
            made = HeadRequest if form == "head" else EmbedRequest
            ask = _single(lambda record: (made(tuple(engine.tokenizer.prompt(task.query(record))), adapter),))
        else:
            names += fields(words(task, prompt).query)
            names += [task.group_field] if task.group_field and prompt.shots else []
            ask = _of_task(config, engine, adapter, task, prompt, form)
    options = _known(config, engine, task) if form in ("head", "score") else ()
    one = form == "head" and (task.kind == "regression" if task else len(options) == 1)
    kind = {"write": "generate", "score": "score", "embed": "embed", "head": "regress" if one else "classify"}[form]
    settings = {"kind": kind, "answers": task.kind if task else ""} | _differing(config.prompt, PromptConfig())
    settings |= {name: value for name, value in _differing(config, PredictionConfig()).items() if name in _OF_ANSWERS}
    settings |= {"adapter_digest": adapter} if adapter else {}
    return Asking(
        task,
        None if one else options or None,
        tuple(dict.fromkeys(names)),
        json.loads(json.dumps(settings)),
        ask,
        (lambda record: query_text(task, record)) if task else (lambda record: record[PROMPT]),
        _reader(task, form, prompt, () if one else options),
    )


def record_of(task: Task | None, identity: str, texts: Record) -> Record:
    """A record that a job can ask about, of the texts of a query; what answers it is not known."""
    if task is None:
        return {"id": identity, **texts}
    return {**dict.fromkeys(fields(task.template.target), ""), task.answer_field: "", **texts, "id": identity}


def _known(config: PredictionConfig, engine: Engine, task: Task | None) -> tuple[str, ...]:
    """The answers to choose from: the task's, or those that are named, or the head's."""
    return (task.options if task else config.options or engine.config.labels) or ()


def _form(config: PredictionConfig, engine: Engine, task: Task | None) -> str:
    """What a request is: "head", "score" (options), "write" or "embed"."""
    labels, kind, known = engine.config.labels, config.kind, _known(config, engine, task)
    written = config.samples > 1 or config.prompt.writes
    if not kind and written:
        kind = "generate"
    elif not kind and task:
        kinds = {"classification": "classify", "multi_label": "classify", "regression": "regress"}
        kind = kinds.get(task.kind, "generate")
    elif not kind:
        kind = "classify" if config.options or len(labels) > 1 else "regress" if labels else "generate"
    if kind == "embed":
        return "embed"
    if labels:  # a head stands in the place of the vocabulary's: such a model writes nothing
        asked = "one number" if kind == "regress" else ", ".join(known) if kind == "classify" and known else "text"
        fits = len(labels) == 1 if kind == "regress" else kind == "classify" and known == labels
        if written or not fits:
            told = f"the model's head answers {', '.join(labels)}, and {asked} is asked"
            raise UserError(f"{told}: take the model that was tuned for it, or a model without a head")
        return "head"
    if kind == "generate":
        return "write"
    if written:
        raise UserError(f"kind={kind!r}: with samples, reasoning or extract answers are written: set kind='generate'")
    if kind != "regress" and (task.kind == "classification" if task else config.options):
        return "score"
    if task and kind == {"multi_label": "classify", "regression": "regress"}.get(task.kind):
        return "write"  # labels, or a number
    if kind == "regress":
        raise UserError("kind='regress': the model has no head, and no task says how a number is written: give --task")
    raise UserError(f"kind={kind!r}: there are no options to choose from: name a classification, or --options")


def _check_idle(config: PredictionConfig, form: str, task: Task | None) -> None:
    """Raises UserError for settings that would change nothing."""
    idle = [] if form == "write" else [*_OF_WRITING]
    idle += ["options"] if task or form in ("write", "embed") else []
    heard = config.prompt if task and form in ("write", "score") else PromptConfig(chat=config.prompt.chat and not task)
    own = [name for name in _differing(config, PredictionConfig()) if name in idle]
    own += [f"prompt.{name}" for name in _differing(config.prompt, heard)]
    if own:
        what = {"write": "a prompt is continued", "score": "options are compared", "head": "a head answers"}
        raise UserError(
            f"{own[0]}: {what.get(form, 'a text is embedded')} here"
            f"{'' if task else ', without a task'}, and that says nothing of it: leave it out"
        )


def _of_prompts(
    config: PredictionConfig, engine: Engine, adapter: str, form: str
) -> Callable[[Sequence[Record]], Iterator[Asked]]:
    """Queries that are prompts themselves, or what a user says in a chat."""
    tokenizer, chat = engine.tokenizer, config.prompt.chat
    sampling, stop = _sampling(config, config.max_new_tokens or _NEW_TOKENS), config.stop

    def ask(record: Record) -> tuple[Request, ...]:
        text = record[PROMPT]
        if form == "score" and not chat:
            ids, options = join(tokenizer, text, config.options)
            return (ScoreRequest((*tokenizer.start, *ids) or (tokenizer.bos_id,), tuple(map(tuple, options)), adapter),)
        prompt = tuple(render(tokenizer, [{"role": "user", "content": text}]) if chat else tokenizer.prompt(text))
        if form == "score":
            return (ScoreRequest(prompt, tuple(tuple(tokenizer.encode(each)) for each in config.options), adapter),)
        if form == "write":
            return tuple(GenerateRequest(prompt, sampling, stop, sample, adapter) for sample in range(config.samples))
        return (HeadRequest(prompt, adapter) if form == "head" else EmbedRequest(prompt, adapter),)

    return _single(ask)


def _of_task(
    config: PredictionConfig, engine: Engine, adapter: str, task: Task, prompt: PromptConfig, form: str
) -> Callable[[Sequence[Record]], Iterator[Asked]]:
    """Prompts as the task has them, with their examples."""
    new_tokens = answer_tokens(task, engine.tokenizer, prompt)
    sampling, room = _sampling(config, new_tokens), engine.config.max_len - engine.prefix(adapter)
    choose = examples_for(task, engine, prompt)

    def requests(made: Prompt) -> tuple[Request, ...]:
        if form == "score":
            return (ScoreRequest(made.ids, made.options, adapter),)
        stop = (*made.stop, *config.stop)
        return tuple(GenerateRequest(made.ids, sampling, stop, sample, adapter) for sample in range(config.samples))

    def ask(records: Sequence[Record]) -> list[tuple[Request, ...]]:
        return [
            requests(make_prompt(task, engine.tokenizer, prompt, record, examples, room, new_tokens))
            for record, examples in zip(records, choose.many(records), strict=True)
        ]

    return lambda records: _each(ask, records)


def _single(ask: Callable[[Record], tuple[Request, ...]]) -> Callable[[Sequence[Record]], Iterator[Asked]]:
    return lambda records: _each(lambda some: [ask(record) for record in some], records)


def _each(ask: Callable[[Sequence[Record]], list[tuple[Request, ...]]], records: Sequence[Record]) -> Iterator[Asked]:
    """All records at once; where one of them is refused, halves of them, until it stands alone."""
    try:
        yield from ask(records)
    except UserError as error:
        if len(records) == 1:
            yield error
            return
        half = len(records) // 2
        yield from _each(ask, records[:half])
        yield from _each(ask, records[half:])


def _sampling(config: PredictionConfig, new_tokens: int) -> Sampling:
    return Sampling(new_tokens, config.temperature or 0.0, config.top_k, config.top_p, config.min_p, config.seed)


def _reader(
    task: Task | None, form: str, prompt: PromptConfig, options: Sequence[str]
) -> Callable[[Sequence[Result]], str | None]:
    """What puts the results of a record into words; None for an embedding."""

    def read(results: Sequence[Result]) -> str | None:
        texts = [each for each in results if isinstance(each, Generation)]
        if texts:
            said = [each.text if task is None else read_answer(task, each, prompt) for each in texts]
            return said[0] if task is None else majority([said])[0]
        [result] = results
        values = list(
            result.logprobs if isinstance(result, Scores) else result.values if isinstance(result, Values) else ()
        )
        if form == "embed":
            return None
        if not options:
            return f"{values[0]:.6g}"
        if form == "head" and task and task.kind == "multi_label":
            return join_labels([option for option, value in zip(options, values, strict=True) if value > 0], options)
        return options[max(range(len(values)), key=values.__getitem__)]

    return read


def _differing(one: Any, other: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(one)]
    return {name: getattr(one, name) for name in names if getattr(one, name) != getattr(other, name)}
