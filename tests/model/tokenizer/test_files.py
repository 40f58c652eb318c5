"""A folder's files say which tokens are special, what stands before a text and what ends it, and its template."""

import json
import os

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import load_tokenizer


def published(folder, tokenizer_config=None, post_processor=None, **files):
    """A folder as they are published: a byte-level tokenizer.json with a hole in its ids, and config files."""
    vocab = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = tokenizers.Tokenizer(models.BPE(vocab, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True) for name in ("<|text|>", "<|end|>", "<|turn|>")])
    fast.enable_truncation(3)
    fast.enable_padding(length=5)
    if post_processor:
        fast.post_processor = post_processor
    fast.save(str(folder / "tokenizer.json"))
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


TEMPLATE = processors.TemplateProcessing(["<|text|>", "$A", "<|end|>"], None, [("<|text|>", 256), ("<|end|>", 257)])
NAMED = {"bos_token": "<|text|>", "eos_token": {"content": "<|end|>", "__type": "AddedToken"}}


@pytest.mark.parametrize(
    "config, post_processor, start",
    [
        (NAMED, None, ()),
        (NAMED | {"add_bos_token": False}, None, ()),
        (NAMED | {"add_bos_token": True}, None, (256,)),
        (NAMED | {"add_bos_token": False}, TEMPLATE, (256,)),  # what the file really does, as transformers 5 has it
        (NAMED | {"add_bos_token": True}, processors.ByteLevel(), ()),
        ({"eos_token": "<|end|>", "bos_token": None}, None, ()),
    ],
)
def test_start_is_what_the_rules_put_before_a_text(tmp_path, config, post_processor, start):
    tokenizer = load_tokenizer(published(tmp_path, config, post_processor))
    assert tokenizer.prompt("") == (list(start) or [tokenizer.bos_id])
    assert tokenizer.start == start
    assert tokenizer.bos_id == (256 if config["bos_token"] else 257)
    assert tokenizer.prompt("<|text|> longer than three").count(256) == len(start)
    assert len(tokenizer.encode("longer than three")) == 17  # neither cut nor padded, whatever the file says
    assert tokenizer.vocab_size == 259
    tokenizer.save_folder(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").digest == tokenizer.digest


def test_stop_ids_come_from_every_file(tmp_path):
    files = {"generation_config": {"eos_token_id": [258, 257]}, "config": {"eos_token_id": -1, "bos_token_id": 256}}
    tokenizer = load_tokenizer(published(tmp_path, {"eos_token": "<|end|>", "pad_token": "<|turn|>"}, **files))
    assert tokenizer.stop_ids == (257, 258) and tokenizer.eos_id == 257 and tokenizer.pad_id == 258
    assert tokenizer.bos_id == 256 and tokenizer.start == ()
    tokenizer.save_folder(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").digest == tokenizer.digest
    only = published(tmp_path, {}, config={"eos_token_id": 258})
    (only / "generation_config.json").unlink()
    assert load_tokenizer(only).stop_ids == (258,)
    mapped = published(tmp_path, {"bos_token": None}, special_tokens_map=NAMED)
    assert load_tokenizer(mapped).eos_id == 257 and "bos_token" not in load_tokenizer(mapped).tokens


def test_added_tokens_stand_where_the_config_says(tmp_path):
    added = {"259": {"content": "<think>", "special": False}, "257": {"content": "<|end|>", "special": True}}
    tokenizer = load_tokenizer(published(tmp_path, NAMED | {"added_tokens_decoder": added}))
    assert tokenizer.encode("<think>") == [259] and tokenizer.decode([259, 257]) == "<think>"
    added["300"] = {"content": "<far>"}
    with pytest.raises(UserError, match="gives '<far>' the id 300, its vocabulary 260"):
        load_tokenizer(published(tmp_path, NAMED | {"added_tokens_decoder": added}))


def test_a_template_is_found_in_each_of_its_places(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d گل"}]
    assert load_tokenizer(published(tmp_path, NAMED | {"chat_template": "c"})).chat_template == "c"
    assert load_tokenizer(published(tmp_path, NAMED | {"chat_template": named})).chat_template == "d گل"
    (tmp_path / "chat_template.jinja").write_text("j", encoding="utf-8")
    assert load_tokenizer(tmp_path).chat_template == "j"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="chat_template is neither"):
        load_tokenizer(published(tmp_path, NAMED | {"chat_template": 3}))


def test_special_tokens_in_text_stay_text_for_a_model_that_finds_any_piece(tmp_path):
    letters = [(letter, -5.0) for letter in "<>/sabc"]
    fast = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *letters], 0))
    fast.add_special_tokens(["</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert 1 not in tokenizer.encode("a</s>b") and 0 not in tokenizer.encode("a</s>b")
    assert tokenizer.parse("a</s>").ids[-1] == 1
    tokenizer.save_folder(tmp_path)
    assert load_tokenizer(tmp_path).digest == tokenizer.digest


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "no tokenizer at .*looked for tokenizer.json, tokenizer.model, and vocab.json with merges.txt"),
        ({"vocab.json": b"{}"}, "no tokenizer at"),
        ({"tokenizer.json": b"{"}, "tokenizer.json is no tokenizer.json"),
        ({"tokenizer.json": b"\xff"}, "tokenizer.json is no tokenizer.json"),
        ({"tokenizer.model": b""}, "tokenizer.model is no SentencePiece model: it has no pieces"),
        ({"tokenizer.model": b"\xff\xff\xff\xff\x7f"}, "tokenizer.model is no SentencePiece model"),
        ({"tokenizer.model": b"IQ== 0\nIg== 1\n"}, "tiktoken"),
        ({"vocab.json": b"{}", "merges.txt": b""}, "vocab.json is no GPT-2 vocabulary"),
        ({"vocab.json": b"[" * 10**5, "merges.txt": b""}, "vocab.json is no JSON"),
        ({"vocab.json": b'{"a": -1}', "merges.txt": b""}, "must give an id"),
        ({"vocab.json": b'{"a": 2000000000}', "merges.txt": b""}, "ids beyond"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"a b"}, "merge 1, 'a b'"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b""}, "names no end-of-text token"),
        (
            {"vocab.json": b'{"a": 0}', "merges.txt": b"", "tokenizer_config.json": b'{"tokenizer_class":"X"}'},
            "is of a X",
        ),
        ({"vocab.json": b'{"ab": 0}', "merges.txt": b"", "special_tokens_map.json": b'{"eos_token":"aba"}'}, "'ab'"),
        (
            {"vocab.json": b'{"a": 0}', "merges.txt": b"", "tokenizer_config.json": b'{"eos_token":"a"'},
            "config.json is no",
        ),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"", "tokenizer_config.json": b"[]"}, "does not hold a JSON object"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"", "added_tokens.json": b'{"b": "x"}'}, "no id with a token"),
    ],
)
def test_bad_folders(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_links_that_leave_the_folder(tmp_path):
    (tmp_path / "model").mkdir()
    published(tmp_path, NAMED)
    os.symlink(tmp_path / "tokenizer.json", tmp_path / "model" / "tokenizer.json")
    with pytest.raises(UserError, match="is a link that leaves its folder"):
        load_tokenizer(tmp_path / "model")
    hub = tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots" / "abc").mkdir(parents=True)
    os.rename(tmp_path / "tokenizer.json", hub / "blobs" / "1")
    os.rename(tmp_path / "tokenizer_config.json", hub / "snapshots" / "abc" / "tokenizer_config.json")
    os.symlink("../../blobs/1", hub / "snapshots" / "abc" / "tokenizer.json")
    assert load_tokenizer(hub / "snapshots" / "abc").eos_id == 257
