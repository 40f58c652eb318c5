"""The engine over several devices against one."""

from typing import Any

import jax
import pytest

from limbeck.inference.engine import Engine
from limbeck.inference.requests import EmbedRequest, GenerateRequest, Sampling, ScoreRequest
from limbeck.model.config import ModelConfig
from limbeck.model.quantize import quantize
from limbeck.model.sharding import over
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.train.adapters import add_lora

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
    max_len=128,
)  # fmt: skip
PARAMS = {path: 2 * leaf for path, leaf in init(CONFIG, jax.random.key(0)).items()}
START = tuple(range(1, 40))  # which is run once
REQUESTS = [
    *(GenerateRequest((*START, 3 + n, 7), Sampling(1 + n % 6, temperature=0.5 * (n % 2))) for n in range(6)),
    *(ScoreRequest((*START, 50 + n), ((9, 8), (7,))) for n in range(3)),
    EmbedRequest((5, 6, 7)),
]


def numbers(result) -> list[float]:
    found = getattr(result, "logprobs", None) or getattr(result, "values", None)
    return list(found) if found else [result.logprob]


@pytest.mark.parametrize("mesh", [("tensor=8",), ("data=2", "fsdp=2", "tensor=2")], ids=" ".join)
@pytest.mark.parametrize("coded", [False, True], ids=["plain", "eight bits"])
def test_a_mesh_answers_as_one_device(mesh, coded):
    params = quantize(PARAMS, "int8") if coded else PARAMS
    lora = add_lora(params, jax.random.key(1), rank=2) if not coded else params
    lora = {path: leaf + 0.05 if path.endswith("lora_b") else leaf for path, leaf in lora.items()}

    def answers() -> tuple[Engine, str, list]:
        engine = Engine(CONFIG, params, TOKENIZER, batch_size=4, coded_cache=coded)
        name = engine.attach({**lora, **engine.params})
        asked = [*REQUESTS, GenerateRequest((9, 8, 7), Sampling(4), adapter=name)]
        results: list[Any] = [result for _, result in sorted(engine.answers(asked), key=lambda each: each[0])]
        assert "".join(engine.stream(REQUESTS[4])) == results[4].text and len(results[4].tokens) > 1
        return engine, name, results

    alone, name, right = answers()
    with over(mesh):
        engine, same, found = answers()
    assert (engine.weights_digest, same) == (alone.weights_digest, name)
    up = engine.params["blocks/mlp/up/kernel" + "_int8" * coded]
    assert {each.data.nbytes for each in up.addressable_shards} == {up.nbytes // (8 if len(mesh) == 1 else 4)}
    for one, many in zip(right, found, strict=True):
        assert getattr(one, "tokens", None) == getattr(many, "tokens", None)
        assert numbers(many) == pytest.approx(numbers(one), abs=2e-3 if coded else 1e-4)
