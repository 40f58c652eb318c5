"""Any text has ids and comes back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer, load_tokenizer, train_bpe

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
