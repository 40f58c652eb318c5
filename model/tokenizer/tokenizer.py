"""Text to token ids and back, any script: one class over the `tokenizers` library, whatever file a model came with."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, write_atomic
from limbeck.model.tokenizer.files import Parts, id_of, leading_ids, put_first, read_parts

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class Tokenizer:
    """A tokenizer with what its model needs to know of it; `encode` adds no special ids, `prompt` adds `start`.

    `start` is what the tokenizer's own rules put before a text: its BOS, or nothing. `bos_id` may stand before a text
    that is scored from its first token: the BOS, or an EOS where the model has no BOS. `stop_ids` end a generation,
    `eos_id` is the first of them. `vocab_size` is the highest id plus one: ids may have holes. `tokens` are the
    special tokens' spellings ("bos_token", "eos_token", "pad_token", "unk_token"), as far as the model has them.
    """

    def __init__(self, parts: Parts) -> None:
        self._fast = parts.fast
        self.tokens: Mapping[str, str] = parts.tokens
        self.chat_template = parts.chat_template
        self.stop_ids: tuple[int, ...] = parts.stop_ids
        self.eos_id = parts.stop_ids[0]
        self.bos_id = parts.bos_id
        self.pad_id = id_of(parts.fast, parts.tokens["pad_token"]) if "pad_token" in parts.tokens else self.eos_id
        self.start: tuple[int, ...] = leading_ids(self._fast)
        self.vocab_size = max(self._fast.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens; text that spells a special token stays text."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [encoding.ids for encoding in self._fast.encode_batch(texts, add_special_tokens=False)]

    def prompt(self, text: str) -> list[int]:
        """The ids that a model continues: `start`, then those of `text`; exactly one BOS whatever the text is.

        Never empty: without a start and a text it is `bos_id`, for something must stand before the first token.
        """
        return [*self.start, *self.encode(text)] or [self.bos_id]

    def parse(self, markup: str) -> tokenizers.Encoding:
        """The encoding of text in which special tokens are special: what a template wrote, never a user's text."""
        return self._parser.encode(markup, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens vanish, and bytes that are no UTF-8 become U+FFFD."""
        return self._fast.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        """The id of every special token, by its spelling."""
        added = self._fast.get_added_tokens_decoder().items()
        return {token.content: index for index, token in added if token.special}

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of everything that the tokenizer is."""
        ids = [self.start, self.bos_id, self.eos_id, self.pad_id, self.stop_ids]
        everything = [self._fast.to_str(), sorted(self.tokens.items()), ids, self.chat_template]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    @cached_property
    def _parser(self) -> tokenizers.Tokenizer:
        parser = tokenizers.Tokenizer.from_str(self._fast.to_str())
        parser.encode_special_tokens = False
        return parser

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json` alone: the ids of texts, without the chat template and the further stop ids."""
        write_atomic(path, self._fast.to_str(pretty=True))

    def save_folder(self, folder: str | os.PathLike[str]) -> list[str]:
        """Writes the files from which transformers, and `load_tokenizer`, make this tokenizer; returns their names."""
        folder = Path(folder)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: self.tokens.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
            "add_bos_token": bool(self.start),
            "clean_up_tokenization_spaces": False,
        }
        stops = self.stop_ids[0] if len(self.stop_ids) == 1 else list(self.stop_ids)
        generation = {"bos_token_id": self.bos_id, "eos_token_id": stops, "pad_token_id": self.pad_id}
        files = {
            "tokenizer.json": self._fast.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=1, ensure_ascii=False),
            "generation_config.json": json.dumps(generation, indent=1),
        }
        if self.chat_template is not None:
            files["chat_template.jinja"] = self.chat_template
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "chat_template.jinja").unlink(missing_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, content)
        return list(files)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads the tokenizer of a model folder, or a tokenizer.json, SentencePiece .model or llama2.c .bin file.

    A file under its usual name (tokenizer.json, tokenizer.model, vocab.json) is read with the config files beside it.
    Raises UserError where there is none or it cannot be read.
    """
    return Tokenizer(read_parts(Path(path)))


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
    fast.encode_special_tokens = True  # "<eos>" inside a user's text is seven characters, never the special id
    put_first(fast, BOS)
    tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    return Tokenizer(Parts(fast, tokens, id_of(fast, BOS), (id_of(fast, EOS),), None))


def byte_tokenizer() -> Tokenizer:
    """One id a byte, and the three specials."""
    return train_bpe([], 256 + 3)


def _byte_level() -> tokenizers.Tokenizer:
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return fast
