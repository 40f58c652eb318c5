"""Questions with three answers as they are read: BBQ's own beside lm-eval's numbers, the built-in ones, files."""

import json
from pathlib import Path

import numpy as np
import pytest

from limbeck.evaluation.bias.questions import (
    CONDITIONS,
    Question,
    load_questions,
    question_rows_of,
    read_questions,
)
from limbeck.model.errors import UserError

FIXTURE = Path(__file__).parent / "fixtures" / "published.json"
PUBLISHED = json.loads(FIXTURE.read_text(encoding="utf-8"))
QUESTIONS = load_questions()


@pytest.fixture
def published(tmp_path):
    """The questions of the fixture, read from a file in BBQ's form."""
    path = tmp_path / "bbq.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in PUBLISHED["documents"]), encoding="utf-8")
    return read_questions(path)


def found(rows):
    return {(row.probe.removeprefix("questions_"), row.group): row for row in rows}


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
