"""The texts of lm-eval's requests as token ids, cut where its `hf` adapter cuts them; free of lm-eval itself.

Special tokens that a text spells are special here, as they are there: tasks and chat templates write them on purpose.
"""

from typing import NamedTuple

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer


class Pair(NamedTuple):
    """Token ids of a text, and of what is scored as its continuation; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text with the tokenizer's own start; a text that spells its BOS gets no second one."""
    ids = tokenizer.parse(text).ids
    return ids if ids[:1] == [tokenizer.bos_id] else [*tokenizer.start, *ids]


def pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """Cuts the ids of the whole text at the length of the context's ids, its trailing white space left out.

    An empty context is the BOS, or the EOS of a tokenizer without one. Where a token reaches over all of the
    continuation, at which `hf` stops, that token is scored. Raises UserError for an empty continuation.
    """
    if not continuation:
        raise UserError(f"there is nothing to score after {context[-40:]!r}: give the task answers that are not empty")
    bos = [tokenizer.bos_id]
    if not context:
        whole = tokenizer.parse(continuation).ids
        start = bos if whole[:1] == bos else []
    else:
        whole, start = encode(tokenizer, context + continuation), encode(tokenizer, context.rstrip())
    if len(start) >= len(whole):
        start = whole[:-1]
    return Pair(tuple(start or bos), tuple(whole[len(start) :]))


def last(one: Pair, room: int) -> Pair:
    """The pair's last `room` ids: a context that is too long loses its beginning.

    Raises UserError for a continuation that leaves no room for a token of the context.
    """
    left = room - len(one.continuation)
    if left < 1:
        raise UserError(
            f"an answer of {len(one.continuation)} tokens is more than the model reads at once, {room - 1}: "
            "use a model with more positions, or a task with shorter answers"
        )
    return one._replace(context=one.context[-left:])
