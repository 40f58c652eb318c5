"""WinoBias as sentences: what is read of its files, flaws and all, and models whose bias is built in."""

import json
import math
import re
import zlib

import numpy as np
import pytest

from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.evaluation.bias.winobias import WinoPair, read_winobias, winobias_rows
from limbeck.inference.engine import Engine
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.tokenizer import byte_tokenizer


def pair(number, kind):
    """As many workers for whom "he" is the stereotype as for whom "she" is."""
    pro, anti = (f"Worker {number} of {kind} rested because {each} was tired." for each in ("he", "she"))
    return WinoPair(pro, anti, kind) if number % 2 else WinoPair(anti, pro, kind)


PAIRS = [pair(number, kind) for number in range(60) for kind in ("type 1", "type 2")]


class Fake(Engine):
    """Ten nats a word, less `lean(text)`."""

    def __init__(self, lean):
        self.lean, self.tokenizer = lean, byte_tokenizer()

    def score(self, requests):
        out = []
        for request in requests:
            text = self.tokenizer.decode(request.options[0])
            out.append(Scores((self.lean(text) - 10 * len(text.split()),), (len(request.options[0]),)))
        return out


PRO = {each.pro for each in PAIRS}


def scatter(text):
    return float(np.random.default_rng(zlib.crc32(text.encode())).normal())


def believes(text):
    """Of type 1 alone."""
    return scatter(text) + 2 * (text in PRO and "type 1" in text)


def found(rows):
    return {(row.probe.removeprefix("winobias_"), row.group): row for row in rows}


# Models


def test_every_row_is_the_number_worked_out_by_hand():
    pairs = [WinoPair("a", "b b", "type 1"), WinoPair("c", "d", "type 1"), WinoPair("e", "f", "type 2")]
    pairs.append(WinoPair("g", "h", "type 2"))
    lean = {"a": 1.0, "b b": 9.0, "c": 0.0, "d": 0.0, "e": 3.0, "f": 4.0, "g": 5.0, "h": 2.0}
    rows = winobias_rows(Fake(lean.get), pairs)
    assert [(row.probe, row.group, row.n) for row in rows] == [
        *((f"winobias_{name}", "", 4) for name in ("preference", "difference")),
        *((f"winobias_{name}", kind, 2) for kind in ("type 1", "type 2") for name in ("preference", "difference")),
        ("perplexity", "", 4),
    ]
    of = found(rows)
    assert of["preference", ""].value == (1 + 0.5 + 0 + 1) / 4
    assert of["difference", ""].value == ((1 - 10) - (9 - 20) + 0 - 1 + 3) / 4
    assert of["preference", "type 1"].value == 0.75 and of["difference", "type 2"].value == 1
    assert of["perplexity", ""].value == pytest.approx(math.exp((90 - 24) / 10))
    assert {row.group for row in winobias_rows(Fake(lean.get), pairs[:2])} == {""}
    with pytest.raises(UserError, match="pairs is 1, .*at least two"):
        winobias_rows(Fake(lean.get), pairs[:1])


def test_a_biased_model_is_found_where_it_is_biased():
    of = found(winobias_rows(Fake(believes), PAIRS))
    for group in ("", "type 1"):
        assert of["preference", group].note == "away from 0.5" and of["difference", group].note == "away from 0"
    assert of["difference", "type 1"].value == pytest.approx(2, abs=0.7)
    assert of["difference", "type 2"].note.startswith("not distinguishable")


@pytest.mark.parametrize("lean", [scatter, lambda text: 3.0 * (" he " in text)], ids=["scatter", "he"])
def test_an_unbiased_model_is_not_distinguishable(lean):
    """A liking for "he" is none for the stereotype."""
    for row in winobias_rows(Fake(lean), PAIRS)[:-1]:
        assert row.note.startswith("not distinguishable"), row


def test_compare_tells_a_model_that_was_made_worse():
    base, tuned = (winobias_rows(Fake(lean), PAIRS) for lean in (scatter, believes))
    up = {(d.probe, d.group): d for d in compare("base", base, "tuned", tuned)}
    assert up["winobias_difference", "type 1"].ci95 == pytest.approx((2, 2))
    assert up["winobias_preference", ""].value > 0 and (up["winobias_preference", ""].flips_p or 1.0) < 0.01
    assert up["winobias_difference", "type 2"].note == "not distinguishable"
    down = {(d.probe, d.group): d for d in compare("tuned", tuned, "mended", base)}
    assert down["winobias_difference", "type 1"].note == "nearer to the ideal"


def test_rows_are_read_back_as_they_were():
    rows = winobias_rows(Fake(scatter), PAIRS)
    assert from_json(json.loads(json.dumps(to_json(rows)))) == rows


def test_intervals_cover_at_their_rate():
    """Of 200 unbiased models, each another scatter; the perplexity's truth is unknown and left out."""
    rng = np.random.default_rng(6)
    pairs = PAIRS[:80]
    covered = np.zeros(6)
    for _ in range(200):
        draws = {sentence: float(rng.normal()) for each in pairs for sentence in each[:2]}
        rows = winobias_rows(Fake(draws.__getitem__), pairs)[:-1]
        covered += [row.note.startswith("not distinguishable") for row in rows]
    # The percentile bootstrap of 40 or 80 pairs covers a little less than it says, by about one in a hundred.
    assert np.all(np.abs(covered / 200 - [0.95, 0.94] * 3) < 4 * math.sqrt(0.05 * 0.95 / 200))


# Files

PRO_1 = [
    "1 [The baker] thanked the clerk because [he] was tired.",
    "2 The baker thanked [the clerk] because [she] had lent [her] coat , as ever .",
    "3 [The baker] 's hand shook because [he] saw [himself].",
    "4 The baker saw [ clerk] after [he] left.",
    "5 The baker waited for [the clerk] and gave [his] best.",
    "",
]
ANTI_1 = [
    "1 [The baker] thanked the clerk because [she] was tired.",
    "2 The baker thanked [the clerk] because [he] had lent [his] coat , as ever .",
    "3 The [baker] 's hand shook because she saw [herself].",
    "4 The baker saw [the clerk] after [she] left.",
    "5 The baker waited for [the clerk] and gave [hers] best.",
    "",
]


def folder_of(tmp_path, pro=PRO_1, anti=ANTI_1, name="type1.txt.dev"):
    for side, lines in (("pro", pro), ("anti", anti)):
        content = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
        (tmp_path / f"{side}_stereotyped_{name}").write_bytes(content)
    return tmp_path


def test_sentences_are_plain_and_flawed_pairs_are_listed(tmp_path):
    pairs, skipped = read_winobias(folder_of(tmp_path))
    assert [(each.pro, each.anti) for each in pairs] == [
        ("The baker thanked the clerk because he was tired.", "The baker thanked the clerk because she was tired."),
        (
            "The baker thanked the clerk because she had lent her coat, as ever.",
            "The baker thanked the clerk because he had lent his coat, as ever.",
        ),
        ("The baker's hand shook because he saw himself.", "The baker's hand shook because she saw herself."),
        (
            "The baker waited for the clerk and gave his best.",
            "The baker waited for the clerk and gave hers best.",
        ),
    ]
    assert len(skipped) == 1 and re.search(r"pro_stereotyped_type1.txt.dev, line 4: differs from anti", skipped[0])


@pytest.mark.parametrize(
    "anti",
    [
        "1 [The baker] thanked the clerk because [he] was tired.",  # nothing differs
        "1 [The baker] thanked the clerk because [it] was tired.",
        "1 [The baker] thanked the clerk because [her] was tired.",  # another case
        "1 [The baker] thanked the cook because [she] was tired.",
        "1 [The baker] thanked the clerk because [she] was so tired.",
        "1 [The baker] thanked the clerk because [she] was tired",
    ],
)
def test_what_differs_in_more_than_the_pronoun_is_left_out(tmp_path, anti):
    folder = folder_of(tmp_path, PRO_1[:3], [anti, *ANTI_1[1:3]])
    assert len(read_winobias(folder).pairs) == 2 and len(read_winobias(folder).skipped) == 1


def test_pronouns_that_change_both_ways_are_left_out(tmp_path):
    swapped = (("he", "her"), ("she", "his"))
    pro, anti = (f"1 The baker told [the clerk] that [{a}] knew [{b}] name." for a, b in swapped)
    folder = folder_of(tmp_path, [pro, PRO_1[0]], [anti, ANTI_1[0]])
    assert [each.pro for each in read_winobias(folder).pairs] == ["The baker thanked the clerk because he was tired."]


def test_kinds_and_splits_in_order(tmp_path):
    for name in ("type2.txt.test", "type1.txt.test", "type2.txt.dev"):
        folder_of(tmp_path, [PRO_1[0]], [ANTI_1[0]], name)
    assert [each.kind for each in read_winobias(tmp_path).pairs] == ["type 1", "type 2", "type 2"]


@pytest.mark.parametrize(
    "pro, anti, message",
    [
        (PRO_1, ANTI_1[:3], "has 5 and anti_stereotyped_type1.txt.dev has 3 sentences"),
        (PRO_1, ["", *ANTI_1], "on other lines"),
        (b"1 \xff he\n", ANTI_1, "pro_stereotyped_type1.txt.dev, line 1 is not UTF-8"),
        (b"", ANTI_1, "pro_stereotyped_type1.txt.dev is empty"),
        (["1 او می‌رود"], ["1 او می‌آید"], "no pairs in"),
    ],
)
def test_bad_folders_are_told_in_one_line(tmp_path, pro, anti, message):
    with pytest.raises(UserError, match=message) as caught:
        read_winobias(folder_of(tmp_path, pro, anti))
    assert "\n" not in str(caught.value)


def test_a_missing_counterpart_is_named(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "anti_stereotyped_type1.txt.dev").unlink()
    with pytest.raises(UserError, match="pro_stereotyped_type1.txt.dev has no counterpart anti_stereotyped"):
        read_winobias(folder)
    with pytest.raises(UserError, match="no pairs in .*it must hold"):
        read_winobias(tmp_path / "elsewhere")


@pytest.mark.shared
def test_the_real_folder(shared_data):
    pairs, skipped = read_winobias(shared_data / "winobias")
    assert (len(pairs), len(skipped)) == (1564, 20)
    assert [sum(each.kind == kind for each in pairs) for kind in ("type 1", "type 2")] == [785, 779]
    he = sum(bool(re.search(r"\b(he|him|his|himself)\b", each.pro)) for each in pairs)
    assert abs(he - len(pairs) / 2) < 5  # so that a liking for "he" cancels out
    assert not any(re.search(r"[\[\]]|  | [,.']|^\d", sentence) for each in pairs for sentence in each[:2])
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    assert model.tokenizer is not None
    rows = winobias_rows(Engine(model.config, model.params, model.tokenizer), pairs[:30])
    assert rows[0].n == 30 and np.isfinite([row.value for row in rows]).all()
