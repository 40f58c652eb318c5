"""What lm-eval's requests become in token ids, against what its own `hf` adapter reads (make_lm_eval_pairs.py)."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.evaluation.lm_eval_tokens import Pair, encode, last, pair
from limbeck.experiments.cli import main
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, load_tokenizer
from limbeck.model.transformer import apply, init

MADE = json.loads((Path(__file__).parent / "fixtures" / "lm_eval_pairs.json").read_text(encoding="utf-8"))
ROOM = MADE["max_len"] + 1  # the last token of what is scored is not read


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    """A `llama` that puts a BOS before each text, and a `gpt2` that has nothing but an EOS."""
    made = {}
    for name, files in MADE["tokenizers"].items():
        folder = tmp_path_factory.mktemp(name)
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content), encoding="utf-8")
        made[name] = load_tokenizer(folder)
    return made


def test_the_fixture_has_what_is_hard():
    starts = {case["tokenizer"] for case in MADE["pairs"]}
    assert starts == {"llama", "gpt2"} == set(MADE["tokenizers"])
    for wanted in (
        lambda case: case["context"] == "",
        lambda case: case["context"].endswith("\n"),
        lambda case: case["context"].endswith(" "),
        lambda case: case["context"].startswith("<s>"),
        lambda case: len(case["read"]) == MADE["max_len"] and case["context"].startswith("a b c a"),
    ):
        assert any(map(wanted, MADE["pairs"]))
    assert any(len(case["windows"]) > 2 for case in MADE["texts"])


@pytest.mark.parametrize("case", MADE["pairs"], ids=lambda case: f"{case['tokenizer']}: {case['context']!r}")
def test_pairs_are_read_and_scored_as_by_lm_eval(tokenizers: dict[str, Tokenizer], case: dict[str, Any]):
    found = last(pair(tokenizers[case["tokenizer"]], case["context"], case["continuation"]), ROOM)
    assert [*found.context, *found.continuation[:-1]] == case["read"]
    assert list(found.continuation) == case["scored"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_whole_texts_are_scored_in_lm_evals_windows(tokenizers: dict[str, Tokenizer], name: str):
    tokenizer = tokenizers[name]
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=8
    )
    params = {path: 3 * leaf for path, leaf in init(config, jax.random.key(0)).items()}
    cases = [case for case in MADE["texts"] if case["tokenizer"] == name]
    forward = jax.jit(lambda ids: jax.nn.log_softmax(apply(config, params, ids).logits_BTV[0]))

    def by_hand(read: list[int], scored: list[int]) -> float:
        ids = jnp.asarray([read + [0] * (MADE["max_len"] - len(read))])
        at = range(len(read) - len(scored), len(read))
        return float(np.asarray(forward(ids))[at, scored].sum())

    texts = [[tokenizer.bos_id, *encode(tokenizer, case["text"])] for case in cases]
    expected = [sum(by_hand(**window) for window in case["windows"]) for case in cases]
    np.testing.assert_allclose(Engine(config, params, tokenizer, 4).rolling(texts), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("context", "continuation"), [("a", "b"), ("b", "b"), ("", "a"), ("ab", "b"), (" ", "a")])
def test_what_is_scored_is_never_empty(tokenizers: dict[str, Tokenizer], name: str, context: str, continuation: str):
    """Where one token holds the end of the context and all of the continuation, lm-eval stops with an assertion."""
    tokenizer = tokenizers[name]
    found = pair(tokenizer, context, continuation)
    assert found.context and found.continuation
    ids = [*found.context, *found.continuation]
    assert ids.count(tokenizer.bos_id) <= 1
    assert tokenizer.decode(ids).strip() == (context + continuation).strip()


def test_an_empty_continuation_is_refused(tokenizers: dict[str, Tokenizer]):
    with pytest.raises(UserError, match="nothing to score after 'a b'"):
        pair(tokenizers["llama"], "a b", "")


def test_the_end_is_kept_and_the_continuation_is_whole():
    one = Pair((1, 2, 3, 4), (5, 6))
    assert last(one, 6) == one
    assert last(one, 5) == Pair((2, 3, 4), (5, 6))
    assert last(one, 3) == Pair((4,), (5, 6))
    with pytest.raises(UserError, match="an answer of 2 tokens is more than the model reads at once, 1"):
        last(one, 2)


def test_without_lm_eval_the_command_says_what_to_install(monkeypatch, capsys):
    ours = ("limbeck.evaluation.lm_eval_adapter", "limbeck.evaluation.lm_eval_run")
    for name in [name for name in sys.modules if name in ours or name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", "model", "--tasks", "piqa"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("limbeck: this needs lm-eval") and error.endswith("pip install 'limbeck[eval]'\n")
    assert error.count("\n") == 1
