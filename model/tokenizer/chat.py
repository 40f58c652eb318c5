"""Conversations as token ids, by the Jinja template that came with a model's tokenizer."""

import datetime
import functools
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.parser
import jinja2.sandbox
from jinja2 import nodes

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer

Message = dict[str, str]

_LONGEST = 4_000_000  # characters of a rendered conversation, and of what a template makes by multiplying
_SECONDS = 10.0  # that a template may take
# What its compiled code calls: names that no template knows, so that none can replace them.
_STEP, _GENERATED = (f"_{name}_{secrets.token_hex(8)}" for name in ("step", "generated"))


def render(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = True) -> list[int]:
    """The ids of a conversation, ready for the assistant's answer, with exactly the BOS that its template wants.

    Special tokens are what the template writes; a message that spells one raises UserError, as do a tokenizer
    without a template and a template that fails, refuses the messages, or does not come to an end.
    """
    _check(tokenizer, messages)
    text = _text(tokenizer, messages, generation_prompt)
    ids = tokenizer.parse(text).ids
    return [*_start(tokenizer, ids), *ids]


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = True) -> str:
    """The text of which `render` gives the ids, special tokens spelled out; raises UserError as it does."""
    _check(tokenizer, messages)
    return _text(tokenizer, messages, generation_prompt)


def assistant_mask(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """The ids of a whole conversation, and which of them the assistant said, its end-of-turn token included.

    The template's own `{% generation %}` blocks say which, where it has any; otherwise each turn is what it adds to
    the conversation before it. Raises UserError where that cannot be told, and where the assistant said nothing.
    """
    _check(tokenizer, messages)
    if all(message["role"] != "assistant" for message in messages):
        raise UserError("the conversation has no message of the role 'assistant': nothing to learn from it")
    mark = f"\ue000{secrets.token_hex(8)}\ue000"  # unforgeable: it parts a text that may hold anything
    marked = _text(tokenizer, messages, False, mark)
    if mark in marked:
        parts = marked.split(mark)
        if "".join(parts) != _text(tokenizer, messages, False):
            raise UserError("the chat template rewrites what is in its {% generation %} blocks: put them around less")
        ids, mask = _by_blocks(tokenizer, parts)
    else:
        ids, mask = _by_prefixes(tokenizer, messages)
    start = _start(tokenizer, ids)
    if not any(mask):
        raise UserError("the chat template marks nothing of this conversation as the assistant's: it cannot be learned")
    return [*start, *ids], [False] * len(start) + mask


def _by_blocks(tokenizer: Tokenizer, parts: list[str]) -> tuple[list[int], list[bool]]:
    """Every second part is the assistant's, from the token in which it begins to the one in which it ends."""
    encoding = tokenizer.parse("".join(parts))
    mask = [False] * len(encoding.ids)
    at = 0
    for index, part in enumerate(parts):
        begin, at = at, at + len(part)
        if index % 2 == 1:
            inside = [place for place, (first, last) in enumerate(encoding.offsets) if first < at and last > begin]
            if inside:
                mask[inside[0] : inside[-1] + 1] = [True] * (inside[-1] + 1 - inside[0])
    return encoding.ids, mask


def _by_prefixes(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Each turn is what it adds to the conversation that asks for it."""
    whole = tokenizer.parse(_text(tokenizer, messages, False)).ids
    mask = [False] * len(whole)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.parse(_text(tokenizer, messages[:turn], True)).ids
        after = tokenizer.parse(_text(tokenizer, messages[: turn + 1], False)).ids
        if whole[: len(before)] != before or whole[: len(after)] != after or len(after) < len(before):
            raise UserError(
                f"the chat template does not simply write message {turn} after those before it, so what the assistant "
                "said cannot be told: mark it with {% generation %} in the template"
            )
        end = _end_of_turn(tokenizer, whole, len(before), len(after))
        mask[len(before) : end] = [True] * (end - len(before))
    return whole, mask


def _end_of_turn(tokenizer: Tokenizer, ids: list[int], first: int, last: int) -> int:
    """The place behind the last special token of a turn, if only space follows: the template wrote that space."""
    special = set(tokenizer.special_ids.values())
    ends = [place + 1 for place in range(first, last) if ids[place] in special]
    return ends[-1] if ends and not tokenizer.decode(ids[ends[-1] : last]).strip() else last


def _start(tokenizer: Tokenizer, ids: list[int]) -> tuple[int, ...]:
    """What is still to be put before a rendered conversation: nothing if the template wrote it."""
    start = tokenizer.start
    wrote = tuple(ids[: len(start)]) == start or (
        tokenizer.bos_id in ids and tokenizer.bos_id not in tokenizer.stop_ids
    )
    return () if wrote else start


def _check(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    if not messages:
        raise UserError("a conversation has at least one message")
    for turn, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(f"message {turn} is {message!r}: it must have a role and a content")
        for name, text in message.items():
            if not isinstance(text, str):
                raise UserError(f"message {turn}: its {name} is {text!r}, not text")
            token = _special_token_in(tokenizer, text)
            if token:
                raise UserError(
                    f"message {turn}: its {name} spells the special token {token!r}, which the model would take for "
                    "an instruction of the program: remove it or write it differently"
                )


def _special_token_in(tokenizer: Tokenizer, text: str) -> str | None:
    spelled = next((token for token in tokenizer.special_ids if token in text), None)
    if spelled:
        return spelled
    # A normaliser can make one of full-width letters; what stays of them as text, such as an unknown sign, is none.
    parsed = set(tokenizer.parse(text).ids) - set(tokenizer.encode(text))
    return next((token for token, index in tokenizer.special_ids.items() if index in parsed), None)


def _text(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool, mark: str = "") -> str:
    """What the template writes, with `mark` around each of its generation blocks."""
    if tokenizer.chat_template is None:
        raise UserError("this model's tokenizer has no chat template: give it a plain prompt, or a chat_template.jinja")
    values = {
        **tokenizer.tokens,
        "messages": [dict(message) for message in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": generation_prompt,
        _STEP: _clock(),
        _GENERATED: lambda caller: f"{mark}{caller()}{mark}",
    }
    try:
        return "".join(_bounded(_compiled(tokenizer.chat_template).generate(values)))
    except Exception as error:  # whatever the template's own code runs into
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the chat template failed: {said}") from error


def _bounded(blocks: Iterator[str]) -> Iterator[str]:
    length = 0
    for block in blocks:
        length += len(block)
        if length > _LONGEST:
            raise jinja2.TemplateError(f"it writes more than {_LONGEST:,} characters")
        yield block


def _clock() -> Any:
    deadline = time.monotonic() + _SECONDS

    def step() -> str:
        if time.monotonic() > deadline:
            raise jinja2.TemplateError(f"it takes more than {_SECONDS:g} seconds")
        return ""

    return step


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """The template as code in a sandbox, with a look at the clock in each loop and macro."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals.update(raise_exception=_refuse, strftime_now=_now)
    del sandbox.globals["lipsum"]  # filler text, of any length
    tree = sandbox.parse(source)
    for node in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
        node.body.insert(0, nodes.Output([_call(_STEP)]))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(nodes.Not(_call(_STEP)), node.test)
    tree.set_environment(sandbox)
    code: Any = sandbox.compile(tree)
    return sandbox.template_class.from_code(sandbox, code, sandbox.make_globals(None))


def _call(name: str) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), [], [], None, None)


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, in which a template writes what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(_call(_GENERATED), [], [], body).set_lineno(line)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, without products and powers that fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
        if sizes[0] * sizes[1] > _LONGEST or (operator == "**" and max(sizes) > 64):
            raise jinja2.TemplateError(f"{operator} gives more than {_LONGEST:,}")
        return super().call_binop(context, operator, left, right)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is: Jinja's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
