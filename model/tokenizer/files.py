"""The files that make up a published model's tokenizer, read into one `tokenizers` object and its special ids."""

import base64
import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, pre_tokenizers, processors

from limbeck.model.errors import UserError, nearest
from limbeck.model.tokenizer.formats import Converted, check_charsmap, from_gpt2, from_llama2c, from_sentencepiece

_JSON, _MODEL, _VOCAB, _MERGES = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
VOCABULARIES = (_JSON, _MODEL, _VOCAB)  # a folder with one of these has a tokenizer
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
# What the special tokens of published models are called, for a tokenizer.json that comes alone.
_USUAL = {
    "bos_token": ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos_token": ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
}
_MOST = 2**24  # ids; the largest published vocabularies have 2**18
_GUARD = "(?#special tokens stay text)"


class Parts(NamedTuple):
    """A tokenizer as it comes from files; `stop_ids` begins with the EOS."""

    fast: tokenizers.Tokenizer
    tokens: dict[str, str]
    bos_id: int
    stop_ids: tuple[int, ...]
    chat_template: str | None


def read_parts(path: Path) -> Parts:
    """Reads a folder or a file; raises UserError where there is no tokenizer, or one that cannot be read."""
    file = _file_of(path)
    beside = file.parent if path.is_dir() or file.name in (_JSON, _MODEL, _VOCAB) else None
    config = _json(beside, "tokenizer_config.json")
    found = _vocabulary(file, config)
    fast = found.fast
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True  # "<eos>" inside a user's text is five characters, never the special id
    with _legible(file):
        if max(fast.get_vocab(with_added_tokens=True).values(), default=_MOST) >= _MOST:
            raise UserError(f"{file} has no tokens, or ids beyond {_MOST}: not a vocabulary")
        _add_tokens(fast, config, _json(beside, "added_tokens.json") if file.name != _JSON else {}, file)
        tokens = _special_tokens(found, config, beside, file)
        for token in tokens.values():
            if not _is_special(fast, token):
                fast.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        wanted = config.get("add_bos_token")
        if fast.post_processor is None and "bos_token" in tokens and (found.add_bos if wanted is None else wanted):
            put_first(fast, tokens["bos_token"])
        _keep_special_spellings_text(fast)
        start = leading_ids(fast)
    generation = [_json(beside, "generation_config.json"), _json(beside, "config.json")]
    stops = [id_of(fast, tokens["eos_token"])] if "eos_token" in tokens else []
    stops += [index for settings in generation for index in _ids(fast, settings.get("eos_token_id"))]
    if not stops:
        raise UserError(
            f"{file} names no end-of-text token: put one as eos_token into a tokenizer_config.json beside it"
        )
    starts = [id_of(fast, tokens["bos_token"])] if "bos_token" in tokens else list(start)
    starts += [index for settings in generation for index in _ids(fast, settings.get("bos_token_id"))]
    bos_id = [*starts, *stops][0]
    return Parts(fast, tokens, bos_id, tuple(dict.fromkeys(stops)), _chat_template(beside, config))


def id_of(fast: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that is in the vocabulary."""
    index = fast.token_to_id(token)
    assert index is not None, token
    return index


def leading_ids(fast: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What the tokenizer's own rules put before a text."""
    for text in ("a", "1", "\n", "ا", ""):
        plain, full = (fast.encode(text, add_special_tokens=special).ids for special in (False, True))
        if plain:
            break
    at = next((at for at in range(len(full)) if full[at : at + len(plain)] == plain), 0)
    return tuple(full[:at] if plain else full)


def put_first(fast: tokenizers.Tokenizer, token: str) -> None:
    """Makes the tokenizer's own rules put `token` before each text."""
    single = [f"{token}:0", "$A:0"]
    pair = [*single, f"{token}:1", "$B:1"]
    fast.post_processor = processors.TemplateProcessing(single, pair, [(token, id_of(fast, token))])


def _file_of(path: Path) -> Path:
    """The file in which the vocabulary is."""
    if path.is_dir():
        for name in VOCABULARIES:
            if (path / name).is_file() and (name != _VOCAB or (path / _MERGES).is_file()):
                return path / name
        raise UserError(f"no tokenizer at {path}: looked for {_JSON}, {_MODEL}, and {_VOCAB} with {_MERGES}")
    if not path.is_file():
        raise UserError(f"no tokenizer at {path}: name a model folder, or a {_JSON}, .model or llama2.c .bin file")
    return path


def _vocabulary(file: Path, config: dict[str, Any]) -> Converted:
    data = _bytes(file.parent, file.name)
    if file.suffix == ".model":
        with _legible(file):
            return from_sentencepiece(data, file)
    if file.suffix == ".bin":
        with _legible(file):
            return from_llama2c(data, file)
    if file.name == _VOCAB:
        family = config.get("tokenizer_class") or "GPT2Tokenizer"
        if str(family).removesuffix("Fast") not in ("GPT2Tokenizer", "CodeGenTokenizer"):
            raise UserError(f"{file} is of a {family}: only GPT-2's rules are known; use a folder with a {_JSON}")
        vocab, merges = _json(file.parent, _VOCAB), _text(file.parent, _MERGES)
        if not vocab:
            raise UserError(f"{file} is no GPT-2 vocabulary: it is empty")
        with _legible(file):
            return from_gpt2(vocab, merges, bool(config.get("add_prefix_space")), file)
    if file.suffix != ".json":
        raise UserError(f"{file} is no tokenizer: a {_JSON}, a SentencePiece .model or a llama2.c .bin is read")
    with _legible(file):
        fast = tokenizers.Tokenizer.from_buffer(data)
        for charsmap in _charsmaps(json.loads(fast.normalizer.__getstate__()) if fast.normalizer else None):
            check_charsmap(base64.b64decode(charsmap), file)
    if config:
        return Converted(fast, {}, add_bos=False)
    tokens = {role: name for role in _USUAL for name in reversed(_USUAL[role]) if _is_special(fast, name)}
    start = [fast.id_to_token(index) for index in leading_ids(fast)]
    if start:
        tokens["bos_token"] = start[0]
    # Our own tokenizers, before they said so themselves.
    return Converted(fast, tokens, add_bos=tokens.get("bos_token") == "<bos>")


def _charsmaps(state: Any) -> Iterator[str]:
    if isinstance(state, dict):
        state = [state.get("precompiled_charsmap"), *state.get("normalizers", [])]
    for part in state or []:
        if isinstance(part, str):
            yield part
        elif part:
            yield from _charsmaps(part)


def _add_tokens(fast: tokenizers.Tokenizer, config: dict[str, Any], added: dict[str, Any], file: Path) -> None:
    """Adds the tokens that the config lists on top of the vocabulary, at the ids it says."""
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise UserError(f"{file.parent / 'tokenizer_config.json'}: added_tokens_decoder is no table of ids")
    tokens = [(str(index), {"content": content, "special": False}) for content, index in added.items()]
    known = {token.content for token in fast.get_added_tokens_decoder().values()}
    entries = sorted([*listed.items(), *tokens], key=lambda entry: int(entry[0]) if entry[0].isdecimal() else -1)
    for index, entry in entries:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not index.isdecimal() or not content or not isinstance(content, str):
            raise UserError(f"{file.parent}: {index!r} in the list of added tokens is no id with a token")
        if content not in known:
            flags = {
                name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in entry
            }
            special = bool(entry.get("special"))
            add = fast.add_special_tokens if special else fast.add_tokens
            add([AddedToken(content, special=special, **flags)])
            known.add(content)
        if fast.token_to_id(content) != int(index):
            raise UserError(
                f"{file.parent} gives {content!r} the id {index}, its vocabulary {fast.token_to_id(content)}"
            )


def _special_tokens(found: Converted, config: dict[str, Any], beside: Path | None, file: Path) -> dict[str, str]:
    """The spellings of BOS, EOS, pad and unknown, from the first file that speaks of them."""
    tokens = {}
    named = _json(beside, "special_tokens_map.json")
    vocabulary = None
    for role in _ROLES:
        value = next((place[role] for place in (config, named, found.tokens) if role in place), None)
        token = value.get("content") if isinstance(value, dict) else value
        if not token:
            continue
        if not isinstance(token, str) or found.fast.token_to_id(token) is None:
            vocabulary = vocabulary or list(found.fast.get_vocab())
            hint = (
                nearest(token, [name for name in vocabulary if name[:1] == token[:1]]) if isinstance(token, str) else ""
            )
            raise UserError(f"{file.parent}: the {role} is {token!r}, which {file.name} lacks{hint}")
        tokens[role] = token
    return tokens


def _is_special(fast: tokenizers.Tokenizer, token: str) -> bool:
    return any(added.special and added.content == token for added in fast.get_added_tokens_decoder().values())


def _keep_special_spellings_text(fast: tokenizers.Tokenizer) -> None:
    """Cuts texts inside what the model itself would read as a special token: a Unigram model finds any piece."""

    def plain(text: str) -> list[int]:
        return fast.encode(text, add_special_tokens=False).ids

    def cut(name: str) -> str:
        at = min(range(1, len(name)), key=lambda at: len(plain(name[:at])) + len(plain(name[at:])))
        return f"{re.escape(name[:at])}(?={re.escape(name[at:])})"

    specials = fast.get_added_tokens_decoder().items()
    read = [t.content for index, t in specials if t.special and len(t.content) > 1 and index in plain(t.content)]
    before = fast.pre_tokenizer
    if read and not (before is not None and _GUARD.encode() in before.__getstate__()):
        pattern = tokenizers.Regex(f"{_GUARD}(?:{'|'.join(map(cut, sorted(read)))})")
        guard = pre_tokenizers.Split(pattern, "merged_with_previous")
        fast.pre_tokenizer = guard if before is None else pre_tokenizers.Sequence([before, guard])


def _ids(fast: tokenizers.Tokenizer, value: Any) -> list[int]:
    """The ids of a config's field, an int or a list; those that no token has, such as -1, end nothing."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if type(v) is int and 0 <= v < _MOST and fast.id_to_token(v) is not None]


def _chat_template(beside: Path | None, config: dict[str, Any]) -> str | None:
    if beside is not None and (beside / "chat_template.jinja").exists():
        return _text(beside, "chat_template.jinja")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise UserError(f"{beside}/tokenizer_config.json: its chat_template is neither text nor a list of named ones")
    return template


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where there is no such file."""
    if folder is None or not (folder / name).exists():
        return {}
    try:
        content = json.loads(_text(folder, name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{folder / name} does not hold a JSON object")
    return content


def _text(folder: Path, name: str) -> str:
    try:
        return _bytes(folder, name).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / name} is no UTF-8 text: {error}") from error


def _bytes(folder: Path, name: str) -> bytes:
    """A file's content; a link may lead no further than its folder, or a hub cache's own `blobs`."""
    home, target = folder.resolve(), (folder / name).resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(target.is_relative_to(place) for place in homes):
        raise UserError(f"{folder / name} is a link that leaves its folder: put the file itself there")
    try:
        return target.read_bytes()
    except OSError as error:
        raise UserError(f"{folder / name} cannot be read: {os.strerror(error.errno or 0)}") from error


@contextlib.contextmanager
def _legible(file: Path) -> Iterator[None]:
    """Turns what the library says of a file, a bare Exception or a panic, into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        kind = file.name if file.name in (_JSON, _VOCAB) else "tokenizer"
        raise UserError(f"{file} is no {kind}: {(str(error).splitlines() or [''])[0]}") from error
