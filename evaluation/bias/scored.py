"""What a probe needs of a model: log-likelihoods of whole sentences, and of what may follow a context."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.model.tokenizer import Tokenizer


class Model(Protocol):
    """An `Engine`, or one whose answers are kept in a store."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]: ...

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]: ...


def sentence_logprobs(model: Model, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(log-likelihood in nats [N], tokens [N]) of each whole sentence after one BOS.

    A sentence that stands several times is asked once. Raises UserError for one that the model has no room for.
    """
    tokenizer, distinct = model.tokenizer, list(dict.fromkeys(sentences))
    scores = model.score([ScoreRequest((tokenizer.bos_id,), (tuple(tokenizer.encode(each)),)) for each in distinct])
    found = {text: (each.logprobs[0], each.lengths[0]) for text, each in zip(distinct, scores, strict=True)}
    logprob_N, tokens_N = np.array([found[text] for text in sentences], np.float64).reshape(-1, 2).T
    return logprob_N, tokens_N


def continuations_request(model: Model, context: str, continuations: Sequence[str]) -> ScoreRequest:
    """The request for how likely texts are that go on from a context: "The nurse said that" and " she", " he".

    The tokens are those of the whole texts, whatever the tokenizer merges where they are joined: what all of them
    begin with is the prompt, and what differs is scored.
    """
    whole = [tuple(model.tokenizer.encode(context + each)) for each in continuations]
    shared = 0
    while all(len(ids) > shared + 1 for ids in whole) and len({ids[shared] for ids in whole}) == 1:
        shared += 1
    return ScoreRequest((model.tokenizer.bos_id, *whole[0][:shared]), tuple(ids[shared:] for ids in whole))
