"""A model of ours in lm-evaluation-harness (Gao et al. 2021): its tasks and metrics, our engine, no PyTorch.

The model is asked token for token what lm-eval's own `hf` adapter asks, so that the numbers can stand beside published
ones. That holds for its habits too: a text that is scored as a whole stands after a BOS, and where the tokenizer puts
one before every text, that second BOS is scored with it; what is too long loses its beginning; few-shot examples are
drawn in the order of the records, so that a part of them (`limit`) gets other examples than the whole.
"""

import contextlib
import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from limbeck.evaluation.lm_eval_tokens import Pair, encode, last, pair
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation, Sampling, ScoreRequest
from limbeck.inference.scoring import Row, Scored, score_rows
from limbeck.model.errors import UserError, one_of
from limbeck.model.pretrained import load_pretrained
from limbeck.model.progress import progress
from limbeck.model.tokenizer.chat import Message, render_text

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]

    # It looks up its own models only where no name is registered yet: this import does, before ours is there.
    from lm_eval.models import utils as rules  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import simple_parse_args_string  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError(f"this needs lm-eval, which cannot be imported ({error}): pip install 'limbeck[eval]'") from error

_PORTION = 256  # requests between two moves of the progress bar
_TOGETHER = 64  # requests run at once, where it is left to us
_NEW_TOKENS = 256  # lm-eval's, for a task that does not say
_TOP_K = 50  # of a sampled answer for which a task says nothing: transformers' own
_WITHOUT_EFFECT = {"num_beams": 1, "repetition_penalty": 1.0}
_MARK = "\ue000"  # of private use: where a conversation is cut

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class LimbeckLM(LM):
    """An engine as a model of lm-eval; `cut` counts the requests that were too long and lost their beginning."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.cut = 0

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> "LimbeckLM":
        """`simple_evaluate(model="limbeck", model_args={"pretrained": FOLDER})`; takes dtype and batch_size too."""
        given = {**{name: value for name, value in (additional_config or {}).items() if value}, **arg_dict}
        for name in given:
            one_of("model argument", name, ("pretrained", "dtype", "batch_size", "max_batch_size", "device"))
        size = _batch_size(given.get("batch_size", "auto"))
        model = load_pretrained(given.get("pretrained", ""), dtype=given.get("dtype"))
        if model.tokenizer is None:
            raise UserError(f"{given['pretrained']} has no tokenizer; put its tokenizer.json beside it")
        return cls(Engine(model.config, model.params, model.tokenizer, size, model.digest))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> "LimbeckLM":
        """The same for "pretrained=FOLDER,dtype=float32"."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether each of its tokens is the likeliest) of continuations after contexts.

        Raises UserError for an empty continuation, and for one that is longer than what the model reads.
        """
        whole = [pair(self.engine.tokenizer, *request.args[:2]) for request in requests]
        pairs = [last(one, self._positions + 1) for one in whole]  # a continuation's last token is not read
        self._count_cut(sum(new != old for new, old in zip(pairs, whole, strict=True)), len(pairs))
        full = [one for one in dict.fromkeys(pairs) if len(one.context) + len(one.continuation) > self._positions]
        scored = _in_portions("score the longest", full, self._score_full, [len(one.context) for one in full])
        answers = dict(zip(full, scored, strict=True))
        options: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for one in dict.fromkeys(pairs):
            if one not in answers:
                options.setdefault(one.context, []).append(one.continuation)
        asked = [ScoreRequest(context, tuple(continuations)) for context, continuations in options.items()]
        found = _in_portions("score", asked, self.engine.score, [len(request.prompt) for request in asked])
        for request, scores in zip(asked, found, strict=True):
            for option, nats, greedy in zip(request.options, scores.logprobs, scores.greedy, strict=True):
                answers[Pair(request.prompt, option)] = Scored(nats, greedy)
        return [(answers[one].logprob, answers[one].greedy) for one in pairs]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods in nats of whole texts after a BOS, in windows where a text is longer than the model."""
        tokenizer = self.engine.tokenizer
        texts = [[tokenizer.bos_id, *encode(tokenizer, request.args[0])] for request in requests]
        return _in_portions("score texts", texts, self.engine.rolling, [len(text) for text in texts])

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, until a stop string, an end token or as many tokens as were asked.

        Raises UserError for settings that are not known, and where the model has no room for so many tokens.
        """
        asked: list[GenerateRequest] = []
        times: Counter[GenerateRequest] = Counter()  # several draws of one request are told apart
        cut = 0
        for request in requests:
            context, settings = request.args[:2]
            sampling, stop = read_settings(settings, self._spelling(self.engine.tokenizer.eos_id))
            room = self._positions - sampling.max_new_tokens
            if room < 1:
                raise UserError(
                    f"the task asks for {sampling.max_new_tokens} new tokens and the model has {self._positions} "
                    "positions: set max_gen_toks in the task's generation_kwargs, or use a model with more"
                )
            ids = encode(self.engine.tokenizer, context) or [self.engine.tokenizer.bos_id]
            cut += len(ids) > room
            one = GenerateRequest(tuple(ids[-room:]), sampling, stop)
            asked.append(dataclasses.replace(one, sample=times[one]))
            times[one] += 1
        self._count_cut(cut, len(requests))
        written = _in_portions("generate", asked, self.engine.generate, [len(request.prompt) for request in asked])
        return [self._text(*both) for both in zip(written, asked, strict=True)]

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's template writes it, to be answered or, without that, to be continued.

        A template that refuses system messages gets the conversation without them, with a warning.
        """
        messages = [dict(message) for message in chat_history]
        if not add_generation_prompt:
            messages[-1]["content"] += f"{_MARK} "
        try:
            text = render_text(self.engine.tokenizer, messages, add_generation_prompt)
        except UserError:
            others = [message for message in messages if message["role"] != "system"]
            if self.engine.tokenizer.chat_template is None or len(others) == len(messages):
                raise
            text = render_text(self.engine.tokenizer, others, add_generation_prompt)
            logging.getLogger(__name__).warning("the chat template refuses system messages: they are left out")
        if add_generation_prompt:
            return text
        at = text.rindex(_MARK)
        return text[:at] if text[at:].startswith(f"{_MARK} ") else text[:at].rstrip()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the record."""
        return self.engine.tokenizer.chat_template

    @property
    def tokenizer_name(self) -> str:
        """What tells lm-eval's stored prompts of one tokenizer from those of another."""
        return self.engine.tokenizer_digest

    @property
    def _positions(self) -> int:
        return self.engine.config.max_len - self.engine.prefix()

    def _score_full(self, pairs: Sequence[Pair]) -> list[Scored]:
        """Pairs of one token more than the model has positions, for which `Engine.score` has no room."""
        rows = [Row(one.context + one.continuation, len(one.continuation)) for one in pairs]
        engine = self.engine
        return score_rows(engine.config, engine.params, rows, engine.batch_size, engine.tokenizer.pad_id)

    def _spelling(self, index: int) -> str:
        return next((token for token, at in self.engine.tokenizer.special_ids.items() if at == index), "")

    def _text(self, generation: Generation, request: GenerateRequest) -> str:
        """Cut at the stop strings, in the order in which the task names them, and at special tokens that hold one."""
        special = self.engine.tokenizer.special_ids.items()
        ends = {index for token, index in special if any(stop in token for stop in request.stop)}
        ids = itertools.takewhile(lambda index: index not in ends, generation.tokens)
        return rules.postprocess_generated_text(self.engine.tokenizer.decode(ids), list(request.stop), None)

    def _count_cut(self, cut: int, of: int) -> None:
        self.cut += cut
        if cut:
            said = f"{cut} of {of} requests are longer than the model's {self._positions} positions"
            logging.getLogger(__name__).warning(f"{said}: their beginnings are cut off")


register_model("limbeck")(LimbeckLM)


def _batch_size(asked: int | str) -> int:
    """Requests that are run together; lm-eval's "auto", and "auto:4", which tries again so often, leave it to us."""
    text = str(asked)
    if text.partition(":")[0] == "auto":
        return _TOGETHER
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"batch_size={text}: give a whole number from 1 on, or auto, which is {_TOGETHER} here")
    return int(text)


def read_settings(settings: Mapping[str, Any], eos: str) -> tuple[Sampling, tuple[str, ...]]:
    """How a task wants its answers: (sampling, stop strings, with the EOS as text among them).

    Raises UserError for settings that the engine does not know.
    """
    left: dict[str, Any] = {**rules.normalize_gen_kwargs(dict(settings), _NEW_TOKENS)}
    stop = rules.handle_stop_sequences(left.pop("until"), eos=eos or None)
    new_tokens, sampled = left.pop("max_gen_toks"), left.pop("do_sample")
    temperature = float(left.pop("temperature", 0.0))
    drawn = {name: left.pop(name) for name in ("top_k", "top_p", "min_p") if name in left}
    for name, value in left.items():
        if value != _WITHOUT_EFFECT.get(name):
            legal = "until, max_gen_toks, do_sample, temperature, top_k, top_p, min_p"
            raise UserError(f"generation_kwargs: {name}={value!r} is not known here: take it out; there are {legal}")
    stops = tuple(text for text in stop if text)
    if not sampled:
        return Sampling(new_tokens), stops
    return Sampling(new_tokens, temperature, **{"top_k": _TOP_K, **drawn}), stops


def _in_portions(
    what: str, asked: list[Asked], answer: Callable[[list[Asked]], Sequence[Answer]], lengths: list[int]
) -> list[Answer]:
    """The answers in order; the longest are asked first, so that the time left turns out shorter than it says."""
    answers: dict[int, Answer] = {}
    order = sorted(range(len(asked)), key=lambda place: -lengths[place])
    with progress(what, len(asked), "request") if asked else contextlib.nullcontext(int) as advance:
        for start in range(0, len(asked), _PORTION):
            places = order[start : start + _PORTION]
            answers.update(zip(places, answer([asked[place] for place in places]), strict=True))
            advance(len(places))
    return [answers[place] for place in range(len(asked))]
