"""Text to token ids and back, any script: byte-level and byte-pair tokenizers over the `tokenizers` library."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from limbeck.model.errors import UserError
from limbeck.model.files import write_atomic

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class Tokenizer:
    """A fast tokenizer with its three special ids; `encode` adds none of them, the caller does, exactly once."""

    def __init__(self, fast: tokenizers.Tokenizer) -> None:
        self._fast = fast
        self.vocab_size = fast.get_vocab_size()
        self.pad_id, self.bos_id, self.eos_id = (self._special(token) for token in (PAD, BOS, EOS))

    def _special(self, token: str) -> int:
        index = self._fast.token_to_id(token)
        if index is None:
            raise UserError(f"the tokenizer has no token {token!r}: it needs {PAD}, {BOS} and {EOS}")
        return index

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens; text that spells a special token stays text."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [encoding.ids for encoding in self._fast.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens vanish, and bytes that are no UTF-8 become U+FFFD."""
        return self._fast.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of everything that the tokenizer is."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json`."""
        write_atomic(path, self._fast.to_str(pretty=True))


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a `tokenizer.json`; raises UserError where there is none or it cannot be read."""
    if not Path(path).is_file():
        raise UserError(f"no tokenizer at {os.fspath(path)}: a model folder holds a tokenizer.json")
    try:
        fast = tokenizers.Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises a bare Exception for a malformed file
        raise UserError(f"{os.fspath(path)} is no tokenizer.json: {str(error).splitlines()[0]}") from error
    return _ready(fast)


def train_bpe(texts: Iterable[str], vocab_size: int, line_prefix: bool = False) -> Tokenizer:
    """A byte-level byte-pair tokenizer (Sennrich et al. 2016) of `vocab_size` ids learned from `texts`.

    The 256 bytes are in it, so every text of every script has ids. With `line_prefix` a word has one id at the start
    of a line and after a space: a small model then need not learn that the two are one word. The price is that a
    space with which a line begins is not told from none.
    """
    least = 256 + 3
    if vocab_size < least:
        raise UserError(f"vocab_size={vocab_size}: must be at least {least}, for 256 bytes and 3 special tokens")
    fast = _byte_level()
    if line_prefix:
        # In three replacements that each consume something: the library panics on some of zero width.
        fast.normalizer = normalizers.Sequence(
            [
                normalizers.Prepend(" "),
                normalizers.Replace(tokenizers.Regex(r"\A (?=\s)"), ""),
                normalizers.Replace(tokenizers.Regex(r"\n(?=\S)"), "\n "),
            ]
        )
        unprefix = [decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
        fast.decoder = decoders.Sequence([fast.decoder, decoders.Fuse(), *unprefix])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    return _ready(fast)


def byte_tokenizer() -> Tokenizer:
    """One id a byte, and the three specials."""
    return train_bpe([], 256 + 3)


def _byte_level() -> tokenizers.Tokenizer:
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return fast


def _ready(fast: tokenizers.Tokenizer) -> Tokenizer:
    fast.encode_special_tokens = True  # "<eos>" inside a user's text is seven characters, never the special id
    return Tokenizer(fast)
