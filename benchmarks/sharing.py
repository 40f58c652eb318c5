"""Requests behind examples that do not change: what all prompts begin with run once, against each prompt whole.

    .venv/bin/python benchmarks/sharing.py
    .venv/bin/python benchmarks/sharing.py --width 256 --depth 6 --requests 64

Two engines with the same random weights answer the same requests in turns, after one turn each that compiles: labels
that are scored (all of two tokens, as an answer and its separator are), and answers that are written. A table says
what was run, and the median time of a turn; the answers of both are compared.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
import tyro
from contest import console, table

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling, ScoreRequest
from limbeck.model.config import ModelConfig
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    requests: int = 200
    examples: int = 16
    example_tokens: int = 14
    """Of each example, and of the query."""
    labels: int = 2
    new_tokens: int = 32
    """Of each answer that is written."""
    width: int = 64
    depth: int = 4
    batch_size: int = 64
    rounds: int = 5


def main(args: Args) -> int:
    rng = np.random.default_rng(0)
    tokenizer = byte_tokenizer()
    longest = 1 + (args.examples + 1) * args.example_tokens + max(args.new_tokens, 2)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=args.width, depth=args.depth, num_heads=4, num_kv_heads=2,
        head_dim=args.width // 4, mlp_dim=3 * args.width, max_len=longest,
    )  # fmt: skip
    params = init(config, jax.random.key(0))

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(3, tokenizer.vocab_size, count)))

    shown = (tokenizer.bos_id, *drawn(args.examples * args.example_tokens))
    prompts = [shown + drawn(args.example_tokens) for _ in range(args.requests)]
    labels = tuple(drawn(2) for _ in range(args.labels))
    kinds = {
        f"{args.labels} labels scored": [ScoreRequest(prompt, labels) for prompt in prompts],
        f"{args.new_tokens} tokens written": [GenerateRequest(prompt, Sampling(args.new_tokens)) for prompt in prompts],
    }
    out = console()
    for kind, requests in kinds.items():
        shared, plain = (Engine(config, params, tokenizer, args.batch_size, share=share) for share in (True, False))
        seconds, answers = {shared: [], plain: []}, {}
        for turn in range(args.rounds + 1):
            for engine in (shared, plain):
                engine.tokens_run, start = 0, time.perf_counter()
                ask = engine.score if isinstance(requests[0], ScoreRequest) else engine.generate
                answers[engine] = ask(requests)
                seconds[engine] += [time.perf_counter() - start] if turn else []
        found = table(f"{kind}: {args.requests} requests", ["", "tokens run", "times fewer", "ms", "times faster"])
        for name, engine in (("shared", shared), ("plain", plain)):
            middle = statistics.median(seconds[engine])
            fewer, faster = plain.tokens_run / engine.tokens_run, statistics.median(seconds[plain]) / middle
            found.add_row(name, f"{engine.tokens_run:,}", f"{fewer:.1f}", f"{1e3 * middle:.0f}", f"{faster:.1f}")
        out.print(found)
        out.print(f"largest difference: {_difference(answers[shared], answers[plain]):.1e} nats")
    return 0


def _difference(some, others) -> float:
    def numbers(answer):
        return getattr(answer, "logprobs", None) or (answer.logprob,)

    found = [np.subtract(numbers(one), numbers(other)) for one, other in zip(some, others, strict=True)]
    return float(np.abs(found).max())


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args, description=__doc__)))
