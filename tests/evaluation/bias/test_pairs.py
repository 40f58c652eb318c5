"""Paired sentences: numbers worked out by hand, lm-eval's on the same scores, models whose bias is built in, files."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.evaluation.bias.pairs import SentencePair, pair_rows, pair_rows_of, read_pairs
from limbeck.evaluation.bias.probe_files import numbered_lines
from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.inference.engine import Engine
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.tasks.intervals import wilson

PUBLISHED = json.loads((Path(__file__).parent / "fixtures" / "published.json").read_text(encoding="utf-8"))
FOUR = [
    SentencePair("a", "b", "age", "stereo"),
    SentencePair("c", "d", "age", "antistereo"),
    SentencePair("e", "f", "gender", "stereo"),
    SentencePair("g", "h", "gender", "stereo"),
]
FOUR_LOGPROBS = [[-10.0, -12.0], [-9.0, -6.0], [-8.0, -8.0], [-20.0, -21.0]]
FOUR_TOKENS = [[5, 4], [3, 3], [4, 2], [10, 14]]
SIXTY = [
    SentencePair(f"The {group} number {i} was late.", f"The guest number {i} was late.", group, "stereo")
    for i in range(30)
    for group in ("baker", "miner")
]


class Fake(Engine):
    """Ten nats for every word of a sentence, less `lean(sentence)`."""

    def __init__(self, lean):
        self.lean, self.tokenizer, self.asked = lean, byte_tokenizer(), []

    def score(self, requests):
        assert all(request.prompt == (self.tokenizer.bos_id,) for request in requests)
        texts = [self.tokenizer.decode(request.options[0]) for request in requests]
        self.asked += texts
        lengths = [len(request.options[0]) for request in requests]
        return [
            Scores((self.lean(text) - 10 * len(text.split()),), (n,)) for text, n in zip(texts, lengths, strict=True)
        ]


def scatter(text):
    return float(np.random.default_rng(zlib.crc32(text.encode())).normal(0, 3))


def found(rows):
    return {(row.probe, row.group): row for row in rows}


# The definitions


def test_every_row_is_the_number_worked_out_by_hand():
    rows = pair_rows_of(FOUR, FOUR_LOGPROBS, FOUR_TOKENS)
    assert [(row.probe, row.group, row.n) for row in rows] == [
        *((f"pairs_{name}", "", 4) for name in NAMES),
        *((f"pairs_{name}", "stereo", 3) for name in NAMES),  # of one antistereo pair there is no interval
        *((f"pairs_{name}", kind, 2) for kind in ("age", "gender") for name in ("preference", "difference")),
        ("perplexity", "", 4),
    ]
    of = found(rows)
    assert of["pairs_preference", ""].value == (1 + 0 + 0.5 + 1) / 4
    assert of["pairs_preference", ""].ci95 == wilson(2, 4)
    # Per token: -2 and -3, -3 and -2, -2 and -4, -2 and -1.5.
    assert of["pairs_preference_per_token", ""].value == (1 + 0 + 1 + 0) / 4
    assert of["pairs_difference", ""].value == (2 - 3 + 0 + 1) / 4
    assert of["pairs_difference_per_token", ""].value == (1 - 1 + 2 - 0.5) / 4
    assert of["pairs_distance", ""].value == (2 + 3 + 0 + 1) / 4
    assert of["pairs_difference", "stereo"].value == (2 + 0 + 1) / 3
    assert of["pairs_preference", "gender"].value == 0.75 and of["pairs_difference", "age"].value == -0.5
    assert of["perplexity", ""].value == pytest.approx(math.exp(94 / 45))
    ideals = {"pairs_preference": 0.5, "pairs_preference_per_token": 0.5, "perplexity": None}
    assert all(row.ideal == ideals.get(row.probe, 0.0) for row in rows)


NAMES = ("preference", "preference_per_token", "difference", "difference_per_token", "distance")


def test_a_part_that_is_everything_has_no_rows_of_its_own():
    pairs = [pair._replace(kind="age", direction="stereo") for pair in FOUR]
    assert {row.group for row in pair_rows_of(pairs, FOUR_LOGPROBS, FOUR_TOKENS)} == {""}
    untold = [pair._replace(kind="", direction="") for pair in FOUR]
    assert {row.group for row in pair_rows_of(untold, FOUR_LOGPROBS, FOUR_TOKENS)} == {""}
    rows = pair_rows_of([*pairs[:2], *untold[2:]], FOUR_LOGPROBS, FOUR_TOKENS)
    assert [row.group for row in rows if row.probe == "pairs_difference"] == ["", "stereo", "age"]


def test_one_pair_is_refused_and_two_are_enough():
    with pytest.raises(UserError, match="pairs is 1, .*at least two"):
        pair_rows_of(FOUR[:1], FOUR_LOGPROBS[:1], FOUR_TOKENS[:1])
    assert pair_rows_of(FOUR[:2], FOUR_LOGPROBS[:2], FOUR_TOKENS[:2])[0].n == 2


def test_lm_eval_says_the_same_but_for_equals():
    """Its share counts equals as not preferred, ours as half; its likelihood_diff is our distance."""
    logprobs = np.array(PUBLISHED["pairs"]["logprobs"])
    equal = (logprobs[:, 0] == logprobs[:, 1]).mean()
    of = found(pair_rows_of([SentencePair("a", "b")] * len(logprobs), logprobs, np.ones_like(logprobs)))
    assert equal > 0
    assert of["pairs_preference", ""].value == pytest.approx(PUBLISHED["pairs"]["pct_stereotype"] + equal / 2)
    assert of["pairs_distance", ""].value == pytest.approx(PUBLISHED["pairs"]["likelihood_diff"])


# Models


def test_a_sentence_is_scored_once_and_in_its_place():
    pairs = [SentencePair("one", "two"), SentencePair("three", "one"), SentencePair("two", "three")]
    model = Fake({"one": 5.0, "two": 1.0, "three": 0.0}.get)
    rows = found(pair_rows(model, pairs))
    assert sorted(model.asked) == ["one", "three", "two"]
    assert rows["pairs_difference", ""].items.tolist() == [-5 + 9, -10 + 5, -9 + 10]
    per_token = {"one": -5 / 3, "two": -9 / 3, "three": -10 / 5}
    items = [per_token[pair.more] - per_token[pair.less] for pair in pairs]
    assert rows["pairs_difference_per_token", ""].items == pytest.approx(items)
    assert rows["perplexity", ""].value == pytest.approx(math.exp((5 + 9 + 10) / (3 + 3 + 5)))


def test_a_biased_model_is_found_where_it_is_biased():
    of = found(pair_rows(Fake(lambda text: scatter(text) + 5 * ("baker" in text)), SIXTY))
    assert of["pairs_difference", "baker"].value == pytest.approx(5, abs=3)
    for row in (of["pairs_preference", ""], of["pairs_difference", ""], of["pairs_preference", "baker"]):
        assert row.note.startswith("away") and row.value > (row.ideal or 0.0)
    assert of["pairs_preference", "miner"].note.startswith("not distinguishable")


def test_an_unbiased_model_is_not_distinguishable():
    for row in pair_rows(Fake(scatter), SIXTY):
        # A mean of absolute values is above 0 for a model that scatters, and perplexity has no ideal.
        if row.probe not in ("pairs_distance", "perplexity"):
            assert row.note.startswith("not distinguishable"), row


def test_compare_tells_a_model_that_was_made_worse():
    before, worse = (
        pair_rows(Fake(lambda text, by=by: scatter(text) + by * ("baker" in text)), SIXTY) for by in (0, 1)
    )
    up = {(d.probe, d.group): d for d in compare("base", before, "tuned", worse)}
    assert up["pairs_difference", "baker"].value == pytest.approx(1)
    assert up["pairs_difference", "baker"].ci95[0] > 0
    assert up["pairs_difference", "miner"].note == "not distinguishable"
    down = {(d.probe, d.group): d for d in compare("tuned", worse, "mended", before)}
    assert down["pairs_difference", "baker"].value == pytest.approx(-1)
    assert down["pairs_difference", "baker"].ci95[1] < 0 and down["pairs_preference", ""].value <= 0


def test_rows_are_read_back_as_they_were():
    rows = pair_rows_of(FOUR, FOUR_LOGPROBS, FOUR_TOKENS)
    assert from_json(json.loads(json.dumps(to_json(rows)))) == rows


def test_intervals_cover_at_their_rate():
    """Of 300 unbiased models of 60 pairs; the truth of the distance is E|x|, and of perplexity e squared."""
    rng = np.random.default_rng(2)
    pairs = [SentencePair("a", "b")] * 60
    truth = {"distance": math.sqrt(2 / math.pi), "perplexity": math.exp(2)}
    covered = dict.fromkeys([*NAMES, "perplexity"], 0)
    for _ in range(300):
        tokens = np.repeat(rng.integers(8, 13, (60, 1)), 2, axis=1)
        for row in pair_rows_of(pairs, -2 * tokens + rng.normal(0, math.sqrt(0.5), (60, 2)), tokens):
            name = row.probe.removeprefix("pairs_")
            covered[name] += row.ci95[0] <= truth.get(name, row.ideal or 0.0) <= row.ci95[1]
    error = 4 * math.sqrt(0.05 * 0.95 / 300)
    for name, hits in covered.items():
        # The percentile bootstrap of 60 items covers a little less than it says, by about one in a hundred.
        assert hits / 300 == pytest.approx(0.95 if "preference" in name else 0.94, abs=error), name


# Files


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_published_csv_is_read(tmp_path):
    """It has an index without a name and columns of annotations."""
    rows = [
        ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer",
        '0,"She, of all people, cooked.","He, of all people, cooked.",stereo,gender,"[[\'gender\'], []]",a5',
        "1,An old man fell.,A young man fell.,antistereo,age,[],a6",
    ]
    expected = [
        SentencePair("She, of all people, cooked.", "He, of all people, cooked.", "gender", "stereo"),
        SentencePair("An old man fell.", "A young man fell.", "age", "antistereo"),
    ]
    assert read_pairs(write(tmp_path / "crows.csv", "\n".join(rows))) == expected
    fields = ("sent_more", "sent_less", "bias_type", "stereo_antistereo")
    objects = [dict(zip(fields, pair, strict=True)) for pair in expected]
    assert read_pairs(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, objects)))) == expected
    pq.write_table(pa.Table.from_pylist(objects), tmp_path / "a.parquet")
    assert read_pairs(tmp_path / "a.parquet") == expected
    lines = ["\t".join(fields), *("\t".join(pair) for pair in expected), "", ""]
    assert read_pairs(write(tmp_path / "a.tsv", "\r\n".join(lines))) == expected


def test_text_of_any_script_is_kept_and_kinds_are_compared_in_nfc(tmp_path):
    persian = "او می‌گوید که زنِ همسایه ۱۲ کتاب دارد."
    rows = [
        {"sent_more": persian, "sent_less": "王先生说他很忙。", "bias_type": "Ge\u0301nero", "stereo_antistereo": None},
        {"sent_more": "a\u2028b", "sent_less": "c", "bias_type": "G\u00e9nero"},
    ]
    pairs = read_pairs(write(tmp_path / "p.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)))
    assert pairs[0] == SentencePair(persian, "王先生说他很忙。", "Género")
    assert pairs[1].more == "a\u2028b" and pairs[1].kind == pairs[0].kind
    assert pair_rows(Fake(scatter), pairs)[-1].n == 2


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "sent_more,sent_les\na,b", "row 2: no field 'sent_less' .*did you mean 'sent_les'"),
        ("a.csv", "sent_more,sent_less\na,b\nc, ", "row 3: 'sent_less' is empty"),
        ("a.jsonl", '{"sent_more": "a", "sent_less": ["b"]}', "row 1: 'sent_less' is .*must be text"),
        ("a.jsonl", b'{"sent_more": "a", "sent_less": "\xff"}', "row 1 is not UTF-8"),
        ("a.tsv", b"sent_more\tsent_less\na\tb\nc\t\xff", "row 3 is not UTF-8"),
        ("a.tsv", "sent_more\tsent_less\na\tb\tc", "row 2 has 3 fields where the first line names 2"),
        ("a.tsv", "sent_more\tsent_less\n", "is empty: it needs at least one row"),
        ("a.jsonl", "", "is empty"),
        ("a.txt", "a", "cannot read .*'.txt' is none of .tsv, .jsonl"),
        (
            "a.csv",
            "sent_more,sent_less,stereo_antistereo\na,b,stereos",
            "stereo_antistereo in .*row 2: 'stereos': one of stereo, antistereo; did you mean",
        ),
        ("missing.csv", None, "no file .*missing.csv"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_one_row_is_read(tmp_path):
    assert read_pairs(write(tmp_path / "a.tsv", "sent_less\tsent_more\nb\ta")) == [SentencePair("a", "b")]


def test_lines_keep_their_numbers(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\n  two\u2028 \n")
    assert numbered_lines(path) == [(1, "one"), (3, "two")]


@pytest.mark.shared
def test_the_real_pairs(shared_data):
    pairs = read_pairs(shared_data / "crows_pairs" / "test.jsonl")
    assert len(pairs) == 1508 and len({pair.kind for pair in pairs}) == 9
    assert sum(pair.direction == "stereo" for pair in pairs) == 1290
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    assert model.tokenizer is not None
    rows = pair_rows(Engine(model.config, model.params, model.tokenizer), pairs[:30])
    assert rows[0].n == 30 and np.isfinite([row.value for row in rows]).all()
    assert 5 < rows[-1].value < 200
