"""What may follow a context has the ids that it has in the whole text, whatever the tokenizer does at a join."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers

from limbeck.model.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from limbeck.model.tokenizer.files import Parts
from limbeck.model.tokenizer.join import join, joined

SENTENCES = ["plum: drupe", "pear: pome", "lemon: hesperidium", "گلابی: میوهٔ دانه‌دار", "می‌خواهم", "a b  c\n\nd"] * 20
KINDS = ("byte", "bpe", "line prefix", "reaching over", "sentencepiece bpe", "sentencepiece unigram")


def reaching_over() -> Tokenizer:
    """Every piece of ': plum' is a token, in whatever word it begins and ends."""
    vocab = {piece: i for i, piece in enumerate(["<eos>", *" :plumbae\n", ": ", ": p", "lu", "lum", "a\n"])}
    merges = [(":", " "), (": ", "p"), ("l", "u"), ("lu", "m"), ("a", "\n")]
    fast = tokenizers.Tokenizer(models.BPE(vocab, merges))
    return Tokenizer(Parts(fast, {"eos_token": "<eos>"}, 0, (0,), None))


def sentencepieces(kind: str, folder) -> Tokenizer:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=file,
        minloglevel=2,
        hard_vocab_limit=False,
        vocab_size=340,
        model_type=kind,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
    )
    (folder / "tokenizer.model").write_bytes(file.getvalue())
    return load_tokenizer(folder / "tokenizer.model")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    if request.param.startswith("sentencepiece"):
        return sentencepieces(request.param.split()[1], tmp_path_factory.mktemp("spm"))
    if request.param == "reaching over":
        return reaching_over()
    return byte_tokenizer() if request.param == "byte" else train_bpe(SENTENCES, 320, request.param == "line prefix")


PIECES = [*" :\nplumabe,ىآ", "plum", "pear: pome\n", " hesperidium", "می‌خواهم", "\u200c", "e\u0301", "🙂", "  ", "\n\n"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(TEXT, st.integers(0, 60), st.lists(TEXT.filter(bool), min_size=1, max_size=3))
def test_the_two_are_the_whole(tokenizer, end, times, continuations):
    for context in (end, "pear: pome\nlemon plum: " * times + end):
        ids, following = join(tokenizer, context, continuations)
        for continuation, own in zip(continuations, following, strict=True):
            assert ids + own == tokenizer.encode(context + continuation)
            assert own or not tokenizer.encode(context + continuation)
        assert ids == tokenizer.encode(context)[: len(ids)]


def test_a_token_over_the_join_is_the_continuation_s():
    tokenizer = reaching_over()
    ids, (plum, blab) = join(tokenizer, "ab:", [" plum", "blab"])
    decoded = [[tokenizer.decode([i]) for i in each] for each in (ids, plum, blab)]
    assert decoded == [["a", "b"], [": p", "lum"], [":", "b", "l", "a", "b"]]
    assert join(tokenizer, "ab:", ["blab"])[0] == tokenizer.encode("ab:")
    # Also where only the end of the context is looked at.
    long = "plum" * 99 + ":"
    ids, (plum,) = join(tokenizer, long, [" plum"])
    assert ids == tokenizer.encode(long)[:-1] and ids + plum == tokenizer.encode(long + " plum")


def pairs(normalizer=None) -> Tokenizer:
    """Letters, and 'll'."""
    fast = tokenizers.Tokenizer(models.BPE({"<eos>": 0, "l": 1, "ll": 2, "m": 3, "u": 4, "!": 5}, [("l", "l")]))
    if normalizer:
        fast.normalizer = normalizer
    return Tokenizer(Parts(fast, {"eos_token": "<eos>"}, 0, (0,), None))


def test_what_the_end_of_a_long_context_does_not_show_is_looked_for():
    odd = "l" * 201  # its last 160 characters are pairs, its tokens are pairs and one more
    ids, (own,) = join(pairs(), odd, ["l"])
    assert (ids, own) == ([2] * 100, [2]) and join(pairs(), odd, ["m"])[0] == [*[2] * 100, 1]
    far = pairs(normalizers.Replace(tokenizers.Regex("m+!"), "u"))  # a continuation that changes all of it
    assert join(far, "l" + "m" * 200, ["!"]) == ([1], [[4]])


def test_no_space_is_put_in(tmp_path):
    """As SentencePiece puts one before a text, an answer of its own would have two."""
    tokenizer = sentencepieces("bpe", tmp_path)
    _, (own,) = join(tokenizer, "pear:", [" pome"])
    assert own == tokenizer.encode("pome") != tokenizer.encode(" pome")


def test_nothing_is_empty():
    fast = train_bpe(SENTENCES, 300)._fast
    state = json.loads(fast.to_str())
    state["normalizer"] = {"type": "Strip", "strip_left": False, "strip_right": True}
    tokenizer = Tokenizer(Parts(tokenizers.Tokenizer.from_str(json.dumps(state)), {}, 0, (0,), None))
    ids, (own,) = join(tokenizer, "pear:", ["\n"])  # this tokenizer does not see a last newline
    assert own and ids + own == tokenizer.encode("pear:")
    assert join(tokenizer, "", ["\n"]) == ([], [[]])
    assert join(tokenizer, "pear:", []) == (tokenizer.encode("pear:"), [])


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_pairs_are_whole_texts_of_which_what_is_given_says_nothing_of_the_rest(tokenizer, texts):
    for (context, target), (ids, given_ids) in zip(texts, joined(tokenizer, texts), strict=True):
        whole = tokenizer.prompt(context + target)
        assert given_ids >= 1 and ids[-len(whole) :] == whole
        assert len(ids) == len(whole) or ids[: -len(whole)] == [tokenizer.bos_id]
        [own] = join(tokenizer, context, [target])[1]
        assert ids[given_ids:] == own  # as prompting asks it
