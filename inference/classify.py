"""Answers read off a head: a label, several labels or a number for each text."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import jax
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.hosts import on_host
from limbeck.model.params import Params
from limbeck.model.prefix import prefix_length
from limbeck.model.progress import progress
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.transformer import classify, with_prefix
from limbeck.tasks.label_metrics import join_labels
from limbeck.tasks.task import Record, Task

_TOKENS = 8192  # of a batch, padding included: longer texts go in smaller batches
_SHORTEST = 16
_MANY = 256  # texts from which on there is time for a progress bar

_classify = jax.jit(classify, static_argnums=0)


class Answers(NamedTuple):
    """An answer in words for each record, what the head said, and how sure it was of the answer.

    `scores_NC` are logits, or the numbers of a regression (C = 1); `confidence_N` is the probability of the answer as
    a whole, NaN for a regression.
    """

    answers: list[str]
    scores_NC: np.ndarray
    confidence_N: np.ndarray


def answer(task: Task, config: ModelConfig, params: Params, tokenizer: Tokenizer, records: Sequence[Record]) -> Answers:
    """What the model's head answers to each record's query. Raises UserError for a query that is too long."""
    texts, room = [], config.max_len - prefix_length(params)
    for record in records:
        texts.append(tokenizer.prompt(task.query(record)))
        if len(texts[-1]) > room:
            raise UserError(
                f"{task.place(record)}: {len(texts[-1])} tokens, and the model has {room} positions for them: "
                "shorten the record or use a model with a larger max_len"
            )
    scores_NC = score(config, params, texts, task.name)
    if task.kind == "regression":
        return Answers([f"{value:.6g}" for value in scores_NC[:, 0]], scores_NC, np.full(len(texts), np.nan))
    options = task.options or ()
    if task.kind == "multi_label":
        probability_NC = 1 / (1 + np.exp(-scores_NC.astype(np.float64)))
        chosen_NC = probability_NC > 0.5
        words = [join_labels([options[int(i)] for i in np.flatnonzero(row)], options) for row in chosen_NC]
        return Answers(words, scores_NC, np.where(chosen_NC, probability_NC, 1 - probability_NC).prod(-1))
    odds_NC = np.exp(scores_NC.astype(np.float64) - scores_NC.max(-1, keepdims=True))
    probability_NC = odds_NC / odds_NC.sum(-1, keepdims=True)
    return Answers([options[int(i)] for i in scores_NC.argmax(-1)], scores_NC, probability_NC.max(-1))


def score(config: ModelConfig, params: Params, texts: Sequence[Sequence[int]], name: str = "texts") -> np.ndarray:
    """scores_NC of token ids of any lengths: in batches of few shapes, padded to powers of two."""
    scores_NC = np.zeros((len(texts), len(config.labels)), np.float32)
    params = with_prefix(config, params)
    room = config.max_len - prefix_length(params)
    lengths = np.array([len(text) for text in texts], int)
    bucket_of = np.array([min(max(_SHORTEST, 1 << (int(n) - 1).bit_length()), room) for n in lengths], int)
    with progress(name, len(texts), "text") if len(texts) > _MANY else nullcontext(lambda n: None) as advance:
        for bucket in np.unique(bucket_of):
            members, rows = np.flatnonzero(bucket_of == bucket), max(1, _TOKENS // int(bucket))
            rows = min(rows, 1 << (len(members) - 1).bit_length())
            for start in range(0, len(members), rows):
                batch = members[start : start + rows]
                tokens_BT, lengths_B = np.zeros((rows, bucket), np.int32), np.ones(rows, np.int32)
                for row, index in enumerate(batch):
                    tokens_BT[row, : lengths[index]], lengths_B[row] = texts[index], lengths[index]
                out = _classify(config, params, tokens_BT, lengths_B)
                scores_NC[batch] = on_host(out)[: len(batch)]
                advance(len(batch))
    return scores_NC
