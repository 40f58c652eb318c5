"""The batch format: a line as it is published is read as it is meant, any other is answered as the error that it is."""

import base64
import json
import struct
from typing import Any

import jax
import pytest

from limbeck.inference.engine import Engine
from limbeck.inference.inputs import Line, identities
from limbeck.inference.openai_batch import Defaults, answer_line, is_batch, read_line
from limbeck.inference.requests import EmbedRequest, GenerateRequest, Sampling
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.tokenizer.chat import render
from limbeck.model.transformer import init
from limbeck.tasks.tables import Row

CONFIG = ModelConfig(
    vocab_size=259, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=128
)
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}> {% endif %}"
)
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SAID = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Engine(CONFIG, init(CONFIG, jax.random.key(0)), tokenizer, weights_digest="w")


def asked(read: Line) -> list[Any]:
    return [each.request for each in read.requests]


def line(url: str, body: object, engine: Engine, defaults: Defaults | None = None) -> Line:
    content = {"custom_id": "request-1", "method": "POST", "url": url, "body": body}
    return read_line(Row("b.jsonl", 1, 1, content), "", engine, defaults or Defaults())


def test_a_conversation(engine: Engine) -> None:
    body = {"model": "gpt-4o-mini", "messages": SAID, "max_tokens": 10, "temperature": 0.5, "top_p": 0.9, "n": 2}
    body |= {
        "stop": ["\n", "."],
        "seed": 7,
        "user": "someone",
        "presence_penalty": 0,
        "response_format": {"type": "text"},
    }
    read = line(CHAT, body, engine)
    assert read.id == "request-1" and not read.reason and read.body.model == "gpt-4o-mini"
    prompt = tuple(render(engine.tokenizer, SAID))
    sampling = Sampling(10, temperature=0.5, top_p=0.9, seed=7)
    assert [each.request for each in read.requests] == [
        GenerateRequest(prompt, sampling, ("\n", "."), sample) for sample in range(2)
    ]
    assert {each.query for each in read.requests} == {"What is 2+2?"}
    payload = {"text": "4", "tokens": [52, 53], "logprob": -1.0, "stopped": True}
    said = answer_line(read, [payload, payload | {"text": "5", "stopped": False}])
    assert said["custom_id"] == "request-1" and said["error"] is None and said["id"].startswith("batch_req_")
    assert said["response"]["status_code"] == 200 and said["response"]["request_id"]
    answer = said["response"]["body"]
    assert answer["object"] == "chat.completion" and answer["model"] == "gpt-4o-mini"
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["4", "5"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 4,
        "total_tokens": len(prompt) + 4,
    }
    assert (
        json.loads(json.dumps(said)) == said == answer_line(read, [payload, payload | {"text": "5", "stopped": False}])
    )


def test_other_conversations_have_other_queries(engine: Engine) -> None:
    system = [{"role": "system", "content": "Be brief."}, *SAID]
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": " 2+2?"}]}]
    read = [line(CHAT, {"messages": messages}, engine).requests[0] for messages in (SAID, system, parts)]
    assert read[0] == read[2]
    assert read[1].query != read[0].query and json.loads(read[1].query) == system


def test_texts_and_ids_to_be_continued(engine: Engine) -> None:
    body = {"prompt": ["سیب", "pear"], "n": 2, "max_tokens": 3}
    read = line(COMPLETIONS, body, engine)
    assert [each.query for each in read.requests] == ["سیب", "سیب", "pear", "pear"]
    assert [each.sample for each in asked(read)] == [0, 1, 0, 1]
    ids = engine.tokenizer.prompt("pear")
    assert read.requests[2].request.prompt == tuple(ids)
    assert line(COMPLETIONS, {"prompt": ids, "max_tokens": 3}, engine).requests[0] == read.requests[2]
    assert line(COMPLETIONS, {"prompt": [ids], "max_tokens": 3}, engine).requests[0] == read.requests[2]
    payloads = [{"text": str(i), "tokens": [1], "logprob": 0.0, "stopped": True} for i in range(4)]
    answer = answer_line(read, payloads)["response"]["body"]
    assert answer["object"] == "text_completion" and [each["text"] for each in answer["choices"]] == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert answer["usage"]["prompt_tokens"] == sum(len(engine.tokenizer.prompt(text)) for text in body["prompt"])


def test_what_is_not_said_is_as_published_or_as_the_job_says(engine: Engine) -> None:
    plain = asked(line(COMPLETIONS, {"prompt": "a"}, engine))[0]
    assert plain == GenerateRequest(plain.prompt, Sampling(16, temperature=1.0))
    chat = asked(line(CHAT, {"messages": SAID, "max_completion_tokens": None}, engine))[0]
    assert chat.sampling.max_new_tokens == CONFIG.max_len - len(chat.prompt)  # fewer than 256
    defaults = Defaults(5, 0.0, Sampling(top_k=3, min_p=0.1, seed=2), ("#",), "")
    given = asked(line(COMPLETIONS, {"prompt": "a", "stop": "."}, engine, defaults))[0]
    assert given == GenerateRequest(plain.prompt, Sampling(5, 0.0, 3, 1.0, 0.1, 2), (".", "#"))
    both = asked(line(CHAT, {"messages": SAID, "max_tokens": 3, "max_completion_tokens": 4}, engine))[0]
    assert both.sampling.max_new_tokens == 4


def test_embeddings(engine: Engine) -> None:
    read = line(EMBEDDINGS, {"input": ["a", "b"], "model": "m", "encoding_format": "base64"}, engine)
    assert [each.request for each in read.requests] == [EmbedRequest(tuple(engine.tokenizer.prompt(t))) for t in "ab"]
    payloads = [{"values": [0.5, -1.5]}, {"values": [1.0, 0.25]}]
    packed = answer_line(read, payloads)["response"]["body"]
    assert [struct.unpack("<2f", base64.b64decode(each["embedding"])) for each in packed["data"]] == [
        (0.5, -1.5),
        (1.0, 0.25),
    ]
    plain = answer_line(line(EMBEDDINGS, {"input": ["a", "b"]}, engine), payloads)["response"]["body"]
    assert [each["embedding"] for each in plain["data"]] == [[0.5, -1.5], [1.0, 0.25]]
    assert [each["index"] for each in plain["data"]] == [0, 1] and plain["object"] == "list"
    assert plain["usage"]["prompt_tokens"] == plain["usage"]["total_tokens"] == len(read.requests[0].request.prompt) * 2


@pytest.mark.parametrize(
    ("url", "body", "message"),
    [
        (COMPLETIONS, {"prompt": "a", "logprobs": 5}, "logprobs=5 is not to be had here"),
        (COMPLETIONS, {"prompt": "a", "stream": True}, "stream=True"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2}, "best_of=2"),
        (CHAT, {"messages": SAID, "tools": [{"type": "function"}]}, "tools="),
        (CHAT, {"messages": SAID, "response_format": {"type": "json_object"}}, "response_format="),
        (COMPLETIONS, {"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty=0.5"),
        (COMPLETIONS, {"prompt": "a", "max_token": 5}, "did you mean 'max_tokens'"),
        (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, "temperature='hot': must be a number from 0"),
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, "temperature=-1"),
        (COMPLETIONS, {"prompt": "a", "temperature": True}, "temperature=True"),
        (COMPLETIONS, {"prompt": "a", "temperature": float("nan")}, "temperature=nan"),
        (COMPLETIONS, {"prompt": "a", "top_p": 0}, "top_p=0"),
        (COMPLETIONS, {"prompt": "a", "n": 0}, "n=0"),
        (COMPLETIONS, {"prompt": "a", "n": 1000}, "n=1000: must be a whole number from 1 to 128"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 2.5}, "max_tokens=2.5: must be a whole number"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 1000}, "more than the model's 128 positions"),
        (COMPLETIONS, {"prompt": "a", "stop": [""]}, "stop="),
        (COMPLETIONS, {"prompt": "a", "stop": {"a": 1}}, "stop="),
        (COMPLETIONS, {"prompt": ""}, "'prompt' is empty"),
        (COMPLETIONS, {"prompt": []}, "'prompt' is empty"),
        (COMPLETIONS, {"prompt": "\ud800"}, "not valid Unicode"),
        (COMPLETIONS, {"prompt": "a\0"}, "control character"),
        (COMPLETIONS, {"prompt": "x" * 10_000_000}, "10,000,000 characters"),
        (COMPLETIONS, {"prompt": [1, 2.5]}, "token ids from 0 to 258"),
        (COMPLETIONS, {"prompt": [1, 1000]}, "token ids from 0 to 258"),
        (COMPLETIONS, {"prompt": [1, -1]}, "token ids from 0 to 258"),
        (COMPLETIONS, {"prompt": None}, "'prompt' is None"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "'prompt' is {'a': 1}"),
        (COMPLETIONS, {}, "'prompt' is None"),
        (COMPLETIONS, "text", "'body' is 'text': it must be an object"),
        (CHAT, {"messages": "hi"}, "'messages' is 'hi': it must be a list"),
        (CHAT, {"messages": []}, "at least one message"),
        (CHAT, {"messages": ["hi"]}, "message 0 is 'hi'"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "message 0 is"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 0 is"),
        (CHAT, {"messages": [{"role": 5, "content": "a"}]}, "message 0 is"),
        (CHAT, {"messages": [{"role": "user", "content": "long " * 100}]}, "128 positions"),
        (EMBEDDINGS, {"input": "a", "dimensions": 8}, "unknown field of the body of /v1/embeddings: 'dimensions'"),
        (EMBEDDINGS, {"input": "a", "encoding_format": "int8"}, "unknown encoding_format 'int8'"),
    ],
)
def test_a_body_that_cannot_be_had_is_answered_400(engine: Engine, url: str, body: object, message: str) -> None:
    read = line(url, body, engine)
    assert read.requests == () and message in read.reason and read.reason.startswith("b.jsonl, row 1: ")
    said = answer_line(read, [])
    assert said["response"]["status_code"] == 400 and said["error"] is None and said["custom_id"] == "request-1"
    error = said["response"]["body"]["error"]
    assert error["message"] == read.reason and error["type"] == "invalid_request_error"
    assert len(read.reason) < 1000


@pytest.mark.parametrize(
    ("others", "code", "identity"),
    [
        ({"custom_id": 5}, "invalid_custom_id", None),
        ({"custom_id": ""}, "invalid_custom_id", None),
        ({"method": "GET"}, "invalid_method", "request-1"),
        ({"url": "/v1/responses"}, "invalid_url", "request-1"),
        ({"url": ["/v1/completions"]}, "invalid_url", "request-1"),
    ],
)
def test_a_line_that_is_no_request_has_an_error(engine: Engine, others, code: str, identity) -> None:
    content = {"custom_id": "request-1", "method": "POST", "url": COMPLETIONS, "body": {"prompt": "a"}} | others
    said = answer_line(read_line(Row("b.jsonl", 1, 1, content), "", engine, Defaults()), [])
    assert (said["response"], said["error"]["code"], said["custom_id"]) == (None, code, identity)


def test_an_unreadable_line_and_a_second_one_of_an_id(engine: Engine) -> None:
    content = {"custom_id": "a", "method": "POST", "url": COMPLETIONS, "body": {"prompt": "a"}}
    rows = [Row("b.jsonl", 1, 1, content), Row("b.jsonl", 2, 2, UserError("no JSON")), Row("b.jsonl", 3, 3, content)]
    read = [read_line(row, wrong, engine, Defaults()) for _, row, wrong in identities(rows, "custom_id")]
    codes = [each.body.code for each in read]
    assert codes == ["", "invalid_json_line", "duplicate_custom_id"]
    assert "the custom_id 'a' is that of b.jsonl, row 1" in read[2].reason
    assert [answer_line(each, [])["custom_id"] for each in read[1:]] == [None, "a"]
    assert len({answer_line(each, [None])["id"] for each in read}) == 3


def test_a_request_that_failed_is_answered_500(engine: Engine) -> None:
    said = answer_line(line(COMPLETIONS, {"prompt": "a"}, engine), [None], "not a finite number")
    assert said["response"]["status_code"] == 500 and said["error"] is None
    assert said["response"]["body"]["error"]["message"] == "not a finite number"


def test_what_a_batch_is() -> None:
    assert is_batch({"custom_id": "a", "body": {}}) and not is_batch({"prompt": "a"}) and not is_batch({"body": "a"})


def test_the_published_client_takes_the_answers(engine: Engine) -> None:
    types = pytest.importorskip("openai.types", reason="the openai client checks the answers against its own types")
    payload = {"text": "4", "tokens": [52], "logprob": -1.0, "stopped": True}
    for url, body, name in (
        (CHAT, {"messages": SAID}, "chat.ChatCompletion"),
        (COMPLETIONS, {"prompt": "a"}, "Completion"),
        (EMBEDDINGS, {"input": "a"}, "CreateEmbeddingResponse"),
    ):
        kind = types
        for part in name.split("."):
            kind = getattr(kind, part)
        said = answer_line(line(url, body, engine), [payload | {"values": [0.5]}])["response"]["body"]
        kind.model_validate(said, strict=True)
