"""The batch format of OpenAI's API: a line of its input as requests, and what came of them as a line of its output.

An input line is {"custom_id", "method": "POST", "url", "body"}, the body that of /v1/chat/completions, /v1/completions
or /v1/embeddings; an output line {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}. What
a body asks for and cannot be had is an error of its line, never silently left out. (OpenAI's API reference, "Batch".)
"""

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from limbeck.inference.agenda import BulkRequest
from limbeck.inference.engine import Engine
from limbeck.inference.inputs import Line, check_text
from limbeck.inference.requests import EmbedRequest, GenerateRequest, Sampling
from limbeck.model.errors import UserError, one_of
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.tokenizer.chat import Message, render
from limbeck.tasks.tables import Row

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

_NEW_TOKENS = {CHAT: 256, COMPLETIONS: 16}  # of a body that says nothing; published for a chat: as many as there can be
_MOST_CHOICES = 128
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "max_tokens")
_TAKEN: Mapping[str, tuple[str, ...]] = {
    CHAT: ("messages", "max_completion_tokens", *_SAMPLING),
    COMPLETIONS: ("prompt", *_SAMPLING),
    EMBEDDINGS: ("input", "encoding_format"),
}
_NO_MATTER = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# What would change an answer in a way that is not to be had here, with the values that change nothing.
_UNCHANGED: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}


class Body(NamedTuple):
    """What of an input line its output line needs: `code` if it made no request at all, the tokens of its prompts."""

    url: str = ""
    model: str = ""
    prompt_tokens: int = 0
    packed: bool = False  # embeddings in base64
    code: str = ""


class Defaults(NamedTuple):
    """What a body does not say; None: as published."""

    new_tokens: int | None = None
    temperature: float | None = None
    sampling: Sampling = Sampling()  # the rest of it
    stop: tuple[str, ...] = ()  # ends an answer beside what the body names
    adapter: str = ""


class _Prompt(NamedTuple):
    query: str
    ids: tuple[int, ...]


def is_batch(row: Mapping[str, Any]) -> bool:
    """Whether a row of JSON is a line of the batch format."""
    return "custom_id" in row and "body" in row


def read_line(row: Row, duplicate: str, engine: Engine, defaults: Defaults) -> Line:
    """A line's requests, in the order of its choices; or its error. `duplicate` says what is wrong with its id."""
    content = row.content
    if isinstance(content, UserError):
        return Line(None, row.place, reason=str(content), body=Body(code="invalid_json_line"))
    own, url, body = content.get("custom_id"), content.get("url"), content.get("body")
    if not isinstance(own, str) or not own:
        reason = f"{row.place}: 'custom_id' is {own!r:.40}: it must be text, another for each line"
        return Line(None, row.place, reason=reason, body=Body(code="invalid_custom_id"))
    if duplicate:
        return Line(own, row.place, reason=duplicate, body=Body(code="duplicate_custom_id"))
    if content.get("method") != "POST":
        reason = f"{row.place}: 'method' is {content.get('method')!r:.40}: it must be POST"
        return Line(own, row.place, reason=reason, body=Body(code="invalid_method"))
    if not isinstance(url, str) or url not in _TAKEN:
        reason = f"{row.place}: 'url' is {url!r:.80}: one of {', '.join(_TAKEN)}"
        return Line(own, row.place, reason=reason, body=Body(code="invalid_url"))
    asked = Body(url, str(body.get("model") or "") if isinstance(body, dict) else "")
    try:
        if not isinstance(body, dict):
            raise UserError(f"'body' is {body!r:.40}: it must be an object")
        _check_names(url, body)
        prompts = _prompts(url, body, engine.tokenizer)
        if url == EMBEDDINGS:
            form = one_of("encoding_format", body.get("encoding_format") or "float", ("float", "base64"))
            asked = asked._replace(packed=form == "base64")
            requests = [BulkRequest(each.query, EmbedRequest(each.ids, defaults.adapter)) for each in prompts]
        else:
            requests = _written(url, body, prompts, engine, defaults)
        for each in requests:
            engine.check(each.request)
    except UserError as error:
        return Line(own, row.place, reason=f"{row.place}: {error}", body=asked)
    asked = asked._replace(prompt_tokens=sum(len(each.ids) for each in prompts))
    return Line(own, row.place, tuple(requests), body=asked)


def answer_line(line: Line, payloads: Sequence[Mapping[str, Any] | None], failure: str = "") -> dict[str, Any]:
    """The output line that answers an input line; `payloads` is what a store has of its requests, in their order.

    `failure` says why it lacks one. The same line and store give the same answer whenever it is written: ids are
    digests and the time of creation is 0.
    """
    body: Body = line.body
    number = hashlib.sha256(f"{line.place}\0{line.id}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
    answer: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": line.id, "response": None, "error": None}
    if body.code:
        return answer | {"error": {"code": body.code, "message": line.reason}}
    there = [payload for payload in payloads if payload is not None]
    if line.reason:
        status, said = 400, _error(line.reason, "invalid_request_error")
    elif len(there) < len(payloads):
        status, said = 500, _error(failure or "not predicted", "server_error")
    elif body.url == EMBEDDINGS:
        usage = {"prompt_tokens": body.prompt_tokens, "total_tokens": body.prompt_tokens}
        status, said = 200, {"object": "list", "data": _vectors(body, there), "model": body.model, "usage": usage}
    else:
        status, said = 200, _completion(body, number, there)
    return answer | {"response": {"status_code": status, "request_id": f"req_{number}", "body": said}}


def _completion(body: Body, number: str, payloads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    chat = body.url == CHAT
    choices = []
    for index, payload in enumerate(payloads):
        text = payload["text"]
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
        reason = "stop" if payload["stopped"] else "length"
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
    written = sum(len(payload["tokens"]) for payload in payloads)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{number}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": body.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": body.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": body.prompt_tokens + written,
        },
    }


def _vectors(body: Body, payloads: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    vectors = [payload["values"] for payload in payloads]
    if body.packed:
        vectors = [base64.b64encode(np.asarray(each, "<f4").tobytes()).decode() for each in vectors]
    return [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(vectors)]


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _check_names(url: str, body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _UNCHANGED and url != EMBEDDINGS:
            if value is not None and value not in _UNCHANGED[name]:
                raise UserError(f"{name}={value!r:.60} is not to be had here: leave it out")
        elif name not in _NO_MATTER:
            one_of(f"field of the body of {url}:", name, (*_TAKEN[url], *_NO_MATTER))


def _prompts(url: str, body: Mapping[str, Any], tokenizer: Tokenizer) -> list[_Prompt]:
    """What a body asks to be continued or embedded: a conversation, or one or several texts or lists of token ids."""
    if url == CHAT:
        messages = _messages(body.get("messages"))
        alone = len(messages) == 1 and messages[0]["role"] == "user"
        query = messages[0]["content"] if alone else json.dumps(messages, ensure_ascii=False, sort_keys=True)
        return [_Prompt(query, tuple(render(tokenizer, messages)))]
    name = "input" if url == EMBEDDINGS else "prompt"
    asked = body.get(name)
    several = isinstance(asked, list) and not (asked and isinstance(asked[0], int))
    texts: list[Any] = asked if several else [asked]  # pyright: ignore[reportAssignmentType]
    if not texts:
        raise UserError(f"{name!r} is empty: give a text, or a list of texts")
    return [_prompt(text, name, tokenizer) for text in texts]


def _prompt(text: Any, name: str, tokenizer: Tokenizer) -> _Prompt:
    if isinstance(text, str):
        check_text(text, repr(name))
        return _Prompt(text, tuple(tokenizer.prompt(text)))
    ids = isinstance(text, list) and text and all(type(each) is int for each in text)
    if not ids or not 0 <= min(text) <= max(text) < tokenizer.vocab_size:
        raise UserError(f"{name!r} is {text!r:.40}: text, or token ids from 0 to {tokenizer.vocab_size - 1}")
    return _Prompt(tokenizer.decode(text), tuple(text))


def _messages(messages: Any) -> list[Message]:
    """Messages of text, parts of them joined."""
    if not isinstance(messages, list):
        raise UserError(f"'messages' is {messages!r:.40}: it must be a list")
    found = []
    for turn, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [str(each["text"]) for each in content if isinstance(each, dict) and each.get("type") == "text"]
            content = "".join(parts) if len(parts) == len(content) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise UserError(f"message {turn} is {message!r:.60}: it must have a role and a content of text")
        check_text(content, f"message {turn}")
        found.append({"role": message["role"], "content": content})
    return found


def _written(
    url: str, body: Mapping[str, Any], prompts: Sequence[_Prompt], engine: Engine, defaults: Defaults
) -> list[BulkRequest]:
    given = defaults.sampling
    limit = _number(body, "max_tokens", None, 1, math.inf, whole=True)
    limit = _number(body, "max_completion_tokens", limit, 1, math.inf, whole=True)
    temperature = _number(body, "temperature", 1.0 if defaults.temperature is None else defaults.temperature, 0, 100)
    top_p = _number(body, "top_p", given.top_p, 0, 1)
    if not top_p:
        raise UserError("top_p=0: must be above 0; temperature 0 takes the likeliest token")
    sampling = Sampling(
        temperature=temperature,
        top_k=_number(body, "top_k", given.top_k, 0, math.inf, whole=True),
        top_p=top_p,
        min_p=_number(body, "min_p", given.min_p, 0, 1),
        seed=_number(body, "seed", given.seed, -(2**63), 2**63, whole=True),
    )
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(each, str) and each for each in stop):
        raise UserError(f"stop={body['stop']!r:.60}: text, or a list of texts, none of them empty")
    stop = tuple(dict.fromkeys([*stop, *defaults.stop]))
    choices = _number(body, "n", 1, 1, _MOST_CHOICES, whole=True)
    requests = []
    for each in prompts:
        room = engine.config.max_len - engine.prefix(defaults.adapter) - len(each.ids)
        new_tokens = limit or defaults.new_tokens or max(1, min(room, _NEW_TOKENS[url]))
        own = dataclasses.replace(sampling, max_new_tokens=new_tokens)
        asked = [GenerateRequest(each.ids, own, stop, sample, defaults.adapter) for sample in range(choices)]
        requests += [BulkRequest(each.query, request) for request in asked]
    return requests


def _number(body: Mapping[str, Any], name: str, default: Any, low: float, high: float, whole: bool = False) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{name}={value!r:.40}: must be {kind} from {low:g}" + (f" to {high:g}" if high < 1e9 else ""))
    return value
