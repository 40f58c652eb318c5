"""A context and what may follow it, as token ids that are those of the whole text."""

from collections.abc import Sequence

from limbeck.model.tokenizer.tokenizer import Tokenizer

_NEAR = 160  # characters of a context that can change how what follows is cut into tokens


def join(tokenizer: Tokenizer, context: str, continuations: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """(ids of the context, ids of each continuation), without special tokens; none of the latter empty if it can be.

    The two together are the ids of the whole text. Encoded apart they need not be: a token may reach over the join,
    and some tokenizers put a space before any text. The context is the same for all, so tokens at its end that any
    continuation would change belong to the continuations.
    """
    ids = tokenizer.encode(context)
    if not continuations:
        return ids, []
    # A long context is encoded once, not with each continuation, where its end alone is cut in the same way.
    near = tokenizer.encode(context[-_NEAR:]) if len(context) > _NEAR else ids
    wholes = tokenizer.encode_batch([context[-_NEAR:] + continuation for continuation in continuations])
    kept, half = shared(near, wholes), len(near) // 2
    if near is not ids and (kept <= half or near[half:] != ids[half - len(near) :]):
        near, wholes = ids, tokenizer.encode_batch([context + continuation for continuation in continuations])
        kept = shared(near, wholes)
    return ids[: len(ids) - len(near) + kept], [whole[kept:] for whole in wholes]


def joined(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(ids from the start token on, how many of them are given) of each pair of a context and what follows it.

    The ids are those of the whole text; a token that reaches over the join is not given.
    """
    contexts = tokenizer.encode_batch([context for context, _ in texts])
    wholes = tokenizer.encode_batch([context + target for context, target in texts])
    found = []
    for context, whole in zip(contexts, wholes, strict=True):
        kept = shared(context, [whole])
        start = list(tokenizer.start) if tokenizer.start or kept else [tokenizer.bos_id]  # something is given always
        found.append(([*start, *whole], len(start) + kept))
    return found


def shared(ids: Sequence[int], wholes: Sequence[Sequence[int]]) -> int:
    """How many first ids all have, and leave something of each whole."""
    most = max(0, min(len(ids), *(len(whole) - 1 for whole in wholes)))
    alike = (len(set(here)) == 1 for here in zip(ids[:most], *wholes, strict=False))
    return next((at for at, same in enumerate(alike) if not same), most)
