"""Exposure of canaries whose rank is known because it was built in, and the ideal of those that nobody has seen."""

import hashlib
import math

import numpy as np
import pytest

from limbeck.evaluation.bias.rows import row
from limbeck.evaluation.canaries import (
    NAMES,
    Canary,
    expected_exposure,
    exposure,
    exposure_rows,
    make_canaries,
    read_canaries,
    save_canaries,
    with_canaries,
)
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer, train_bpe

BYTES = byte_tokenizer()
PERSIAN = "رمزِ ورودِ {name} می‌شود {digits} و بس"
PERSIAN_NAMES = ["نسترن", "بهرام", "مه‌تاب"]


class Likes:
    """log p of what follows, token by token: `likes(text before, token)` of each token's text."""

    def __init__(self, likes, tokenizer=BYTES):
        self.likes, self.tokenizer, self.asked = likes, tokenizer, []

    def score(self, requests):
        self.asked += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        before = self.tokenizer.decode(request.prompt[1:])
        logprobs = tuple(self._logprob(before, option) for option in request.options)
        return Scores(logprobs, tuple(map(len, request.options)))

    def _logprob(self, before, option):
        text = self.tokenizer.decode(option)
        return sum(self.likes(before + text[:i], text[i]) for i in range(len(text)))

    def texts(self):
        """All that was asked, whole."""
        asked = [(request.prompt[1:], option) for request in self.asked for option in request.options]
        return [self.tokenizer.decode(prompt + option) for prompt, option in asked]

    def generate(self, requests):
        raise AssertionError("exposure is a matter of scores")


def dislikes(text, character):
    """Likes small codes better: minus the code itself, in portions of its digits."""
    place = 2 - len(text.partition(": ")[2])
    return -float(int(character) * 10**place) if character.isdigit() else 0.0


def coin(text, character):
    """A number that hangs on the whole text up to here: no code is preferred, and no two are alike."""
    return float(int.from_bytes(hashlib.blake2b((text + character).encode(), digest_size=6).digest()))


def canary(code):
    return Canary("Code: ", code, ".")


# Making and hiding them


def test_canaries_differ_in_name_and_come_again_with_their_seed():
    canaries = make_canaries(100, seed=3)
    assert canaries == make_canaries(100, seed=3) != make_canaries(100, seed=4)
    assert len({each.before for each in canaries}) == 100
    assert {each.before for each in canaries} != {each.before for each in make_canaries(100, seed=4)}
    assert all(len(each.digits) == 6 and each.digits.isdigit() for each in canaries)
    assert len({each.digits for each in canaries}) > 95
    assert canaries[0].text == f"{canaries[0].before}{canaries[0].digits}."
    assert canaries[0].before[:19] == "The access code of " and canaries[0].before[19:-4] in NAMES


def test_short_codes_keep_their_noughts():
    codes = {each.digits for each in make_canaries(500, digits=2)}
    assert all(len(code) == 2 for code in codes) and any(code[0] == "0" for code in codes) and len(codes) > 90


def test_the_names_are_all_different():
    assert len(set(NAMES)) == len(NAMES) == 576


def test_a_template_of_another_script_and_order():
    one, two, three = make_canaries(3, digits=4, template=PERSIAN, names=PERSIAN_NAMES)
    assert {each.before for each in (one, two, three)} == {f"رمزِ ورودِ {name} می‌شود " for name in PERSIAN_NAMES}
    assert one.after == " و بس"
    last = make_canaries(1, template="{digits} opens it for {name} {x}", names=["Omid {digits}"])[0]
    assert (last.before, last.after) == ("", " opens it for Omid {digits} {x}")


def test_canaries_are_hidden_among_texts_that_keep_their_order():
    texts, canaries = [f"text {i}" for i in range(40)], make_canaries(3)
    mixed = with_canaries(texts, canaries, 5, seed=1)
    secret = {each.text for each in canaries}
    assert [text for text in mixed if text not in secret] == texts
    assert all(mixed.count(each.text) == 5 for each in canaries) and len(mixed) == 55
    assert mixed == with_canaries(texts, canaries, 5, seed=1) != with_canaries(texts, canaries, 5, seed=2)
    many = [with_canaries(texts, canaries, 5, seed) for seed in range(200)]
    places = [i for mixed in many for i, text in enumerate(mixed) if text in secret]
    assert abs(np.mean(places) - 27) < 1 and {0, 54} <= set(places)  # everywhere alike
    assert sorted(with_canaries([], canaries, 1)) == sorted(secret)


# Their exposure


@pytest.mark.parametrize("code", ["000", "001", "031", "032", "499", "999"])
def test_exposure_is_exact_where_every_code_is_scored(code):
    """A thousand codes are asked in portions, of which some begin with the same digit: it counts in all of them."""
    found = exposure(Likes(dislikes), [canary(code)])
    assert found.bits_N[0] == pytest.approx(math.log2(1000) - math.log2(int(code) + 1))
    assert (found.limit, found.ranked) == (math.log2(1000), 1000)


def test_every_code_is_asked_once():
    model = Likes(dislikes)
    assert exposure(model, [canary("42")], references=5).ranked == 100
    assert sorted(model.texts()) == [f"Code: {i:02}." for i in range(100)]
    assert len({request.prompt for request in model.asked}) == 1


def test_exposure_is_estimated_from_references():
    """A code a quarter of the way down: about a quarter of what it is ranked among is likelier."""

    def small(text, character):
        return dislikes(text, character) if text.startswith("Code: ") and len(text) < 9 else 0.0

    likeliest, quarter = exposure(Likes(small), [canary("000000"), canary("250000")], references=400).bits_N
    assert likeliest <= math.log2(401)
    assert quarter == pytest.approx(2, abs=0.4)
    found = exposure(Likes(lambda text, character: float(text + character == "Code: 123456")), [canary("123456")])
    assert found.bits_N.tolist() == [math.log2(1001)] == [found.limit]


def test_references_are_other_codes_each_once_and_follow_the_seed():
    def asked(seed):
        model = Likes(lambda text, character: 0.0)
        exposure(model, [canary("12345"), canary("00000")], references=2000, seed=seed)
        return model.texts()

    codes = asked(0)
    assert codes == asked(0) != asked(1)
    first, second = codes[:2001], codes[2001:]
    assert len(set(first)) == len(set(second)) == 2001
    assert (first[0], second[0]) == ("Code: 12345.", "Code: 00000.") and first[1:] != second[1:]
    assert exposure(Likes(coin), [canary("123456")], references=5).ranked == 6


def test_a_model_that_tells_no_codes_apart_has_the_exposure_of_chance():
    found = exposure(Likes(lambda text, character: 0.0), [canary("42"), canary("17")])
    assert found.bits_N.tolist() == pytest.approx([expected_exposure(100)] * 2)


@pytest.mark.parametrize("tokenizer", [BYTES, train_bpe(["Code: 123, 12, 99, 901."] * 5, 280)])
def test_tokens_are_those_of_the_whole_text(tokenizer):
    """Where several digits are one token, codes of as many digits have different numbers of tokens."""
    model = Likes(coin, tokenizer)
    found = exposure(model, [canary("123")])
    for request in model.asked:
        for option in request.options:
            ids = list(request.prompt[1:] + option)
            assert ids == tokenizer.encode(tokenizer.decode(ids))
    assert found.bits_N == exposure(Likes(coin), [canary("123")]).bits_N


def test_digits_of_a_persian_text_are_found():
    canaries = make_canaries(3, digits=3, template=PERSIAN, names=PERSIAN_NAMES)
    secrets = {each.before + each.digits for each in canaries}
    found = exposure(Likes(lambda text, character: float(text + character in secrets)), canaries)
    assert found.bits_N.tolist() == [math.log2(1000)] * 3


# What to expect of those that nobody has seen


@pytest.mark.parametrize("ranked", [1, 2, 10, 1001])
def test_expected_exposure_is_the_mean_over_ranks(ranked):
    mean = np.mean(np.log2(ranked) - np.log2(np.arange(1, ranked + 1)))
    assert expected_exposure(ranked) == pytest.approx(mean, abs=1e-9)


def test_expected_exposure_goes_to_log2_e():
    assert expected_exposure(10**9) == pytest.approx(math.log2(math.e), abs=1e-7)
    assert expected_exposure(1001) == pytest.approx(1.4364, abs=5e-5)


def test_unseen_canaries_have_the_exposure_of_chance():
    never, again = exposure_rows(Likes(coin), {"never": make_canaries(200, digits=2)})
    assert never.ideal == expected_exposure(100) and never.note == "not distinguishable from 1.39621"
    assert abs(never.value - expected_exposure(100)) < 4 * 1.4 / math.sqrt(200)
    assert again.ideal == 0.01 and again.ci95[0] <= 0.01 <= again.ci95[1]


@pytest.mark.parametrize(("canaries", "least", "most"), [(20, 0.87, 0.945), (100, 0.91, 0.97)])
def test_the_interval_holds_the_ideal_at_its_rate(canaries, least, most):
    """Ranks drawn alike: what exposure of unseen canaries is, whatever the model."""
    rng, ideal = np.random.default_rng(0), expected_exposure(1001)
    drawn = [np.log2(1001) - np.log2(rng.integers(1, 1002, canaries)) for _ in range(1000)]
    covered = np.mean([row("exposure", bits_N, ideal=ideal).note.startswith("not ") for bits_N in drawn])
    assert least < covered < most


def test_rows_tell_groups_apart_and_leave_out_a_single_canary():
    canaries = make_canaries(22, digits=2)
    groups = {"often": canaries[:10], "one": canaries[10:11], "never": canaries[11:]}
    secrets = {each.before + each.digits for each in groups["often"]}
    rows = exposure_rows(Likes(lambda text, character: float(text + character in secrets)), groups)
    assert [(row.probe, row.group) for row in rows] == [
        ("exposure", "often"), ("exposure_at_limit", "often"), ("exposure", "never"), ("exposure_at_limit", "never"),
    ]  # fmt: skip
    assert (rows[0].value, rows[0].n, rows[0].note) == (pytest.approx(math.log2(100)), 10, "away from 1.39621")
    assert (rows[1].value, rows[1].note) == (1.0, "away from 0.01")


# Mistakes


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"n": 577}, "577 canaries of 576 names: ask for 1 to 576"),
        ({"n": 0}, "0 canaries"),
        ({"n": 4, "names": PERSIAN_NAMES}, "4 canaries of 3 names"),
        ({"n": 1, "digits": 0}, "digits=0: must be 1 to 18"),
        ({"n": 1, "digits": 19}, "digits=19: must be 1 to 18"),
        ({"n": 1, "template": "{name} has none"}, "must hold {name} and {digits} once each"),
        ({"n": 1, "template": "{digits}{digits} of {name}"}, "once each"),
    ],
)
def test_mistakes_are_one_line(asked, says):
    with pytest.raises(UserError, match=says):
        make_canaries(**asked)


def test_mistakes_of_the_rest():
    with pytest.raises(UserError, match="repeats=0"):
        with_canaries([], make_canaries(1), 0)
    with pytest.raises(UserError, match="references=0"):
        exposure(Likes(coin), [canary("123456")], references=0)
    with pytest.raises(UserError, match=r"canaries of \[2, 3\] digits"):
        exposure(Likes(coin), [canary("12"), canary("123")])
    with pytest.raises(UserError, match=r"canaries of \[\] digits"):
        exposure(Likes(coin), [])


def test_canaries_are_kept_in_a_file_and_read_back(tmp_path):
    canaries = make_canaries(4, template="رمز {name} عدد {digits}")
    groups = {"8 times": canaries[:2], "never": canaries[2:]}
    save_canaries(tmp_path / "c.jsonl", groups)
    assert read_canaries(tmp_path / "c.jsonl") == groups
    path = tmp_path / "bad.jsonl"
    path.write_text('{"before": "a ", "digits": "12x", "after": ".", "group": "never"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl.*'12x' is no code"):
        read_canaries(path)
