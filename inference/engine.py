"""The engine: many requests in, as many answers out, in batches of few compiled shapes.

Prompts are sorted by length and padded to buckets of powers of two, so that a handful of compiled programs serves
any mixture of requests; a row's answer does not depend on the rows beside it.
"""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property, partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.model.config import ModelConfig
from limbeck.model.decode import SamplingArrays, check_room, generate, stream
from limbeck.model.errors import UserError, nearest
from limbeck.model.params import Params, digest
from limbeck.model.prefix import prefix_length
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.transformer import hidden, logits

_SMALLEST_BUCKET = 16
_STREAMED = 4  # tokens between two pieces of a stream

Shape = TypeVar("Shape", bound=Hashable)


class Engine:
    """Batched generation and scoring with one model, and with any number of adapters over it."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        batch_size: int = 64,
        weights_digest: str | None = None,
    ) -> None:
        """`weights_digest` is that of the parameters where it is known (`Pretrained.digest`)."""
        self._weights_digest = weights_digest
        self.config = config
        self.params = params
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.dtype = config.dtype
        self._models = {"": params}
        self._stops: dict[tuple[str, ...], jax.Array] = {}

    @property
    def weights_digest(self) -> str:
        """Hex SHA-256 of the parameters; worked out once."""
        if self._weights_digest is None:
            self._weights_digest = digest(self.params)
        return self._weights_digest

    def attach(self, params: Params) -> str:
        """Takes in the engine's model with an adapter, and says by what name requests ask for it.

        `params` are the engine's own arrays, which are not copied, and those of the adapter, as `load_adapter` gives
        them. The name is the digest of the latter, so predictions in a store tell adapters apart by their content.
        """
        own = {path: leaf for path, leaf in params.items() if leaf is not self.params.get(path)}
        name = digest(own) if own else ""
        self._models[name] = params
        return name

    def prefix(self, adapter: str = "") -> int:
        """How many positions the virtual tokens of a model take. Raises UserError for one that is not attached."""
        return prefix_length(self._model(adapter))

    def _model(self, adapter: str) -> Params:
        if adapter not in self._models:
            raise UserError(f"no adapter {adapter!r} is attached{nearest(adapter, self._models)}: `attach` names them")
        return self._models[adapter]

    @property
    def tokenizer_digest(self) -> str:
        """Hex SHA-256 of the tokenizer."""
        return self.tokenizer.digest

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """A continuation for each request, in their order; its text ends before the first stop string.

        The tokenizer's own stop tokens always end it. Raises UserError for a prompt that leaves no room for the answer.
        """
        answers: dict[int, Generation] = {}
        for request in requests:
            self._check_room(request, request.sampling.max_new_tokens)
        shapes = [(r.sampling.max_new_tokens, r.stop, self._bucket(r, len(r.prompt)), r.adapter) for r in requests]
        for (new_tokens, stop, bucket, adapter), members in _batches(shapes, self.batch_size):
            batch = [requests[i] for i in members]
            tokens_BT, lengths_B = self._pad([request.prompt for request in batch], bucket, self.batch_size)
            out = jax.device_get(
                generate(
                    self.config,
                    self._model(adapter),
                    tokens_BT,
                    lengths_B,
                    self._sampling(batch, self.batch_size),
                    self.stop_tokens(stop),
                    new_tokens,
                )
            )
            for row, index in enumerate(members):
                length = int(out.length_B[row])
                answers[index] = self._generation(
                    stop, out.tokens_BT[row, :length].tolist(), out.logprobs_BT[row, :length]
                )
        return [answers[i] for i in range(len(requests))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """The text of `generate`, in pieces as it is written: a piece is never taken back.

        What may yet become a stop string or a character is held until it is clear.
        """
        self._check_room(request, request.sampling.max_new_tokens)
        bucket, params = self._bucket(request, len(request.prompt)), self._model(request.adapter)
        tokens_BT, lengths_B = map(jnp.asarray, self._pad([request.prompt], bucket, 1))
        stop_V, new_tokens = self.stop_tokens(request.stop), request.sampling.max_new_tokens
        settings = self._sampling([request], 1)
        shown, text = "", ""
        for out in stream(self.config, params, tokens_BT, lengths_B, settings, stop_V, new_tokens, _STREAMED):
            ids = out.tokens_BT[0, : out.length_B[0]].tolist()
            generation = self._generation(request.stop, ids, np.asarray(out.logprobs_BT[0, : len(ids)]))
            text = generation.text
            if generation.stopped:
                break
            clear = text.rstrip("\ufffd")
            held = max((n for stop in request.stop for n in range(len(stop)) if clear.endswith(stop[:n])), default=0)
            clear = clear[: len(clear) - held]
            if len(clear) > len(shown):
                yield clear[len(shown) :]
                shown = clear
        if text != shown:
            yield text[len(shown) :]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """The log-likelihood of each option after its prompt, in the order of the requests.

        Raises UserError for a request without options, an empty option, or a pair that does not fit the model.
        """
        rows = []
        for index, request in enumerate(requests):
            if not request.options or not all(request.options):
                raise UserError(f"request {index}: scoring needs one or more options, none of them empty")
            for option in request.options:
                self._check_room(request, len(option))
                rows.append((request, option))
        logprobs: dict[int, float] = {}
        shapes = [(self._bucket(r, len(r.prompt) + len(option) - 1), r.adapter) for r, option in rows]
        for (bucket, adapter), members in _batches(shapes, self.batch_size):
            ids = [(*rows[i][0].prompt, *rows[i][1]) for i in members]
            tokens_BT, _ = self._pad([row[:-1] for row in ids], bucket, self.batch_size)
            targets_BT, _ = self._pad([row[1:] for row in ids], bucket, self.batch_size)
            weights_BT = np.zeros(tokens_BT.shape, np.float32)
            for row, i in enumerate(members):
                start = len(rows[i][0].prompt) - 1
                weights_BT[row, start : start + len(rows[i][1])] = 1.0
            totals_B = np.asarray(_score(self.config, self._model(adapter), tokens_BT, targets_BT, weights_BT))
            logprobs.update(zip(members, totals_B.tolist(), strict=False))
        answers, start = [], 0
        for request in requests:
            stop = start + len(request.options)
            lengths = tuple(len(option) for option in request.options)
            answers.append(Scores(tuple(logprobs[i] for i in range(start, stop)), lengths))
            start = stop
        return answers

    def _check_room(self, request: GenerateRequest | ScoreRequest, tokens: int) -> None:
        check_room(self.config, len(request.prompt), tokens, self.prefix(request.adapter))

    def _bucket(self, request: GenerateRequest | ScoreRequest, length: int) -> int:
        bucket = _SMALLEST_BUCKET
        while bucket < length:
            bucket *= 2
        return min(bucket, self.config.max_len - self.prefix(request.adapter))

    def _pad(self, rows: Sequence[Sequence[int]], bucket: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [size, bucket], lengths): a short batch is filled with rows of one token."""
        tokens_BT = np.full((size, bucket), self.tokenizer.pad_id, np.int32)
        lengths_B = np.ones(size, np.int32)
        for i, row in enumerate(rows):
            tokens_BT[i, : len(row)] = row
            lengths_B[i] = len(row)
        return tokens_BT, lengths_B

    def _sampling(self, batch: Sequence[GenerateRequest], size: int) -> SamplingArrays:
        rows = [request.sampling for request in batch] + [batch[-1].sampling] * (size - len(batch))
        # A row's random numbers come from its own request, so order, batch and resumption do not change them.
        seeds = [hashlib.sha256(repr(request).encode()).digest()[:8] for request in batch]
        seeds += [bytes(8)] * (size - len(batch))
        keys_B2 = np.frombuffer(b"".join(seeds), np.uint32).reshape(size, 2)
        return SamplingArrays(
            keys_B2,
            np.asarray([row.temperature for row in rows], np.float32),
            np.asarray([row.top_k for row in rows], np.int32),
            np.asarray([row.top_p for row in rows], np.float32),
            np.asarray([row.min_p for row in rows], np.float32),
        )

    @cached_property
    def _token_texts(self) -> list[str]:
        return [self.tokenizer.decode([i]) for i in range(self.tokenizer.vocab_size)]

    def stop_tokens(self, stop: tuple[str, ...]) -> jax.Array:
        """stop_V: the tokenizer's own, and every token whose text holds a stop string.

        A stop string across tokens is found in the text.
        """
        if stop not in self._stops:
            stop_V = np.zeros(self.config.vocab_size, bool)
            stop_V[list(self.tokenizer.stop_ids)] = True
            if stop:
                for i, text in enumerate(self._token_texts):
                    stop_V[i] |= any(string in text for string in stop)
            self._stops[stop] = jnp.asarray(stop_V)
        return self._stops[stop]

    def _generation(self, stop: Sequence[str], ids: list[int], logprobs: np.ndarray) -> Generation:
        """Cut before the first stop string; what was written after it does not count."""
        stopped = bool(ids) and ids[-1] in self.tokenizer.stop_ids
        text = self.tokenizer.decode(ids)
        found = [at for at in (text.find(string) for string in stop) if at >= 0]
        if found:
            stopped, text = True, text[: min(found)]
            # The fewest tokens whose text shows a stop string: the answer and the stop itself.
            used = next(n for n in range(1, len(ids) + 1) if any(s in self.tokenizer.decode(ids[:n]) for s in stop))
            ids, logprobs = ids[:used], logprobs[:used]
        return Generation(text, tuple(ids), float(logprobs.sum()), stopped)


@partial(jax.jit, static_argnames="config")
def _score(config: ModelConfig, params: Params, tokens_BT, targets_BT, weights_BT) -> jax.Array:
    """total_B: each row's sum of weighted log-likelihoods, a row of logits at a time: no [B, T, V] array exists."""
    hidden_BTD, _ = hidden(config, params, tokens_BT)

    def row(xs):
        hidden_TD, targets_T, weights_T = xs
        logprobs_TV = jax.nn.log_softmax(logits(config, params, hidden_TD))
        return (jnp.take_along_axis(logprobs_TV, targets_T[:, None], 1)[:, 0] * weights_T).sum()

    return jax.lax.map(row, (hidden_BTD, jnp.asarray(targets_BT), jnp.asarray(weights_BT)))


def _batches(shapes: Sequence[Shape], size: int) -> Iterator[tuple[Shape, list[int]]]:
    """Indices of equal shape together, at most `size` at a time."""
    groups: dict[Shape, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    for shape, members in groups.items():
        for start in range(0, len(members), size):
            yield shape, members[start : start + size]
