"""The bytes that each token stands for, by which texts cut by two tokenizers are set side by side.

Bytes and not characters: a byte-level or byte-fallback tokenizer may cut a character of Persian, or an emoji, anywhere.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer

NO_BYTE = 256  # the class of tokens that write nothing: what ends a text and other special tokens, and unused ids

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
_SPACE = b" "
_SHOWN = 12  # bytes of a text in an error


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id, none for special tokens, those that end a text, and ids that are no token.

    Byte-level tokenizers (GPT-2's) spell each byte as a character; SentencePiece's spell a space as `▁` and, where
    they fall back on bytes, a lone one as `<0x0A>`. Raises UserError for other kinds, whose tokens are no bytes of the
    text (WordPiece).
    """
    fast = tokenizer._fast
    kinds = set(_kinds(json.loads(fast.decoder.__getstate__()))) if fast.decoder is not None else {"none"}
    if "ByteLevel" in kinds:
        read, read_added = _byte_level(), str.encode
    elif kinds & {"ByteFallback", "Metaspace"} or kinds == {"Replace"}:
        read = read_added = _sentencepiece("ByteFallback" in kinds)
    else:
        raise UserError(
            f"a tokenizer with the decoder {', '.join(sorted(kinds))}: its tokens are not bytes of the text, by which"
            " two tokenizers are aligned; use a byte-level tokenizer or SentencePiece's"
        )
    bytes_V = [b""] * tokenizer.vocab_size
    for spelling, index in fast.get_vocab(with_added_tokens=True).items():
        bytes_V[index] = read(spelling)
    for index, added in fast.get_added_tokens_decoder().items():
        bytes_V[index] = read_added(added.content)  # found in the text as it is
    for index in (*tokenizer.special_ids.values(), *tokenizer.stop_ids, *tokenizer.start, tokenizer.bos_id):
        bytes_V[index] = b""
    return bytes_V


def first_byte_V(tokenizer: Tokenizer) -> np.ndarray:
    """The first byte of each id, int32; `NO_BYTE` where it has none. Raises UserError as `token_bytes` does."""
    return np.asarray([piece[0] if piece else NO_BYTE for piece in token_bytes(tokenizer)], np.int32)


def added_spaces(pieces: Sequence[bytes], text: str) -> np.ndarray:
    """Which bytes of the tokens are spaces that the tokenizer put in: a bool for each byte that the tokens have.

    SentencePiece and others put one before a text, some before each line. Raises UserError where what the tokens say
    differs from the text in any other way: a normaliser rewrote it, or a sign was unknown.
    """
    said, meant = b"".join(pieces), text.encode()
    added = np.zeros(len(said), bool)
    if said == meant:
        return added
    if said == _SPACE + meant:
        added[0] = True
        return added
    at = 0
    for place, byte in enumerate(said):
        if at < len(meant) and byte == meant[at]:
            at += 1
        elif byte == _SPACE[0]:
            added[place] = True
        else:
            break
    if at < len(meant) or (~added).sum() > len(meant):
        raise UserError(f"{_shown(meant, at)} at byte {at} of {len(meant)} becomes {_shown(said, at + added.sum())}")
    return added


def ends(pieces: Sequence[bytes], added: np.ndarray) -> list[tuple[int, int]]:
    """Behind each token: at which byte of the text that is, and how many added spaces come before the text goes on.

    Where both agree, two tokenizers have read the same and are asked for the same next byte.
    """
    end_T = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    text_before = np.concatenate([[0], np.cumsum(~added)])
    real = np.flatnonzero(~added)
    goes_on_T = np.append(real, len(added))[np.searchsorted(real, end_T)]
    return list(zip(text_before[end_T].tolist(), (goes_on_T - end_T).tolist(), strict=True))


def _kinds(state: dict[str, Any]) -> Iterator[str]:
    """The decoder's steps, up to the one that has a whole text before it."""
    for step in state["decoders"] if state["type"] == "Sequence" else [state]:
        if step["type"] == "Fuse":
            return
        yield step["type"]


def _sentencepiece(byte_fallback: bool) -> Callable[[str], bytes]:
    def read(spelling: str) -> bytes:
        lone = byte_fallback and _BYTE_PIECE.fullmatch(spelling)
        return bytes([int(spelling[3:5], 16)]) if lone else spelling.replace("▁", " ").encode()

    return read


def _byte_level() -> Callable[[str], bytes]:
    """Reads GPT-2's spelling: printable characters of Latin-1 are themselves, the other bytes follow from U+0100 on."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    further = itertools.count(256)
    byte_of = {chr(byte) if chr(byte) in alphabet else chr(next(further)): byte for byte in range(256)}

    def read(spelling: str) -> bytes:
        known = all(letter in byte_of for letter in spelling)
        return bytes(byte_of[letter] for letter in spelling) if known else spelling.encode()

    return read


def _shown(text: bytes, at: int) -> str:
    return repr(text[at : at + _SHOWN].decode(errors="replace")) if at < len(text) else "the end"
