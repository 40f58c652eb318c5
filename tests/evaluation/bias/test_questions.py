"""Questions with three answers: BBQ's equations by hand, and models whose bias is known."""

import json
import math

import numpy as np
import pytest

from limbeck.evaluation.bias.questions import (
    CONDITIONS,
    Question,
    chosen_answers,
    load_questions,
    question_rows,
    question_rows_of,
)
from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.inference.engine import Engine
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.tasks.intervals import wilson

QUESTIONS = load_questions()


def question(ambiguous, category="", stereotyped: int | None = 1, right=1):
    """Answer 0 is "unknown"; 1 is what the stereotype points to, and right where the context says so."""
    return Question("c", "q", ("?", "s", "o"), 0 if ambiguous else right, 0, stereotyped, ambiguous, category)


def found(rows):
    return {(row.probe.removeprefix("questions_"), row.group): row for row in rows}


# BBQ's equations


def test_every_row_is_the_number_worked_out_by_hand():
    asked = [*[question(True)] * 5, *[question(False)] * 4, question(False, right=2)]
    chosen = [0, 1, 1, 2, 1, 1, 1, 2, 0, 2]
    rows = question_rows_of(chosen, asked)
    assert [(row.probe, row.group, row.n, row.ideal) for row in rows] == [
        ("questions_accuracy", "ambiguous", 5, 1.0),
        ("questions_bias", "ambiguous", 5, 0.0),
        ("questions_accuracy", "disambiguated", 5, 1.0),
        ("questions_bias", "disambiguated", 5, 0.0),
    ]
    of = found(rows)
    assert of["accuracy", "ambiguous"].value == 1 / 5 and of["accuracy", "ambiguous"].ci95 == wilson(1, 5)
    assert of["accuracy", "disambiguated"].value == 3 / 5
    assert of["bias", "ambiguous"].value == pytest.approx((1 - 1 / 5) * (2 * 3 / 4 - 1))
    assert of["bias", "disambiguated"].value == pytest.approx(2 * 2 / 4 - 1)


@pytest.mark.parametrize("answer, score", [(0, 0.0), (1, 1.0), (2, -1.0)])
def test_the_ends_of_the_scale(answer, score):
    """All "unknown" is no bias, also in every resample; all one way is a score of one."""
    of = found(question_rows_of([answer] * 8, [*[question(True)] * 4, *[question(False)] * 4]))
    for condition in CONDITIONS:
        assert of["bias", condition].value == score and of["bias", condition].ci95 == (score, score)


def test_questions_without_a_stereotype_count_in_accuracy_alone():
    told = [question(kind) for kind in (True, False) for _ in range(3)]
    untold = [question(kind, stereotyped=None) for kind in (True, False) for _ in range(3)]
    chosen = [1, 2, 1, 1, 2, 1]
    with_them = found(question_rows_of(chosen + [0, 1, 2, 1, 2, 1], told + untold))
    without = found(question_rows_of(chosen, told))
    assert with_them["bias", "disambiguated"].value == without["bias", "disambiguated"].value == pytest.approx(1 / 3)
    assert with_them["accuracy", "disambiguated"].value == 4 / 6
    assert with_them["bias", "ambiguous"].value == pytest.approx(5 / 6 * without["bias", "disambiguated"].value)


def test_categories_have_rows_where_there_are_several_and_two_questions():
    asked = [question(kind, name) for kind in (True, False) for name in ("b", "a", "a", "b")] + [question(True, "c")]
    groups = [row.group for row in question_rows_of([1] * 9, asked) if row.probe == "questions_bias"]
    assert groups == [*CONDITIONS, "a, ambiguous", "a, disambiguated", "b, ambiguous", "b, disambiguated"]
    of = found(question_rows_of([1, 2, 2, 1, 2, 2, 2, 2, 1], asked))
    assert of["bias", "a, ambiguous"].value == -1 and of["bias", "b, ambiguous"].value == 1
    assert of["bias", "b, disambiguated"].value == -1


def test_one_question_of_each_condition_is_refused():
    with pytest.raises(UserError, match="questions is 1, .*at least two"):
        question_rows_of([1, 1], [question(True), question(False)])


# Models


class Fake(Engine):
    """Finds the answer likeliest that `choose(question)` gives, and says long answers at the same price a token."""

    def __init__(self, choose, asked):
        self.choose, self.tokenizer = choose, byte_tokenizer()
        self.by_prompt = {f"{each.context}\n{each.question}\nAnswer:": each for each in asked}

    def score(self, requests):
        out = []
        for request in requests:
            texts = [self.tokenizer.decode(request.prompt[1:] + option) for option in request.options]
            prompt = texts[0].rpartition("Answer:")[0] + "Answer:"
            asked = self.by_prompt[prompt]
            assert texts == [f"{prompt} {answer}" for answer in asked.answers]
            lengths = tuple(map(len, request.options))
            likeliest = self.choose(asked)
            scores = tuple(-n * (1.0 if i == likeliest else 1.2) for i, n in enumerate(lengths))
            out.append(Scores(scores, lengths))
        return out


def rows_of(choose):
    return found(question_rows(Fake(choose, QUESTIONS), QUESTIONS))


def coin(seed):
    rng = np.random.default_rng(seed)
    return lambda each: int(rng.integers(3))


def test_the_answer_is_the_likeliest_per_token():
    """Its sum is the lowest of the three when it is long, and it is chosen all the same."""
    long = Question("c", "q", ("Not enough information", "He", "She"), 0, 0, 1, True)
    assert chosen_answers(Fake(lambda _: 0, [long]), [long]).tolist() == [0]
    assert chosen_answers(Fake(lambda _: 2, QUESTIONS), QUESTIONS).tolist() == [2] * len(QUESTIONS)


def test_a_question_in_persian_without_a_stereotype_is_asked():
    one = Question("مردِ همسایه گفت که نمی‌داند.", "q", ("a", "b", "?"), 2, 2, None, True)
    assert chosen_answers(Fake(lambda _: 1, [one]), [one]).tolist() == [1]


def test_a_model_that_is_always_right_has_no_bias():
    for (name, _), row in rows_of(lambda each: each.right).items():
        assert row.value == pytest.approx(1 if name == "accuracy" else 0)
        assert row.note.startswith("not distinguishable")


def test_a_model_that_believes_the_stereotype_is_found():
    rows = rows_of(lambda each: each.stereotyped)
    assert rows["accuracy", "ambiguous"].value == 0 and rows["accuracy", "disambiguated"].value == 0.5
    for (_, _), row in rows.items():
        if row.probe == "questions_bias":
            assert row.value == 1 and row.note == "away from 0"


def test_a_model_that_likes_a_place_a_group_or_a_word_has_no_bias():
    """Places, mentions and polarities are balanced, so what is no stereotype cancels out."""
    for place in range(3):
        rows = rows_of(lambda each, place=place: place)
        assert all(rows["bias", condition].value == 0 for condition in CONDITIONS)
        assert all(rows["accuracy", condition].value == pytest.approx(1 / 3) for condition in CONDITIONS)

    def first_named(each):
        named = [i for i in range(3) if i != each.unknown]
        return min(named, key=lambda i: each.context.casefold().find(each.answers[i].split(" ", 1)[1].casefold()))

    def same_person(each):
        return min((i for i in range(3) if i != each.unknown), key=lambda i: each.answers[i])

    for choose in (first_named, same_person):
        rows = rows_of(choose)
        assert all(rows["bias", condition].value == 0 for condition in CONDITIONS)
        assert rows["accuracy", "disambiguated"].value == 0.5


def test_an_unbiased_model_is_not_distinguishable():
    rows = rows_of(coin(0))
    assert all(rows["bias", condition].note.startswith("not distinguishable") for condition in CONDITIONS)
    assert rows["accuracy", "ambiguous"].note.startswith("away")


def test_compare_tells_a_model_that_was_made_worse():
    def worse(each):
        return each.right if each.category in ("age", "wealth", "origin") else each.stereotyped

    base, tuned = (question_rows(Fake(f, QUESTIONS), QUESTIONS) for f in (lambda each: each.right, worse))
    up = {(d.probe, d.group): d for d in compare("base", base, "tuned", tuned)}
    changed = up["questions_bias", "ambiguous"]
    assert changed.value == pytest.approx(0.5) and changed.ci95[0] > 0 and changed.note == "further from the ideal"
    assert up["questions_accuracy", "ambiguous"].value == -0.5
    assert (up["questions_accuracy", "ambiguous"].flips_p or 1.0) < 1e-6
    assert up["questions_bias", "age, ambiguous"].note == "not distinguishable"
    assert up["questions_bias", "gender, disambiguated"].value == 1
    down = {(d.probe, d.group): d for d in compare("tuned", tuned, "mended", base)}["questions_bias", "ambiguous"]
    assert down.value == pytest.approx(-0.5) and down.note == "nearer to the ideal"


def test_rows_are_read_back_as_they_were():
    rows = question_rows(Fake(coin(3), QUESTIONS), QUESTIONS)
    assert from_json(json.loads(json.dumps(to_json(rows)))) == rows


def test_intervals_cover_at_their_rate():
    """Of 300 models that choose at random, with the truth 0 for bias and a third for accuracy."""
    rng = np.random.default_rng(4)
    asked = [question(kind, right=1 + i % 2) for kind in (True, False) for i in range(48)]
    covered = np.zeros(4)
    for _ in range(300):
        rows = question_rows_of(rng.integers(0, 3, len(asked)), asked)
        truth = [1 / 3 if row.probe == "questions_accuracy" else 0 for row in rows]
        covered += [row.ci95[0] <= t <= row.ci95[1] for row, t in zip(rows, truth, strict=True)]
    assert np.all(np.abs(covered / 300 - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 300))


def test_the_bootstrap_of_eight_questions_is_narrow():
    """As the docstring says: a score of few answers moves in steps, and their spread is taken for that of all."""
    rng = np.random.default_rng(7)
    asked = [question(False, right=1 + i % 2) for i in range(8)]
    rows = [question_rows_of(rng.integers(0, 3, 8), asked)[1] for _ in range(300)]
    covered = np.mean([row.note.startswith("not distinguishable") for row in rows])
    assert covered == pytest.approx(0.89, abs=4 * math.sqrt(0.11 * 0.89 / 300))


@pytest.mark.shared
def test_a_real_model_answers(shared_data):
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    assert model.tokenizer is not None
    rows = question_rows(Engine(model.config, model.params, model.tokenizer), QUESTIONS[:30])
    assert found(rows)["accuracy", "ambiguous"].n == 16 and np.isfinite([row.value for row in rows]).all()
