"""A record as a prompt: instruction, whole solved examples, the query, and the options that may follow, in tokens."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from limbeck.model.errors import UserError, nearest
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.tokenizer.chat import Message, render_text
from limbeck.model.tokenizer.chat import render as render_chat
from limbeck.model.tokenizer.join import join, shared
from limbeck.prompting.config import PromptConfig
from limbeck.tasks.task import Kind, Record, Task
from limbeck.tasks.template import Template, fields, render

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of a multiple choice
_LISTED = "\n{options}\nAnswer:"  # what a multiple choice adds to a query that does not say where its options go
_FIELDS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class Prompt(NamedTuple):
    """What a model is asked. `ids` and one of `options` are together the ids of `text` and the option's text.

    Tokens at the end of `text` that an option would change stand at the beginning of every option. No options: an
    answer is written, up to one of the `stop` strings. `shown` are the ids of the examples that stand in it, `dropped`
    says how many did not fit.
    """

    ids: tuple[int, ...]
    text: str
    options: tuple[tuple[int, ...], ...] = ()
    option_texts: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    dropped: int = 0


class Words(NamedTuple):
    """A template in the words of a prompt: `options` are those that stand for the task's, in its order."""

    instruction: str
    query: str
    target: str
    separator: str
    options: tuple[str, ...]


def scored(task: Task, config: PromptConfig) -> bool:
    """Whether the task's options are compared; otherwise the answer is written."""
    return task.kind == "classification" and not config.writes


def make_prompt(
    task: Task,
    tokenizer: Tokenizer,
    config: PromptConfig,
    record: Record,
    examples: Sequence[Record],
    room: int,
    new_tokens: int,
) -> Prompt:
    """The prompt of one record, of at most `room` tokens with its longest option or `new_tokens` of an answer.

    It has exactly one BOS where the tokenizer or the chat template has one, and its text does not end in white space
    (but for what a chat template ends in). Where it is too long, whole examples are left out, the first ones first.
    Raises UserError for one that does not fit without any, or not with all where `config.overflow` is "error", and
    for words, options or a chat that the task or the tokenizer does not have.
    """
    return _fitted(task, tokenizer, config, words(task, config), record, record, examples, room, new_tokens)


def premise(task: Task, tokenizer: Tokenizer, config: PromptConfig, record: Record, room: int) -> Prompt:
    """The task's premise: the record's options after a query whose fields are empty, without anything before it."""
    bare = words(task, config)._replace(instruction="")
    asked = {**record, **{name: "" for name in fields(bare.query) if name != task.group_field}}
    return _fitted(task, tokenizer, config, bare, asked, record, (), room, 1)


def blank(task: Task, config: PromptConfig, text: str, identity: str, like: Record) -> Record:
    """A record that says `text` in every field of the query, and nothing else but the group of the record `like`."""
    own = words(task, config)
    record = dict.fromkeys([*fields(task.template.target), *fields(own.target)], "")
    record |= dict.fromkeys([*fields(task.template.query), *fields(own.query)], text)
    group = {task.group_field: like[task.group_field]} if task.group_field else {}
    return record | group | {task.answer_field: "", "id": identity}


def answer_text(task: Task, config: PromptConfig, record: Record) -> str:
    """What a model would write to answer a record right, the separator after it."""
    own = words(task, config)
    return _target(task, own, record, _word(task, own, record)) + own.separator


def words(task: Task, config: PromptConfig) -> Words:
    """The task's template with what the config says in place of it.

    Raises UserError for words that a template cannot have, and for options that the task does not have.
    """
    return _words(task.name, task.kind, task.template, task.answer_field, task.options, config)


@functools.lru_cache(maxsize=64)
def _words(
    name: str, kind: Kind, given: Template, answer: str, options: tuple[str, ...] | None, config: PromptConfig
) -> Words:
    changed = {key: getattr(config, key) for key in ("instruction", "query", "target", "separator")}
    template = Template(**{key: getattr(given, key) if value is None else value for key, value in changed.items()})
    if kind != "classification" or options is None:
        needing = {f"form={config.form!r}": config.form != "completion", "verbalisers": bool(config.verbalisers)}
        if named := [text for text, asked in needing.items() if asked]:
            raise UserError(f"{' and '.join(named)}: task {name!r} is a {kind}, without options to choose from")
        options = ()
    query, target = template.query, template.target
    if config.form == "cloze":
        query, target = _around(query, answer)
    elif answer in fields(query) or answer not in fields(target):
        raise UserError(f"the answer {{{answer}}} must stand in target={target!r}, and not in query={query!r}: move it")
    spoken = _verbalised(config, options)
    if config.form == "multiple_choice":
        if len(options) > len(LETTERS):
            raise UserError(f"form='multiple_choice': task {name!r} has {len(options)} options; {len(LETTERS)} at most")
        lines = "\n".join(f"{letter}. {word}" for letter, word in zip(LETTERS, spoken, strict=False))
        query = query if "options" in fields(query) else query + _LISTED
        query = _filled(query, "options", lines)
        spoken = tuple(LETTERS[: len(options)])
    return Words(template.instruction, query, target, template.separator, spoken)


def _around(text: str, name: str) -> tuple[str, str]:
    """A cloze as query and target: what stands before the answer's field, and the field with what follows it."""
    places = [found.span() for found in _FIELDS.finditer(text) if found[1] == name]
    if len(places) != 1:
        raise UserError(f"form='cloze': query={text!r} has the answer {len(places)} times: write one {{{name}}}")
    before = text[: places[0][0]].rstrip()
    return before, text[len(before) :]


def _filled(text: str, name: str, value: str) -> str:
    """A template's text with one field replaced by plain text."""
    plain = value.replace("{", "{{").replace("}", "}}")
    return _FIELDS.sub(lambda found: plain if found[1] == name else found[0], text)


def _verbalised(config: PromptConfig, options: tuple[str, ...]) -> tuple[str, ...]:
    said = dict(config.verbalisers)
    for option in said:
        if option not in options:
            raise UserError(
                f"verbalisers: the task has no option {option!r}, but {', '.join(options)}{nearest(option, options)}"
            )
    spoken = tuple(said.get(option, option) for option in options)
    if len(said) < len(config.verbalisers) or len(set(spoken)) < len(spoken):
        raise UserError(f"verbalisers: options {list(options)} would be {list(spoken)}: give each its own words, once")
    return spoken


def _fitted(
    task: Task,
    tokenizer: Tokenizer,
    config: PromptConfig,
    own: Words,
    asked: Record,
    record: Record,
    examples: Sequence[Record],
    room: int,
    new_tokens: int,
) -> Prompt:
    """As `make_prompt`; the query is that of `asked`, the options are those of `record`."""
    targets = [_target(task, own, record, word) for word in own.options] if scored(task, config) else []
    turns = [(_query(own, each), _target(task, own, each, _word(task, own, each))) for each in examples]
    turns.append((_query(own, asked), ""))
    encode = _as_chat if config.chat else _as_text
    for left_out in range(len(turns)):
        shown = tuple(example["id"] for example in examples[left_out:])
        try:
            found = encode(tokenizer, own, _cue(own, config), turns[left_out:], targets)
        except UserError as error:
            raise UserError(f"record {record['id']!r}: {error}") from error
        longest = max(map(len, found.options), default=new_tokens)
        if len(found.ids) + longest <= room:
            return found._replace(shown=shown, dropped=left_out)
        if config.overflow == "error":
            break
    with_them, fewer = (f" with its {len(shown)} examples", " fewer shots, overflow='drop',") if shown else ("", "")
    raise UserError(
        f"record {record['id']!r}{with_them} has {len(found.ids)} tokens, its answer up to {longest}; the model has "
        f"{room} positions: shorten the record or use{fewer} a model with a larger max_len"
    )


def _as_text(
    tokenizer: Tokenizer, own: Words, cue: str, turns: Sequence[tuple[str, str]], targets: Sequence[str]
) -> Prompt:
    parts = [own.instruction] if own.instruction else []
    whole = own.separator.join([*parts, *(query + cue + target for query, target in turns)])
    text = whole.rstrip()  # a query may be empty: the separator before it then begins the answer
    texts = tuple(whole[len(text) :] + target + own.separator for target in targets)
    ids, options = join(tokenizer, text, texts)
    start = (*tokenizer.start, *ids) or (tokenizer.bos_id,)
    return Prompt(start, text, tuple(map(tuple, options)), texts, () if targets else (own.separator,))


def _as_chat(
    tokenizer: Tokenizer, own: Words, cue: str, turns: Sequence[tuple[str, str]], targets: Sequence[str]
) -> Prompt:
    """The model's turn lasts until the template ends it: nothing else stops a written answer."""
    messages = [{"role": "system", "content": own.instruction}] if own.instruction else []
    for query, target in turns:
        messages.append({"role": "user", "content": query})
        messages.append({"role": "assistant", "content": (cue + target).strip()})
    del messages[-1]
    try:
        ids = [*render_chat(tokenizer, messages), *tokenizer.encode(cue.strip())]
    except UserError as error:
        remedy = "; if it has no system turns, write the instruction into query=" if own.instruction else ""
        raise UserError(f"{error}{remedy}") from error
    text = render_text(tokenizer, messages) + cue.strip()
    texts = tuple(target.strip() for target in targets)
    wholes = [_answered(tokenizer, messages, answer) for answer in texts]
    kept = shared(ids, wholes) if wholes else len(ids)
    return Prompt(tuple(ids[:kept]), text, tuple(tuple(whole[kept:]) for whole in wholes), texts)


def _answered(tokenizer: Tokenizer, messages: Sequence[Message], answer: str) -> list[int]:
    """The ids of a conversation up to the special token that ends the answer, if one does."""
    ids = render_chat(tokenizer, [*messages, {"role": "assistant", "content": answer}], generation_prompt=False)
    special = set(tokenizer.special_ids.values())
    end = max((place + 1 for place, index in enumerate(ids) if index in special), default=0)
    return ids if tokenizer.decode(ids[end:]).strip() else ids[:end]


def _query(own: Words, record: Record) -> str:
    return render(own.query, record).rstrip()


def _cue(own: Words, config: PromptConfig) -> str:
    """What stands between a query and what the model writes; it does not end in white space."""
    delimiter = own.target[: len(own.target) - len(own.target.lstrip())]
    return (delimiter + config.reasoning).rstrip() if config.reasoning else ""


def _target(task: Task, own: Words, record: Record, word: str) -> str:
    return render(own.target, {**record, task.answer_field: word})


def _word(task: Task, own: Words, record: Record) -> str:
    """The right answer of a record, in the prompt's words."""
    answer = task.answer(record)
    return own.options[task.options.index(answer)] if own.options and task.options else answer
