"""Questions with three answers: BBQ's equations by hand, lm-eval's on the same answers, models whose bias is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from limbeck.evaluation.bias.questions import (
    CONDITIONS,
    Question,
    chosen_answers,
    load_questions,
    question_rows,
    question_rows_of,
    read_questions,
)
from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.inference.engine import Engine
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.tasks.intervals import wilson

FIXTURE = Path(__file__).parent / "fixtures" / "published.json"
PUBLISHED = json.loads(FIXTURE.read_text(encoding="utf-8"))
QUESTIONS = load_questions()


@pytest.fixture
def published(tmp_path):
    """The questions of the fixture, read from a file in BBQ's form."""
    path = tmp_path / "bbq.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in PUBLISHED["documents"]), encoding="utf-8")
    return read_questions(path)


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


# lm-eval's functions on the same answers


def test_who_the_stereotype_points_to_is_as_in_lm_eval(published):
    """Where lm-eval finds one biased answer; of none or two of them nothing is known."""
    assert len(published) == len(PUBLISHED["biased_answers"]) == 44
    for ours, theirs in zip(published, PUBLISHED["biased_answers"], strict=True):
        assert theirs == [] or len(theirs) == 2 if ours.stereotyped is None else [ours.answers[ours.stereotyped]]
    assert sum(each.stereotyped is None for each in published) == 8


@pytest.mark.parametrize("word, group", [("woman", "F"), ("girl", "F"), ("man", "M"), ("boy", "M")])
def test_words_for_women_and_men_are_known(tmp_path, word, group):
    info = {"ans0": ["?", "unknown"], "ans1": ["Kim", "Kim"], "ans2": [word, word]}
    document = PUBLISHED["documents"][0] | {"answer_info": info, "ans0": "?", "ans1": "Kim", "ans2": word}
    document["additional_metadata"] = {"stereotyped_groups": [group]}
    (tmp_path / "bbq.jsonl").write_text(json.dumps(document), encoding="utf-8")
    assert read_questions(tmp_path / "bbq.jsonl")[0].stereotyped == 2


def against_lm_eval(published, chosen, theirs):
    """Ours is theirs, but for what the docstrings say: untold questions, and 0 where no answer is biased."""
    told = [i for i, each in enumerate(published) if each.stereotyped is not None]
    of_all = found(question_rows_of(chosen, published))
    of_told = found(question_rows_of([chosen[i] for i in told], [published[i] for i in told]))
    for short, condition in (("amb", "ambiguous"), ("disamb", "disambiguated")):
        for rows, numbers in ((of_all, theirs["all"]), (of_told, theirs["told"])):
            assert rows["accuracy", condition].value == pytest.approx(numbers[f"accuracy_{short}"])
        items = of_told["bias", condition].items
        never = items[:, 1].sum() == 0 and items[:, 2].sum() > 0
        for group, name in ((condition, ""), (f"Gender_identity, {condition}", "_Gender_identity")):
            ours, said = of_told["bias", group], theirs["told"][f"{short}_bias_score{name}"]
            if ours.items[:, 1].sum() == 0 and ours.items[:, 2].sum() > 0:
                assert said == 0 and ours.value == pytest.approx(-ours.items[:, 0].mean())
            else:
                assert ours.value == pytest.approx(said)
        share = of_told["bias", condition].value / max(items[:, 0].mean(), 1e-9)
        assert of_all["bias", condition].value == pytest.approx(of_all["bias", condition].items[:, 0].mean() * share)
        yield never


def test_lm_eval_says_the_same_but_for_what_is_documented(published):
    nevers = [never for case in PUBLISHED["choices"] for never in against_lm_eval(published, case["chosen"], case)]
    assert len(nevers) == 16 and sum(nevers) == 2  # the last model never gives the stereotype's answer


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


# The built-in questions


def test_the_built_in_questions_are_balanced():
    assert len(QUESTIONS) == len({(each.context, each.question) for each in QUESTIONS}) == 96
    for condition in CONDITIONS:
        part = [each for each in QUESTIONS if each.ambiguous == (condition == "ambiguous")]
        for place in ("right", "unknown", "stereotyped"):
            assert np.bincount([getattr(each, place) for each in part]).tolist() == [16] * 3
        categories = {each.category for each in part}
        assert len(categories) == 6
        for category in categories:
            told = [each.right == each.stereotyped for each in part if each.category == category]
            assert len(told) == 8 and sum(told) == (0 if condition == "ambiguous" else 4)


def test_the_built_in_questions_come_in_fours():
    """Two conditions and two polarities; the stereotype's answer changes with the polarity and nothing else does."""
    for first in range(0, len(QUESTIONS), 4):
        four = QUESTIONS[first : first + 4]
        assert [each.ambiguous for each in four] == [True, True, False, False]
        assert four[0].context == four[1].context and four[2].context == four[3].context
        assert four[2].context.startswith(four[0].context + " ")
        assert four[0].question == four[2].question != four[1].question == four[3].question
        assert len({frozenset(each.answers) for each in four}) == 1
        stereotyped = [each.answers[each.stereotyped] for each in four if each.stereotyped is not None]
        assert stereotyped[0] == stereotyped[2] != stereotyped[1] == stereotyped[3]
        assert four[2].answers[four[2].right] != four[3].answers[four[3].right]
        for each in four:
            for answer in set(each.answers) - {each.answers[each.unknown]}:
                assert answer.removeprefix("The ") in each.context


# Files

OWN = "context\tquestion\tanswer0\tanswer1\tanswer2\tright\tunknown\tstereotyped\tcondition\tcategory"
GOOD = ["c", "q", "a", "b", "?", "2", "2", "0", "ambiguous", "age"]


def own_file(tmp_path, *changes):
    """A good row, and one with changes: (column, value)."""
    changed = list(GOOD)
    for column, value in changes:
        changed[OWN.split("\t").index(column)] = value
    path = tmp_path / "own.tsv"
    path.write_text("\n".join([OWN, "\t".join(GOOD), "\t".join(changed)]), encoding="utf-8")
    return path


def test_our_own_form_is_read_from_any_file(tmp_path):
    persian = "مردِ همسایه گفت که نمی‌داند."
    path = own_file(tmp_path, ("stereotyped", ""), ("context", persian), ("category", ""))
    first, second = read_questions(path)
    assert first == Question("c", "q", ("a", "b", "?"), 2, 2, 0, True, "age")
    assert second == Question(persian, "q", ("a", "b", "?"), 2, 2, None, True, "")
    assert len(chosen_answers(Fake(lambda _: 1, [second]), [second])) == 1
    rows = [dict(zip(OWN.split("\t"), GOOD, strict=True)), {"right": 2, "unknown": 2, "stereotyped": None}]
    rows[1] = {**rows[0], **rows[1], "context": persian, "category": None}
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert read_questions(tmp_path / "own.jsonl") == [first, second]
    (tmp_path / "own.csv").write_text("\n".join([OWN, "\t".join(GOOD)]).replace("\t", ","), encoding="utf-8")
    assert read_questions(tmp_path / "own.csv") == [first]


@pytest.mark.parametrize(
    "change, message",
    [
        (("right", "3"), "row 3: '3': one of 0, 1, 2"),
        (("right", "1"), "row 3: after an ambiguous context the right answer must be the unknown one"),
        (("condition", "disambiguated"), "row 3: after a disambiguated context .* must not be"),
        (("condition", "ambig"), "row 3: 'ambig': one of ambiguous, disambiguated; did you mean 'ambiguous'"),
        (("stereotyped", "2"), "row 3: answer 2 is both unknown and stereotyped"),
        (("answer0", "B"), "row 3: two answers are the same text"),
        (("question", " "), "row 3: 'question' is empty"),
    ],
)
def test_rows_that_contradict_themselves_are_told(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        read_questions(own_file(tmp_path, change))
    assert "\n" not in str(caught.value) and "own.tsv" in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answer_info": {}}, "answer_info has no list of texts for 'ans0'"),
        ({"answer_info": {f"ans{i}": ["a", "old"] for i in range(3)}}, "0 of the answers are 'unknown'"),
        ({"additional_metadata": {"stereotyped_groups": "old"}}, "no stereotyped_groups"),
        ({"additional_metadata": None}, "no stereotyped_groups"),
        ({"question_polarity": "negative"}, "'negative': one of neg, nonneg; did you mean"),
        ({"context_condition": ""}, "'context_condition' is empty"),
        ({"label": 1.5}, "'1.5': one of 0, 1, 2"),
        ({"label": 1}, "after an ambiguous context"),
    ],
)
def test_bad_rows_in_the_published_form_are_told(tmp_path, change, message):
    path = tmp_path / "bbq.jsonl"
    path.write_text(json.dumps({**PUBLISHED["documents"][0], **change}), encoding="utf-8")
    with pytest.raises(UserError, match=f"row 1.*{message}|{message}.*row 1"):
        read_questions(path)


def test_a_missing_field_is_named(tmp_path):
    document = {name: value for name, value in PUBLISHED["documents"][0].items() if name != "label"}
    (tmp_path / "bbq.jsonl").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match="row 1: no field 'label'"):
        read_questions(tmp_path / "bbq.jsonl")


@pytest.mark.shared
def test_a_real_model_answers(shared_data):
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    assert model.tokenizer is not None
    rows = question_rows(Engine(model.config, model.params, model.tokenizer), QUESTIONS[:30])
    assert found(rows)["accuracy", "ambiguous"].n == 16 and np.isfinite([row.value for row in rows]).all()
