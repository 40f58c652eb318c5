"""Tokens as bytes: what a tokenizer makes of a text has the bytes of that text, or is refused."""

import io

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models

from limbeck.distill.rows.token_bytes import NO_BYTE, added_spaces, ends, first_byte_V, token_bytes
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from limbeck.model.tokenizer.files import Parts

LEMON = "The lemon is a hesperidium.\nSo is the lime."
TEXTS = [LEMON, "گلابی میوه است", "👩‍👩‍👧 é e\u0301 ½", "  two spaces\t\n\n end "]
BPE, PREFIXED = train_bpe(TEXTS * 4, 330), train_bpe(TEXTS * 4, 330, line_prefix=True)


def sentencepiece_model(folder, **options):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=written,
        minloglevel=2,
        hard_vocab_limit=False,
        vocab_size=330,
        byte_fallback=True,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pieces(request, tmp_path_factory):
    """SentencePiece's, which puts a space before a text and changes nothing else of it."""
    folder = tmp_path_factory.mktemp(request.param)
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return sentencepiece_model(folder, model_type=request.param, **plain)


def read(tokenizer, text):
    bytes_V = token_bytes(tokenizer)
    return [bytes_V[index] for index in tokenizer.encode(text)]


def check(tokenizer, text, spaces):
    tokens = read(tokenizer, text)
    added = added_spaces(tokens, text)
    joined = b"".join(tokens)
    assert bytes(byte for byte, put in zip(joined, added, strict=True) if not put) == text.encode()
    assert {joined[place] for place in np.flatnonzero(added)} <= {ord(" ")}
    assert added.sum() == spaces
    assert ends(tokens, added)[-1:] in ([], [(len(text.encode()), 0)])


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.sampled_from(TEXTS), st.text()))
def test_a_byte_level_tokenizer_s_tokens_are_the_text(text):
    check(BPE, text, 0)
    check(byte_tokenizer(), text, 0)


@pytest.mark.parametrize("text", TEXTS)
def test_the_space_that_sentencepiece_puts_first_is_found(pieces, text):
    check(pieces, text, 1)


@pytest.mark.parametrize(("text", "spaces"), [("a\nb", 2), (" a\nb", 1), ("\na", 1), ("a\n\n\nb c", 2), ("گل\nگل", 2)])
def test_the_spaces_before_lines_are_found(text, spaces):
    check(PREFIXED, text, spaces)


def test_ends_count_bytes_of_the_text_and_say_whether_an_added_space_comes_next():
    tokens = [b"", b" ", b"a", b"\n", b" \xd9", b"\x84", b""]
    added = added_spaces(tokens, "a\nل")
    assert ends(tokens, added) == [(0, 1), (0, 0), (1, 0), (2, 1), (3, 0), (4, 0), (4, 0)]
    assert ends([b" ", b" ", b"a"], added_spaces([b" ", b" ", b"a"], " a")) == [(0, 0), (1, 0), (2, 0)]
    assert ends([b"", b""], added_spaces([b"", b""], "")) == [(0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("tokens", "text", "said"),
    [
        ([b"fi", b"g"], "\ufb01g", r"'ﬁg' at byte 0 of 4 becomes 'fig'"),
        ([b"a", b""], "a\u0663", r"'٣' at byte 1 of 3 becomes the end"),
        ([b"a", b"b"], "a", r"the end at byte 1 of 1 becomes 'b'"),
        ([b"a"], "a b", r"' b' at byte 1 of 3 becomes the end"),
    ],
)
def test_what_is_not_the_text_is_refused_with_its_place(tokens, text, said):
    with pytest.raises(UserError, match=said):
        added_spaces(tokens, text)


def test_a_normaliser_that_rewrites_is_found_out(tmp_path):
    rewriting = sentencepiece_model(tmp_path, model_type="bpe", normalization_rule_name="nfkc")
    check(rewriting, "The lime.", 1)
    with pytest.raises(UserError, match="'½' at byte 0 of 2 becomes '1⁄2'"):
        added_spaces(read(rewriting, "½"), "½")


def test_first_bytes():
    tokenizer = byte_tokenizer()
    first_V = first_byte_V(tokenizer)
    assert first_V.dtype == np.int32 and sorted(first_V.tolist()) == [*range(256), *[NO_BYTE] * 3]
    for text in ("plum", "گل 👩", "\n\t\x00\x7f"):
        assert first_V[tokenizer.encode(text)].tolist() == list(text.encode())
    for name in tokenizer.special_ids.values():
        assert first_V[name] == NO_BYTE
    for text in TEXTS:
        assert first_byte_V(BPE)[BPE.encode(text)].tolist() == [token[0] for token in read(BPE, text)]


def test_first_bytes_of_sentencepiece(pieces):
    first_V = first_byte_V(pieces)
    assert first_V[pieces.encode("lemon")[0]] == ord(" ")  # the space before a word is its token's first byte
    assert all(first_V[pieces._fast.token_to_id(f"<0x{byte:02X}>")] == byte for byte in range(256))
    assert all(first_V[index] == NO_BYTE for index in pieces.special_ids.values())


def test_added_tokens_are_their_text_unused_ids_have_none():
    fast = tokenizers.Tokenizer.from_str(BPE._fast.to_str())
    fast.add_tokens([AddedToken("éü", normalized=False)])  # letters with which bytes are spelled too
    tokenizer = Tokenizer(Parts(fast, dict(BPE.tokens), BPE.bos_id, BPE.stop_ids, None))
    check(tokenizer, "an éü e", 0)
    assert len(tokenizer.encode("éü")) == 1 and first_byte_V(tokenizer)[-1] == "é".encode()[0]
    tokenizer.vocab_size += 2
    assert first_byte_V(tokenizer)[-2:].tolist() == [NO_BYTE] * 2


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.BPEDecoder(), None])
def test_tokens_that_are_no_bytes_are_refused(decoder):
    fast = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "[SEP]": 3}, unk_token="[UNK]"))
    fast.decoder = decoder
    with pytest.raises(UserError, match=f"decoder {type(decoder).__name__ if decoder else 'none'}: its tokens are not"):
        token_bytes(Tokenizer(Parts(fast, {}, 3, (3,), None)))


@pytest.mark.shared
def test_published_tokenizers(shared_data):
    for name, spaces in (("stories260k/tok512.bin", 1), ("gpt2_tokenizer/tokenizer.json", 0)):
        tokenizer = load_tokenizer(shared_data / name)
        for text in TEXTS:
            check(tokenizer, text, spaces)
