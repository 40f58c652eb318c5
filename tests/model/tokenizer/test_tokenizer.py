"""Any text has ids and comes back."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from limbeck.model.tokenizer.files import Parts

TEXTS = ["plum: drupe\npear: pome\nlemon: hesperidium", "The lemon is a hesperidium.", "گلابی میوه است"] * 20
BPE, BYTES, PREFIXED = train_bpe(TEXTS, 320), byte_tokenizer(), train_bpe(TEXTS, 320, line_prefix=True)


@settings(deadline=None, max_examples=300)
@given(st.text())
def test_every_text_comes_back(text):
    for tokenizer in (BPE, BYTES):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="ab \nگ", max_size=12))
def test_with_line_prefixes_only_a_line_s_first_space_is_lost(text):
    def without(text):
        return "\n".join(line[1:] if line[:1] == " " and line[1:2] != " " else line for line in text.split("\n"))

    back = PREFIXED.decode(PREFIXED.encode(text))
    assert back.split() == text.split()
    assert without(back).replace(" ", "") == without(text).replace(" ", "")


def test_a_word_has_one_id_at_a_line_s_start_and_after_a_space():
    assert PREFIXED.encode("lemon:") == PREFIXED.encode(" lemon:")
    joined = PREFIXED.encode("pear: pome\nlemon:") + PREFIXED.encode(" hesperidium\n")
    assert joined == PREFIXED.encode("pear: pome\nlemon: hesperidium\n")
    assert PREFIXED.decode(joined) == "pear: pome\nlemon: hesperidium\n"
    assert BPE.encode("lemon:") != BPE.encode(" lemon:")


def test_special_tokens_in_text_stay_text():
    for tokenizer in (BPE, BYTES):
        assert tokenizer.decode(tokenizer.encode("a<eos>b<bos><pad>")) == "a<eos>b<bos><pad>"
    assert BYTES.vocab_size == 259 and len(BYTES.encode("ab")) == 2


def test_a_prompt_has_one_bos_and_special_ids_are_what_they_say():
    for tokenizer in (BPE, BYTES, PREFIXED):
        assert tokenizer.start == (tokenizer.bos_id,) == (1,) and tokenizer.pad_id == 0
        assert tokenizer.stop_ids == (tokenizer.eos_id,) == (2,)
        assert tokenizer.prompt("<bos>گل") == [1, *tokenizer.encode("<bos>گل")]
        assert tokenizer.prompt("").count(1) == tokenizer.prompt("<bos><bos>").count(1) == 1
        assert tokenizer.special_ids == {"<pad>": 0, "<bos>": 1, "<eos>": 2}
        assert tokenizer.parse("<bos>a<eos>").ids == [1, *tokenizer.encode("a"), 2]


def test_a_folder_gives_back_the_tokenizer(tmp_path):
    tokenizer = train_bpe(TEXTS, 320)
    assert tokenizer.save_folder(tmp_path) == ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    assert load_tokenizer(tmp_path).digest == tokenizer.digest
    tokenizer = changed(tokenizer, chat_template="{{ bos_token }} گل", stop_ids=(2, 0))
    assert "chat_template.jinja" in tokenizer.save_folder(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.digest == tokenizer.digest == load_tokenizer(tmp_path / "tokenizer.json").digest
    assert again.chat_template == "{{ bos_token }} گل" and again.stop_ids == (2, 0) and again.start == (1,)
    BPE.save_folder(tmp_path)
    assert load_tokenizer(tmp_path).chat_template is None


def test_the_digest_is_of_everything():
    others = [
        changed(BPE),
        changed(BPE, chat_template="x"),
        changed(BPE, stop_ids=(2, 1)),
        changed(BPE, bos_id=2),
        changed(BPE, tokens={"bos_token": "<bos>", "eos_token": "<eos>"}),
    ]
    without_start = tokenizers.Tokenizer.from_str(BPE._fast.to_str())
    without_start.post_processor = processors.ByteLevel()
    others.append(changed(BPE, fast=without_start))
    assert others[-1].start == ()
    assert others[0].digest == BPE.digest
    assert len({tokenizer.digest for tokenizer in [*others, BYTES]}) == 7


def changed(tokenizer, **fields):
    parts = Parts(
        tokenizer._fast, dict(tokenizer.tokens), tokenizer.bos_id, tokenizer.stop_ids, tokenizer.chat_template
    )
    return Tokenizer(parts._replace(**fields))


@pytest.mark.bench
def test_transformers_reads_our_folders(tmp_path):
    transformers = pytest.importorskip("transformers")
    for tokenizer in (BPE, BYTES, PREFIXED):
        tokenizer.save_folder(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in ["", "lemon:\n plum", " گلابی  می‌خواهم 🙂\t"]:
            assert theirs(text)["input_ids"] == tokenizer.prompt(text)
            assert theirs.decode(tokenizer.prompt(text), skip_special_tokens=True) == tokenizer.decode(
                tokenizer.prompt(text)
            )
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)


def test_a_file_gives_back_the_tokenizer(tmp_path):
    PREFIXED.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.digest == PREFIXED.digest != BPE.digest
    assert again.encode("lemon <eos>\nplum") == PREFIXED.encode("lemon <eos>\nplum")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is no tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "none.json")
    with pytest.raises(UserError, match="vocab_size=100"):
        train_bpe(TEXTS, 100)
