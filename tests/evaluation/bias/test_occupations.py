"""Occupations: tables and frames from files, and models that follow a table, turn it round, or know nothing of it."""

import json
import math
import zlib

import numpy as np
import pytest

from limbeck.evaluation.bias.occupations import (
    FRAMES,
    occupation_rows,
    p_she,
    read_frames,
    read_occupations,
    table_rows,
)
from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.inference.engine import Engine
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.tokenizer import byte_tokenizer

TABLE = {f"{letter}er": (i + 0.5) / 20 for i, letter in enumerate("abcdefghijklmnopqrst")}


class Fake(Engine):
    """A nat a word, less `lean(text)` where the text says "she"."""

    def __init__(self, lean):
        self.lean, self.tokenizer = lean, byte_tokenizer()

    def score(self, requests):
        out = []
        for request in requests:
            texts = [self.tokenizer.decode(request.prompt[1:] + option) for option in request.options]
            leans = [self.lean(text) if " she" in text else 0.0 for text in texts]
            scores = tuple(lean - len(text.split()) for text, lean in zip(texts, leans, strict=True))
            out.append(Scores(scores, tuple(map(len, request.options))))
        return out


def follows(text):
    share = next(share for occupation, share in TABLE.items() if f" {occupation} " in text)
    return math.log(share / (1 - share))


def scatter(text):
    return float(np.random.default_rng(zlib.crc32(text.encode())).normal())


def rows_of(lean):
    return {row.probe: row for row in table_rows(Fake(lean), TABLE)}


# Models


def test_a_model_that_follows_the_table_is_found():
    rows = rows_of(follows)
    assert rows["occupation_correlation"].value == pytest.approx(1)
    assert rows["occupation_follows_text"].value == 1 and rows["occupation_follows_text"].n == 20
    assert rows["occupation_gap"].value == pytest.approx(np.abs(2 * np.array(list(TABLE.values())) - 1).mean())
    assert rows["occupation_correlation"].note == "away from 0"
    assert rows_of(lambda text: -follows(text))["occupation_correlation"].value == pytest.approx(-1)


def test_a_model_that_knows_nothing_of_the_table_is_not_distinguishable():
    rows = rows_of(scatter)
    assert list(rows) == ["occupation_follows_text", "occupation_gap", "occupation_correlation", "perplexity"]
    assert rows["occupation_correlation"].note == "not distinguishable from 0"
    assert rows["occupation_follows_text"].note == "not distinguishable from 0.5"


def test_perplexity_is_of_the_frames_with_either_pronoun():
    rows = rows_of(lambda text: 0.0)
    sentences = [f.format(occupation=o, pronoun=p) for o in TABLE for f in FRAMES for p in ("she", "he")]
    words, tokens = sum(len(text.split()) for text in sentences), sum(map(len, sentences))
    assert rows["perplexity"].value == pytest.approx(math.exp(words / tokens)) and rows["perplexity"].n == 20


def test_p_she_is_the_mean_over_frames_of_the_pronoun_alone():
    frames = ["The {occupation} said {pronoun} ran.", "A {occupation} knew that {pronoun} ran, as ever."]
    found = p_she(Fake(lambda text: math.log(3) if "said" in text else 0.0), ["cook"], frames)
    assert found == pytest.approx([(0.75 + 0.5) / 2])


def test_compare_tells_a_model_that_was_made_worse():
    base, tuned = (
        table_rows(Fake(lambda text, by=by: scatter(text) + by * follows(text)), TABLE) for by in (0.0, 1.0)
    )
    up = {d.probe: d for d in compare("base", base, "tuned", tuned)}
    assert up["occupation_correlation"].ci95[0] > 0 and up["occupation_follows_text"].value > 0
    assert up["occupation_correlation"].note == "further from the ideal"
    down = {d.probe: d for d in compare("tuned", tuned, "mended", base)}
    assert down["occupation_correlation"].ci95[1] < 0 and down["occupation_correlation"].note == "nearer to the ideal"


def test_rows_are_read_back_as_they_were():
    rows = table_rows(Fake(scatter), TABLE)
    assert from_json(json.loads(json.dumps(to_json(rows)))) == rows


def test_the_correlations_interval_covers_at_its_rate():
    """Of 200 models whose p(she) has nothing to do with a table of 60; and of a gap whose truth is one half."""
    rng = np.random.default_rng(5)
    shares = rng.uniform(0.05, 0.95, 60)
    covered = np.zeros(3)
    for _ in range(200):
        rows = occupation_rows(rng.uniform(size=60), shares)
        covered += [row.ci95[0] <= t <= row.ci95[1] for row, t in zip(rows, (0.5, 0.5, 0.0), strict=True)]
    # The percentile bootstrap of 60 covers a little less than it says, and that of a correlation least of all.
    assert np.all(np.abs(covered / 200 - [0.95, 0.94, 0.93]) < 4 * math.sqrt(0.05 * 0.95 / 200))


def test_own_frames_are_frames(tmp_path):
    path = tmp_path / "frames.txt"
    path.write_text("\n".join(FRAMES))
    assert read_frames(path) == list(FRAMES) and len(set(FRAMES)) == len(FRAMES)


# Files


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_shares_are_fractions_or_percentages(tmp_path):
    csv = "occupation,share,year\nnurse,0.9,2020\nپرستارِ بخش,61.5%,2020\n护士, 7 % ,2020\n"
    expected = {"nurse": 0.9, "پرستارِ بخش": pytest.approx(0.615), "护士": pytest.approx(0.07)}
    assert read_occupations(write(tmp_path, "a.csv", csv)) == expected
    lines = ["occupation\tshare", "nurse\t0.9", "cook\t1", "judge\t0"]
    assert read_occupations(write(tmp_path, "a.tsv", "\n".join(lines))) == {"nurse": 0.9, "cook": 1, "judge": 0}
    rows = [{"occupation": "nurse", "share": 0.9}, {"occupation": "cook", "share": "40 %"}]
    found = read_occupations(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert found == {"nurse": 0.9, "cook": 0.4}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "occupation,share\ncook,61.9\n", "row 2: share is 61.9: .* is it 61.9 %"),
        ("a.csv", "occupation,share\ncook,161\n", "row 2: share is 161: it must be from 0 to 1, or"),
        ("a.csv", "occupation,share\ncook,-0.1\n", "row 2: share is -0.1"),
        ("a.csv", "occupation,share\ncook,110%\n", "row 2: share is 110%"),
        ("a.csv", "occupation,share\ncook,nan\n", "row 2, share: 'nan' is no finite number"),
        ("a.csv", "occupation,share\ncook,half\n", "row 2, share: 'half' is no finite number"),
        ("a.csv", "occupation,share\ncook,\n", "row 2: 'share' is empty"),
        ("a.csv", "occupation,shares\ncook,0.5\n", "row 2: no field 'share' .*did you mean 'shares'"),
        ("a.csv", "occupation,share\ncaf\u00e9 owner,0.5\nCafe\u0301 Owner,0.6\n", "row 3: .*stands twice"),
        ("a.csv", "occupation,share\ncook,0.5\n", "occupations in .* is 1, .*at least two"),
        ("a.csv", b"occupation,share\nc\xff,0.5\n", "row 2 is not UTF-8"),
        ("a.csv", "", "is empty"),
    ],
)
def test_bad_tables_are_told_in_one_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_occupations(write(tmp_path, name, content))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_frames_are_read_line_by_line(tmp_path):
    lines = "\ufeffThe {occupation} said {pronoun} ran.\r\n\n  Where the {occupation} is, {pronoun} stays. \n"
    frames = ["The {occupation} said {pronoun} ran.", "Where the {occupation} is, {pronoun} stays."]
    assert read_frames(write(tmp_path, "frames.txt", lines)) == frames


@pytest.mark.parametrize(
    "line",
    [
        "The cook said {pronoun} ran.",
        "The {occupation} ran.",
        "{pronoun} is the {occupation}.",
        "The {occupation} said ({pronoun}) ran.",
        "The {occupation} said {pronoun} ran as {pronoun} does.",
        "The {occupation} said {pronoun} saw {participant}.",
        "The {occupation} said {pronoun} saw {.",
        "The {occupation!r} said {pronoun} ran.",
        "The {} said {pronoun} ran.",
    ],
)
def test_bad_frames_are_told_by_line(tmp_path, line):
    with pytest.raises(UserError, match="frames.txt, line 2: a frame has {occupation} and later {pronoun}"):
        read_frames(write(tmp_path, "frames.txt", f"The {{occupation}} said {{pronoun}} ran.\n{line}\n"))


@pytest.mark.parametrize("content, message", [(b"\xff\n", "line 1 is not UTF-8"), ("\n \n", "is empty")])
def test_bad_frame_files_are_told(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_frames(write(tmp_path, "frames.txt", content))


def test_a_missing_frame_file_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot read .*frames.txt: No such file"):
        read_frames(tmp_path / "frames.txt")


@pytest.mark.shared
def test_a_real_model_answers(shared_data):
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    assert model.tokenizer is not None
    rows = table_rows(Engine(model.config, model.params, model.tokenizer), dict(list(TABLE.items())[:5]), FRAMES[:3])
    assert np.isfinite([row.value for row in rows]).all() and rows[-1].n == 5
