"""Published vocabularies as objects of the `tokenizers` library: SentencePiece models, llama2.c's and GPT-2's files.

SentencePiece: Kudo and Richardson 2018, arXiv 1808.06226. The ids are those of its own library but for three corners
that `tokenizers` cannot say: different pieces of equal score are merged by id, not from the left; two cuts of equal
probability are a draw that float32 and float64 decide differently; and a text that is nothing but one user-defined
symbol gets no dummy prefix.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Regex as Pattern

from limbeck.model.errors import UserError

_SPACE = "▁"  # how SentencePiece spells a space inside a piece
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_LONGEST = 512  # characters of a piece; the published longest have 32


class Converted(NamedTuple):
    """A tokenizer without its post-processor, the spellings of its special tokens, and if a BOS stands before text."""

    fast: tokenizers.Tokenizer
    tokens: dict[str, str]
    add_bos: bool


class Pieces(NamedTuple):
    """What a SentencePiece vocabulary says: (spelling, score, kind) by id, and how text is normalised."""

    pieces: list[tuple[str, float, int]]
    unigram: bool
    byte_fallback: bool
    dummy_prefix: bool
    remove_extra_spaces: bool
    charsmap: bytes
    rule: str


def from_sentencepiece(data: bytes, place: object) -> Converted:
    """Converts a SentencePiece .model; raises UserError for what is none, and for a kind that is not known."""
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    if data[:4096].isascii() and b" 0\n" in data[:64]:
        raise UserError(f"{place} is no SentencePiece model but a tiktoken vocabulary: use the model's tokenizer.json")
    proto: Any = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise UserError(f"{place} is no SentencePiece model: {error}") from error
    trainer, normal = proto.trainer_spec, proto.normalizer_spec
    if not proto.pieces:
        raise UserError(f"{place} is no SentencePiece model: it has no pieces")
    if trainer.model_type not in (1, 2):
        raise UserError(
            f"{place} has SentencePiece model type {trainer.model_type}: only 1, Unigram, and 2, BPE, are read"
        )
    if trainer.treat_whitespace_as_suffix or not normal.escape_whitespaces:
        raise UserError(f"{place} writes spaces as suffixes or not at all: only SentencePiece's default, ▁, is read")
    pieces = Pieces(
        [(piece.piece, piece.score, piece.type) for piece in proto.pieces],
        unigram=trainer.model_type == 1,
        byte_fallback=trainer.byte_fallback,
        dummy_prefix=normal.add_dummy_prefix,
        remove_extra_spaces=normal.remove_extra_whitespaces,
        charsmap=normal.precompiled_charsmap,
        rule=normal.name,
    )
    control = {spelling for spelling, _, kind in pieces.pieces if kind in (_CONTROL, _UNKNOWN)}
    named = {
        "bos_token": trainer.bos_piece,
        "eos_token": trainer.eos_piece,
        "pad_token": trainer.pad_piece,
        "unk_token": trainer.unk_piece,
    }
    tokens = {name: piece for name, piece in named.items() if piece in control}
    return Converted(_build(pieces, place), tokens, add_bos="bos_token" in tokens)


def from_llama2c(data: bytes, place: object) -> Converted:
    """Converts llama2.c's tokenizer file: int32 longest, then float32 score, int32 length and bytes of each token.

    What ends a text is BOS: nothing else stands between the texts that its models learned from, and its run.c stops
    there.
    """
    pieces, at = [], 4
    while at < len(data):
        if at + 8 > len(data):
            raise UserError(f"{place} ends inside token {len(pieces)}: copy the file again")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 < length <= len(data) - at:
            raise UserError(f"{place}: token {len(pieces)} says it has {length} bytes, {len(data) - at} are left")
        try:
            spelling = data[at : at + length].decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: token {len(pieces)} is no UTF-8: this is no llama2.c tokenizer") from error
        pieces.append((spelling.replace(" ", _SPACE), score, _NORMAL))
        at += length
    if len(pieces) < 259 or [pieces[3 + i][0] for i in range(256)] != [f"<0x{i:02X}>" for i in range(256)]:
        raise UserError(f"{place} is no llama2.c tokenizer: ids 3 to 258 are not the bytes <0x00> to <0xFF>")
    specials = [("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL)]
    pieces = specials + [(name, 0.0, _BYTE) for name, _, _ in pieces[3:259]] + pieces[259:]
    fast = _build(Pieces(pieces, False, True, True, False, b"", "identity"), place)
    return Converted(fast, {"bos_token": "<s>", "eos_token": "<s>", "unk_token": "<unk>"}, add_bos=True)


def from_gpt2(vocab: dict[str, Any], merges: str, add_prefix_space: bool, place: object) -> Converted:
    """Converts GPT-2's byte-level vocab.json and merges.txt."""
    if not all(isinstance(index, int) and 0 <= index < 2**31 for index in vocab.values()):
        raise UserError(f"{place} is no GPT-2 vocabulary: it must give an id to each token")
    lines = [line for line in merges.split("\n") if line.strip() and not line.startswith("#version")]
    pairs = []
    for number, line in enumerate(lines, 1):
        left, _, right = line.rstrip("\r").partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise UserError(f"{place}: merge {number}, {line!r}, is not of two tokens of the vocabulary")
        pairs.append((left, right))
    fast = tokenizers.Tokenizer(models.BPE(vocab, pairs))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    fast.decoder = decoders.ByteLevel()
    tokens = {"eos_token": "<|endoftext|>"} if "<|endoftext|>" in vocab else {}
    return Converted(fast, tokens, add_bos=False)


def check_charsmap(charsmap: bytes, place: object) -> None:
    """Raises UserError unless every path through a normaliser's map stays inside of it: the library would crash.

    The map is the length of a double-array trie (Yata's darts-clone), the trie as uint32 units, and the replacement
    strings, each ended by a zero byte, at the offsets that the trie's values give.
    """
    broken = UserError(f"{place}: its character map is torn or was altered: copy the file again")
    size = int.from_bytes(charsmap[:4], "little")
    if not 4 <= size <= len(charsmap) - 4 or size % 4:
        raise broken
    units, strings = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64), charsmap[4 + size :]
    try:
        strings.decode()
    except UnicodeDecodeError as error:
        raise broken from error
    offsets = (units >> 10) << ((units & 512) >> 6)
    seen, letters = np.zeros(len(units), bool), np.arange(1, 256)
    nodes = np.zeros(1, np.int64)
    while nodes.size:
        seen[nodes] = True
        bases = nodes ^ offsets[nodes]
        children = bases[:, None] ^ letters
        leaves = bases[(units[nodes] >> 8) & 1 == 1]
        if max(children.max(initial=0), leaves.max(initial=0)) >= len(units):
            raise broken
        for value in (units[leaves] & 0x7FFFFFFF).tolist():
            if value >= len(strings) or strings[value] & 0xC0 == 0x80:
                raise broken
        matches = units[children] & (0x80000000 | 0xFF) == letters
        nodes = np.unique(children[matches])
        nodes = nodes[~seen[nodes]]


def _build(source: Pieces, place: object) -> tokenizers.Tokenizer:
    ids = {spelling: index for index, (spelling, _, _) in enumerate(source.pieces)}
    unknown = [index for index, (_, _, kind) in enumerate(source.pieces) if kind == _UNKNOWN]
    if len(ids) < len(source.pieces):
        twice = next(name for index, (name, _, _) in enumerate(source.pieces) if ids[name] != index)
        raise UserError(f"{place} has the piece {twice!r} twice: not a vocabulary")
    if len(unknown) != 1 or any(not np.isfinite(score) for _, score, _ in source.pieces):
        raise UserError(f"{place} is no vocabulary: it needs one unknown piece and finite scores")
    if any(kind == _UNUSED for _, _, kind in source.pieces):
        raise UserError(f"{place} has pieces that are marked unused: such a vocabulary is not read")
    if source.byte_fallback and any(f"<0x{i:02X}>" not in ids for i in range(256)):
        raise UserError(f"{place} falls back on bytes and lacks some of <0x00> to <0xFF>")
    if source.unigram:
        # The float32's few digits: of more, the library's JSON reader gets the last one wrong.
        vocab = [(spelling, float(str(np.float32(score)))) for spelling, score, _ in source.pieces]
        model = models.Unigram(vocab, unknown[0], source.byte_fallback)
    else:
        unk = source.pieces[unknown[0]][0]
        merges = _merges(source.pieces, place)
        model = models.BPE(ids, merges, unk_token=unk, fuse_unk=True, byte_fallback=source.byte_fallback)
    fast = tokenizers.Tokenizer(model)
    symbols = [spelling for spelling, _, kind in source.pieces if kind == _USER_DEFINED]
    steps = _normalisers(source, symbols, place)
    fast.normalizer = normalizers.Sequence(steps)
    if source.unigram and source.byte_fallback:
        # A Unigram model finds any piece in a text, "<0x41>" too, unless the text is cut inside of it.
        fast.pre_tokenizer = pre_tokenizers.Split(Pattern("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous")
    stripped = 2**31 if source.remove_extra_spaces else int(source.dummy_prefix)
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*back, decoders.Strip(" ", stripped, 0)] if stripped else back)
    controls = [spelling for spelling, _, kind in source.pieces if kind in (_CONTROL, _UNKNOWN)]
    fast.add_special_tokens([AddedToken(spelling, normalized=False, special=True) for spelling in controls])
    fast.add_tokens([AddedToken(spelling, normalized=True, special=False) for spelling in symbols])
    return fast


def _merges(pieces: list[tuple[str, float, int]], place: object) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, the best score first."""
    parts = {spelling for spelling, _, kind in pieces if kind in (_NORMAL, _USER_DEFINED)}
    normal = [(spelling, score) for spelling, score, kind in pieces if kind == _NORMAL]
    if any(len(spelling) > _LONGEST for spelling, _ in normal):
        raise UserError(f"{place} has a piece of more than {_LONGEST} characters: not a vocabulary")
    normal.sort(key=lambda piece: -piece[1])
    splits = ((word[:cut], word[cut:]) for word, _ in normal for cut in range(1, len(word)))
    return [(left, right) for left, right in splits if left in parts and right in parts]


def _normalisers(source: Pieces, symbols: list[str], place: object) -> list[normalizers.Normalizer]:
    """What SentencePiece does to a text before it looks for pieces, as steps that each consume what they replace."""
    steps: list[normalizers.Normalizer] = []
    if source.charsmap:
        check_charsmap(source.charsmap, place)
        # The library drops an accent that follows a character of the map. After NFKC and lower case none is left to
        # drop; the two characters on which SentencePiece's rules differ from these wait as ones that no text has.
        if source.rule in ("nfkc", "nfkc_cf"):
            steps.append(normalizers.NFKC())
        elif source.rule in ("nmt_nfkc", "nmt_nfkc_cf"):
            steps += [normalizers.Replace("～", "\ufdd0"), normalizers.NFKC(), normalizers.Replace("\ufdd0", "～")]
        if source.rule in ("nfkc_cf", "nmt_nfkc_cf"):
            steps += [normalizers.Replace("İ", "\ufdd1"), normalizers.Lowercase(), normalizers.Replace("\ufdd1", "İ")]
        steps.append(normalizers.Precompiled(source.charsmap))
    if source.remove_extra_spaces:
        steps += [normalizers.Replace(Pattern(rf"\A +|[ {_SPACE}]+\z"), ""), normalizers.Replace(Pattern(" {2,}"), " ")]
    if symbols and steps:
        before = normalizers.Sequence(steps)
        for symbol in symbols:
            if before.normalize_str(symbol) != symbol:
                raise UserError(f"{place}: its normaliser rewrites its own symbol {symbol!r}: not read")
    steps.append(normalizers.Replace(" ", _SPACE))
    if source.dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
        # The library normalises the symbols too before it looks for them, and must find them as they are.
        steps += [normalizers.Replace(Pattern(rf"\A{_SPACE}{_quoted(name)}\z"), name) for name in symbols]
    return steps


def _quoted(text: str) -> str:
    return "".join(f"\\x{{{ord(letter):x}}}" for letter in text)
