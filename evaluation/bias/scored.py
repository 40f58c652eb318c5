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

    What has the same tokens is asked once, so that it is as likely to the last bit. Raises UserError for a sentence
    that the model has no room for.
    """
    ids = [tuple(each) for each in model.tokenizer.encode_batch(sentences)]
    distinct = list(dict.fromkeys(ids))
    scores = model.score([ScoreRequest((model.tokenizer.bos_id,), (each,)) for each in distinct])
    found = {each: (score.logprobs[0], score.lengths[0]) for each, score in zip(distinct, scores, strict=True)}
    logprob_N, tokens_N = np.array([found[each] for each in ids], np.float64).reshape(-1, 2).T
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
