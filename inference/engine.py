"""The engine: many requests in, as many answers out, in batches of few compiled shapes.

Prompts are padded to powers of two, so that a handful of compiled programs serves any mixture of requests; a row's
answer does not depend on the rows beside it. What many prompts of a call begin with, such as examples that do not
change, is run once (`sharing.py`), and so is a prompt with several options.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.inference import classify
from limbeck.inference.batches import batches, bucket, padded
from limbeck.inference.requests import (
    EmbedRequest,
    GenerateRequest,
    Generation,
    HeadRequest,
    Request,
    Result,
    ScoreRequest,
    Scores,
    Values,
)
from limbeck.inference.scoring import Row, Scored, mean_hidden, score_options, score_rows
from limbeck.inference.sharing import longest_short, shared_starts, slots
from limbeck.model.config import ModelConfig
from limbeck.model.decode import SamplingArrays, behind, check_room, everywhere, generate, stream
from limbeck.model.errors import UserError, nearest
from limbeck.model.params import Params, digest
from limbeck.model.prefix import prefix_length
from limbeck.model.tokenizer import Tokenizer

_STREAMED = 4  # tokens between two pieces of a stream


class Engine:
    """Batched generation and scoring with one model, and with any number of adapters over it."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        batch_size: int = 64,
        weights_digest: str | None = None,
        share: bool = True,
    ) -> None:
        """`weights_digest` is that of the parameters where it is known (`Pretrained.digest`).

        Without `share` nothing is run once for several: each prompt, and each option with its prompt, by itself.
        """
        self._weights_digest = weights_digest
        self.config = config
        self.params = params
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.dtype = config.dtype
        self.share = share
        self.tokens_run = 0  # tokens that went through the model so far, padding left out
        self.indexes: dict[tuple[str, str], Any] = {}  # of texts, by this model's vectors too: `prompting` keeps them
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

    def keep(self, start: Sequence[int], adapter: str = "") -> str:
        """Runs what many prompts begin with once, and says by what name requests ask with the rest of their prompts.

        Raises UserError for a start that is empty or leaves no room, and where that cannot be: in a model with virtual
        tokens in some layers alone, or with longrope, which turns a short text otherwise than a long one's beginning.
        """
        params = self._model(adapter)
        check_room(self.config, len(start), 1, prefix_length(params))
        if not everywhere(self.config, params) or longest_short(self.config) is not None:
            raise UserError("a model with longrope, or virtual tokens in some layers, cannot keep a prompt's beginning")
        self.tokens_run += len(start)
        return self.attach(behind(self.config, params, start, len(start)))

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

    def check(self, request: Request) -> None:
        """Raises UserError for a request that this engine cannot take."""
        if isinstance(request, GenerateRequest):
            self._check_room(request, request.sampling.max_new_tokens)
        elif isinstance(request, ScoreRequest):
            if not request.options or not all(request.options):
                raise UserError("scoring needs one or more options, none of them empty")
            self._check_room(request, max(map(len, request.options)))
        else:
            self._check_room(request, 1)
            if isinstance(request, HeadRequest) and not self.config.labels:
                raise UserError("the model has no head for classification or regression: its config names no labels")

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """(index, result) of each request, in the order in which they are done."""
        for kind in dict.fromkeys(map(type, requests)):
            own = [i for i, request in enumerate(requests) if type(request) is kind]
            asked: Any = [requests[i] for i in own]
            if kind is GenerateRequest:
                yield from zip(own, self.generate(asked), strict=True)
            elif kind is ScoreRequest:
                yield from zip(own, self.score(asked), strict=True)
            elif kind is EmbedRequest:
                found_ND = self.embed([request.prompt for request in asked])
                yield from ((i, Values(tuple(found_D.tolist()))) for i, found_D in zip(own, found_ND, strict=True))
            else:
                found_NC = classify.score(self.config, self.params, [request.prompt for request in asked])
                yield from ((i, Values(tuple(found_C.tolist()))) for i, found_C in zip(own, found_NC, strict=True))

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """A continuation for each request, in their order; its text ends before the first stop string.

        The tokenizer's own stop tokens always end it. Raises UserError for a prompt that leaves no room for the answer.
        """
        answers: dict[int, Generation] = {}
        for request in requests:
            self._check_room(request, request.sampling.max_new_tokens)
        new = [request.sampling.max_new_tokens for request in requests]
        for params, skip, group in self._starts(requests, new):
            rests = [requests[i].prompt[skip:] for i in group]
            most = None if skip else self.config.max_len - prefix_length(params)
            shapes = [(new[i], requests[i].stop, bucket(len(r), most)) for i, r in zip(group, rests, strict=True)]
            for (new_tokens, stop, length), members in batches(shapes, self.batch_size):
                batch = [requests[group[i]] for i in members]
                tokens_BT, lengths_B = self._pad([rests[i] for i in members], length, self.batch_size)
                settings, stop_V = self._sampling(batch, self.batch_size), self.stop_tokens(stop)
                out = generate(self.config, params, tokens_BT, lengths_B, settings, stop_V, new_tokens)
                out = jax.device_get(out)
                for row, member in enumerate(members):
                    written = int(out.length_B[row])
                    ids, logprobs = out.tokens_BT[row, :written].tolist(), out.logprobs_BT[row, :written]
                    answers[group[member]] = self._generation(stop, ids, logprobs)
                    self.tokens_run += len(rests[member]) + written
        return [answers[i] for i in range(len(requests))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """The text of `generate`, in pieces as it is written: a piece is never taken back.

        What may yet become a stop string or a character is held until it is clear.
        """
        self._check_room(request, request.sampling.max_new_tokens)
        params = self._model(request.adapter)
        length = bucket(len(request.prompt), self.config.max_len - prefix_length(params))
        tokens_BT, lengths_B = map(jnp.asarray, self._pad([request.prompt], length, 1))
        self.tokens_run += len(request.prompt)
        stop_V, new_tokens = self.stop_tokens(request.stop), request.sampling.max_new_tokens
        settings = self._sampling([request], 1)
        shown, text, ids = "", "", []
        for out in stream(self.config, params, tokens_BT, lengths_B, settings, stop_V, new_tokens, _STREAMED):
            self.tokens_run += int(out.length_B[0]) - len(ids)
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
        for index, request in enumerate(requests):
            if not request.options or not all(request.options):
                raise UserError(f"request {index}: scoring needs one or more options, none of them empty")
            self._check_room(request, max(map(len, request.options)))
        found: dict[int, list[Scored]] = {}
        for params, skip, group in self._starts(requests, [max(map(len, r.options)) - 1 for r in requests]):
            together = [i for i in group if skip or self._runs_once(requests[i])]
            prompts, options = [requests[i].prompt[skip:] for i in together], [requests[i].options for i in together]
            scored = score_options(self.config, params, prompts, options, self.batch_size, self.tokenizer.pad_id)
            found |= dict(zip(together, scored, strict=True))
            self.tokens_run += sum(map(len, prompts)) + sum(len(each) - 1 for own in options for each in own)
            apart = [i for i in group if i not in found]
            rows = [Row(requests[i].prompt + option, len(option)) for i in apart for option in requests[i].options]
            each = iter(self._score_rows(params, rows))
            found |= {i: [next(each) for _ in requests[i].options] for i in apart}
        answers = []
        for i, request in enumerate(requests):
            logprobs, greedy = zip(*found[i], strict=True)
            answers.append(Scores(logprobs, tuple(map(len, request.options)), greedy))
        return answers

    def rolling(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """The log-likelihood in nats of each text after its first token.

        A longer text than the model has positions for is read in windows that score each token once: those after the
        first window see at least one token before them, the last as many as fit (lm-evaluation-harness's
        `loglikelihood_rolling`). Raises UserError for an empty text.
        """
        room = self.config.max_len - self.prefix()
        rows, owners = [], []
        for index, text in enumerate(texts):
            if not text:
                raise UserError(f"text {index} is empty: it needs at least the BOS token")
            for start in range(1, len(text), room):
                stop = min(start + room, len(text))
                rows.append(Row(tuple(text[max(0, stop - 1 - room) : stop]), stop - start))
                owners.append(index)
        totals_N = np.zeros(len(texts))
        np.add.at(totals_N, owners, [each.logprob for each in self._score_rows(self.params, rows)])
        return totals_N.tolist()

    def embed(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """x_ND, float32, of length one: the mean of the last hidden states over each prompt's tokens.

        Raises UserError for a prompt that is empty or does not fit the model.
        """
        room = self.config.max_len - self.prefix()
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= room:
                raise UserError(f"text {index} has {len(prompt)} tokens: an embedding is of 1 to {room} tokens")
        self.tokens_run += sum(map(len, prompts))
        x_ND = mean_hidden(self.config, self.params, prompts, self.batch_size, self.tokenizer.pad_id)
        return x_ND / np.maximum(np.linalg.norm(x_ND, axis=-1, keepdims=True), np.finfo(np.float32).tiny)

    def _score_rows(self, params: Params, rows: Sequence[Row]) -> list[Scored]:
        self.tokens_run += sum(len(row.ids) - 1 for row in rows)
        return score_rows(self.config, params, rows, self.batch_size, self.tokenizer.pad_id)

    def _starts(
        self, requests: Sequence[GenerateRequest | ScoreRequest], after: Sequence[int]
    ) -> Iterator[tuple[Params, int, list[int]]]:
        """(the model behind a start, the tokens of that start, the indices of requests that begin with it).

        `after` is how many tokens follow each prompt. Where nothing is shared the model is as it is, the start empty.
        """
        for adapter in dict.fromkeys(request.adapter for request in requests):
            params, limit = self._model(adapter), longest_short(self.config)
            own = [i for i, request in enumerate(requests) if request.adapter == adapter]
            ends = {i: self.prefix(adapter) + len(requests[i].prompt) + after[i] for i in own}
            may = [i for i in own if limit is None or ends[i] <= limit]
            may = may if self.share and everywhere(self.config, params) else []
            starts = shared_starts([requests[i].prompt for i in may], [after[i] for i in may], self.batch_size)
            whole = [i for i in own if i not in set(may)]
            for length, places in starts:
                members = [may[place] for place in places]
                if not length:
                    whole += members
                    continue
                self.tokens_run += length
                text = requests[members[0]].prompt[:length]
                yield behind(self.config, params, text, slots(length)), length, members
            if whole:
                yield params, 0, whole

    def _runs_once(self, request: ScoreRequest) -> bool:
        """Whether a prompt runs once for all its options, which must turn alike (longrope)."""
        limit = longest_short(self.config)
        ends = {len(option) + len(request.prompt) - 1 + self.prefix(request.adapter) for option in request.options}
        alike = limit is None or max(ends) <= limit or min(ends) > limit
        return self.share and len(request.options) > 1 and alike

    def _check_room(self, request: Request, tokens: int) -> None:
        check_room(self.config, len(request.prompt), tokens, self.prefix(request.adapter))

    def _pad(self, rows: Sequence[Sequence[int]], length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        return padded(rows, length, size, self.tokenizer.pad_id)

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
