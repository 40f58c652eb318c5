"""The engine: many requests in, as many answers out, in batches of few compiled shapes.

Prompts are padded to powers of two, so that a handful of compiled programs serves any mixture of requests; a row's
answer does not depend on the rows beside it. What many prompts of a call begin with, such as examples that do not
change, is run once (`sharing.py`), and so is a prompt with several options.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from limbeck.inference import classify
from limbeck.inference.batches import bucket, padded
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
from limbeck.inference.stops import Stops
from limbeck.inference.writing import Order, Rows, sampling, write
from limbeck.model.config import ModelConfig
from limbeck.model.decode import behind, check_room, everywhere, stream
from limbeck.model.errors import UserError, nearest
from limbeck.model.params import Params, apart, digest, layer_paths
from limbeck.model.prefix import prefix_length
from limbeck.model.sharding import placed
from limbeck.model.tokenizer import Tokenizer

_STREAMED = 4  # tokens between two pieces of a stream


class Engine:
    """Batched generation and scoring with one model, and with any number of adapters over it.

    Made and used within `sharding.over`, it lays the model over the devices of that mesh.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        batch_size: int = 64,
        weights_digest: str | None = None,
        share: bool = True,
        coded_cache: bool = False,
    ) -> None:
        """`weights_digest` is that of the parameters where it is known (`Pretrained.digest`).

        Without `share` nothing is run once for several: each prompt, and each option with its prompt, by itself.
        With `coded_cache` keys and values of what is written are kept in eight bits: a quarter of the memory, other
        numbers.
        """
        self._weights_digest = weights_digest
        self.config = config
        self.params = params = placed(config, params)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.dtype = f"{config.dtype}, cache int8" if coded_cache else config.dtype
        self.coded_cache = coded_cache
        self.share = share
        self.tokens_run = 0  # tokens that went through the model so far, padding left out
        self.indexes: dict[tuple[str, str], Any] = {}  # of texts, by this model's vectors too: `prompting` keeps them
        self._models = {"": params}
        self._unrolled = dataclasses.replace(config, scan=False)
        self._apart: Params | None = None  # the engine's own parameters, layer by layer
        self._whole_stack = jax.default_backend() != "cpu" or not jax.sharding.get_mesh().empty
        self._stops = Stops(tokenizer, config.vocab_size)

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
        self._models[name] = {**params, **placed(self.config, own)} if own else params
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

    def stop_tokens(self, stop: tuple[str, ...]) -> np.ndarray:
        """stop_V: the tokenizer's own, and every token whose text holds a stop string."""
        return self._stops.tokens(stop)

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
            self._check_read(request.prompt, self.prefix(request.adapter))
            if isinstance(request, HeadRequest) and not self.config.labels:
                raise UserError("the model has no head for classification or regression: its config names no labels")

    def answers(self, requests: Sequence[Request], only: Sequence[int] | None = None) -> Iterator[tuple[int, Result]]:
        """(index, result) of each request, in the order in which they are done.

        With `only` those requests alone are answered, as they would be among all: what is run once for several hangs
        on all of them, so that a job that goes on gives the numbers, bit for bit, that it would have given at once.
        """
        only = range(len(requests)) if only is None else only
        for kind in dict.fromkeys(type(requests[i]) for i in only):
            places = [i for i, request in enumerate(requests) if type(request) is kind]
            asked: Any = [requests[i] for i in places]
            wanted = set(only)
            own = [at for at, i in enumerate(places) if i in wanted]
            if kind is GenerateRequest:
                found: Iterable[tuple[int, Result]] = self._written(asked, own)
            elif kind is ScoreRequest:
                found = self._scored(asked, own)
            else:
                found = self._read(asked, own)
            yield from ((places[at], result) for at, result in found)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """A continuation for each request, in their order; its text ends before the first stop string.

        The tokenizer's own stop tokens always end it. Raises UserError for a prompt that leaves no room for the answer.
        """
        for request in requests:
            self.check(request)
        answers = dict(self._written(requests, range(len(requests))))
        return [answers[i] for i in range(len(requests))]

    def _written(self, requests: Sequence[GenerateRequest], only: Sequence[int]) -> Iterator[tuple[int, Generation]]:
        after = [request.sampling.max_new_tokens for request in requests]
        for params, skip, group in self._starts(requests, after, only):
            orders = [self._order(requests[i], skip) for i in group]
            short = None if skip else self.config.max_len - prefix_length(params)
            rows = Rows(self.batch_size, self.tokenizer.pad_id, self.coded_cache)
            config, params = self._for_writing(params)
            for place, written in write(config, params, orders, rows, short):
                self.tokens_run += len(orders[place].prompt) + len(written.ids)
                stop = requests[group[place]].stop
                yield group[place], self._stops.generation(stop, written.ids, written.logprobs)

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """The text of `generate`, in pieces as it is written: a piece is never taken back.

        What may yet become a stop string or a character is held until it is clear.
        """
        self._check_room(request, request.sampling.max_new_tokens)
        params = self._model(request.adapter)
        length = bucket(len(request.prompt), self.config.max_len - prefix_length(params))
        tokens_BT, lengths_B = self._pad([request.prompt], length, 1)
        self.tokens_run += len(request.prompt)
        order, new_tokens = self._order(request), request.sampling.max_new_tokens
        config, params = self._for_writing(params)
        shown, text, ids = "", "", []
        settings, how = sampling([order]), (new_tokens, _STREAMED, self.coded_cache)
        for out in stream(config, params, tokens_BT, lengths_B, settings, order.stop_V, *how):
            self.tokens_run += int(out.length_B[0]) - len(ids)
            ids = out.tokens_BT[0, : out.length_B[0]].tolist()
            generation = self._stops.generation(request.stop, ids, np.asarray(out.logprobs_BT[0, : len(ids)]))
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
            self.check(request)
        answers = dict(self._scored(requests, range(len(requests))))
        return [answers[i] for i in range(len(requests))]

    def _order(self, request: GenerateRequest, skip: int = 0) -> Order:
        # A row's random numbers come from its own request: order, batch and resumption do not change them.
        key = hashlib.sha256(repr(request).encode()).digest()[:8]
        return Order(request.prompt[skip:], request.sampling, key, self._stops.tokens(request.stop))

    def _for_writing(self, params: Params) -> tuple[ModelConfig, Params]:
        """A model as it is written with: on a CPU in a piece a layer, which a compiled loop would else copy out of the
        stack time and again. The engine's own parameters are taken apart once."""
        if self._whole_stack:
            return self.config, params
        if self._apart is None:
            self._apart = apart(self.params)
        if params is self.params:
            return self._unrolled, self._apart
        own = {path: leaf for path, leaf in params.items() if leaf is not self.params.get(path)}
        return self._unrolled, {**self._kept(params), **apart(own)}

    def _kept(self, params: Params) -> Params:
        """The engine's own layers, but for those of leaves that `params` have otherwise or not at all."""
        assert self._apart is not None
        out: Params = {}
        for path, leaf in self.params.items():
            if leaf is params.get(path):
                out |= {piece: self._apart[piece] for piece in layer_paths(path, leaf)}
        return out

    def _scored(self, requests: Sequence[ScoreRequest], only: Sequence[int]) -> Iterator[tuple[int, Scores]]:
        after = [max(map(len, request.options)) - 1 for request in requests]
        for params, skip, group in self._starts(requests, after, only):
            together = [i for i in group if skip or self._runs_once(requests[i])]
            prompts, options = [requests[i].prompt[skip:] for i in together], [requests[i].options for i in together]
            scored = score_options(self.config, params, prompts, options, self.batch_size, self.tokenizer.pad_id)
            found = dict(zip(together, scored, strict=True))
            self.tokens_run += sum(map(len, prompts)) + sum(len(each) - 1 for own in options for each in own)
            apart = [i for i in group if i not in found]
            rows = [Row(requests[i].prompt + option, len(option)) for i in apart for option in requests[i].options]
            each = iter(self._score_rows(params, rows))
            found |= {i: [next(each) for _ in requests[i].options] for i in apart}
            for i, options_of in found.items():
                logprobs, greedy = zip(*options_of, strict=True)
                yield i, Scores(logprobs, tuple(map(len, requests[i].options)), greedy)

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

    def embed(self, prompts: Sequence[Sequence[int]], adapter: str = "") -> np.ndarray:
        """x_ND, float32, of length one: the mean of the last hidden states over each prompt's tokens.

        Raises UserError for a prompt that is empty or does not fit the model.
        """
        for prompt in prompts:
            self._check_read(prompt, self.prefix(adapter))
        self.tokens_run += sum(map(len, prompts))
        x_ND = mean_hidden(self.config, self._model(adapter), prompts, self.batch_size, self.tokenizer.pad_id)
        return x_ND / np.maximum(np.linalg.norm(x_ND, axis=-1, keepdims=True), np.finfo(np.float32).tiny)

    def _read(
        self, requests: Sequence[EmbedRequest | HeadRequest], only: Sequence[int]
    ) -> Iterator[tuple[int, Values]]:
        """What is read off texts, of one kind: embeddings, or what the model's head says."""
        for adapter in dict.fromkeys(requests[i].adapter for i in only):
            own = [i for i in only if requests[i].adapter == adapter]
            prompts = [requests[i].prompt for i in own]
            if isinstance(requests[own[0]], EmbedRequest):
                rows = self.embed(prompts, adapter)
            else:
                rows = classify.score(self.config, self._model(adapter), prompts)
                self.tokens_run += sum(map(len, prompts))
            # As the shortest numbers that say the same in float32: a store of them is half as large.
            yield from ((i, Values(tuple(float(str(x)) for x in row))) for i, row in zip(own, rows, strict=True))

    def _score_rows(self, params: Params, rows: Sequence[Row]) -> list[Scored]:
        self.tokens_run += sum(len(row.ids) - 1 for row in rows)
        return score_rows(self.config, params, rows, self.batch_size, self.tokenizer.pad_id)

    def _starts(
        self, requests: Sequence[GenerateRequest | ScoreRequest], after: Sequence[int], only: Sequence[int]
    ) -> Iterator[tuple[Params, int, list[int]]]:
        """(the model behind a start, the tokens of that start, the indices of requests in `only` that begin with it).

        `after` is how many tokens follow each prompt. Where nothing is shared the model is as it is, the start empty.
        """
        wanted = set(only)
        for adapter in dict.fromkeys(request.adapter for request in requests):
            params, limit = self._model(adapter), longest_short(self.config)
            own = [i for i, request in enumerate(requests) if request.adapter == adapter]
            ends = {i: self.prefix(adapter) + len(requests[i].prompt) + after[i] for i in own}
            may = [i for i in own if limit is None or ends[i] <= limit]
            may = may if self.share and everywhere(self.config, params) else []
            starts = shared_starts([requests[i].prompt for i in may], [after[i] for i in may], self.batch_size)
            whole = [i for i in own if i not in set(may)]
            for length, places in starts:
                members = [may[place] for place in places if may[place] in wanted]
                if not length or not members:
                    whole += members
                    continue
                self.tokens_run += length
                text = requests[members[0]].prompt[:length]
                yield behind(self.config, params, text, slots(length)), length, members
            if whole := [i for i in whole if i in wanted]:
                yield params, 0, whole

    def _runs_once(self, request: ScoreRequest) -> bool:
        """Whether a prompt runs once for all its options, which must turn alike (longrope)."""
        limit = longest_short(self.config)
        ends = {len(option) + len(request.prompt) - 1 + self.prefix(request.adapter) for option in request.options}
        alike = limit is None or max(ends) <= limit or min(ends) > limit
        return self.share and len(request.options) > 1 and alike

    def _check_read(self, prompt: Sequence[int], prefix: int) -> None:
        room = self.config.max_len - prefix
        if not 0 < len(prompt) <= room:
            raise UserError(f"a text of {len(prompt)} tokens: the model reads 1 to {room}; shorten it")

    def _check_room(self, request: Request, tokens: int) -> None:
        check_room(self.config, len(request.prompt), tokens, self.prefix(request.adapter))

    def _pad(self, rows: Sequence[Sequence[int]], length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        return padded(rows, length, size, self.tokenizer.pad_id)
