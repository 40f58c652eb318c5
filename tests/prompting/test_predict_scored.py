"""Options compared by hand, where a table of log-likelihoods stands for the model, in every view of their scores."""

import dataclasses
import json
import math
from typing import get_args

import numpy as np
import pytest
from table_engine import CONFIG, ENGINE, FRUITS, KINDS, MANY, TOKENIZER, Table, asked, by_hand, sums, task

from limbeck.inference.requests import ScoreRequest, Scores
from limbeck.model.errors import UserError
from limbeck.prompting.config import View
from limbeck.prompting.predict import Asked, ensemble, make_requests, read_answer, stored_scores
from limbeck.prompting.scores import view
from limbeck.tasks.template import Template


def unigrams(chances: dict[str, float]) -> Table:
    """A letter is as likely wherever it stands; what is not named shares the rest."""
    rest = (1 - sum(chances.values())) / (CONFIG.vocab_size - len(chances))
    row_V = np.full(CONFIG.vocab_size, math.log(rest))
    for letter, chance in chances.items():
        row_V[TOKENIZER.encode(letter)[0]] = math.log(chance)
    return Table(row_V[None])


def test_a_unigram_model_scored_by_hand():
    """'a' is 1/2, 'b' 1/4, ' ' and newline 1/16: the answer ' aab' is log(1/16 * 1/4 * 1/4 * 1/16), and so on."""
    table = unigrams({"a": 1 / 2, "b": 1 / 4, " ": 1 / 16, "\n": 1 / 16})
    letters = task(("aab", "b", "ab"), (("x", "b"), ("y", "aab")))
    (one,) = asked(letters, table, letters.splits["test"], view="per_token", shots=1).asked
    log2 = [-(4 + 1 + 1 + 2 + 4), -(4 + 2 + 4), -(4 + 1 + 2 + 4)]
    assert one.text == "x: b\ny:" and one.option_texts == (" aab\n", " b\n", " ab\n")
    np.testing.assert_allclose(one.scores["logprob"], np.array(log2) * math.log(2))
    assert one.scores["tokens"] == one.scores["characters"] == one.scores["bytes"] == (5, 3, 4)
    np.testing.assert_allclose(one.scores["score"], np.array(log2) * math.log(2) / (5, 3, 4))
    assert one.answer == "aab" and asked(letters, table, letters.splits["test"]).answers == ("b",)
    assert (one.id, one.right, one.shown, one.dropped) == ("1", "aab", ("0",), 0)


def test_the_views_are_of_one_stored_result():
    table, closed = sums(), task(("شفت", "pome", "0", ""), (("plum", "شفت"), ("pear", "pome"), ("e", "")), test=2)
    records = closed.splits["test"]
    found = asked(closed, table, records, view="domain_pmi")
    stored = stored_scores([type(one)(**json.loads(json.dumps(one._asdict()))) for one in found.asked])
    for row, record in enumerate(records):
        for column, option in enumerate(closed.options or ()):
            text = f" {option}\n"
            sum_, alone = by_hand(table, f"{record['input']}:", text), by_hand(table, "", text)
            views: dict[View, float] = {
                "sum": sum_,
                "per_token": sum_ / len(text.encode()),
                "per_byte": sum_ / len(text.encode()),
                "per_character": sum_ / len(text),
                "pmi": sum_ - alone,
                "domain_pmi": sum_ - by_hand(table, ":", text),
            }
            for name, value in views.items():
                assert view(stored, name)[row, column] == pytest.approx(value), (name, option)
    for name in get_args(View):
        again = asked(closed, table, records, view=name)
        best = view(stored, name).argmax(axis=1)
        assert again.answers == tuple((closed.options or ())[i] for i in best)
        np.testing.assert_allclose([one.scores["score"] for one in again.asked], view(stored, name))
    with pytest.raises(UserError, match="answers were written"):
        stored_scores([])


def test_what_needs_no_record_is_asked_once():
    closed = task(KINDS, FRUITS * 2, test=4)
    closed = dataclasses.replace(closed, splits={"train": closed.splits["train"], "test": closed.splits["test"]})
    table = sums()
    asked(closed, table, closed.splits["test"], view="pmi")
    prompts = [TOKENIZER.decode(request.prompt) for request in table.scored]
    assert prompts == ["plum:", "pear:", "lemon:", "fig:", "", ":"]
    told = dataclasses.replace(closed, template=Template(target=" {output}, so {input}"))
    table = sums()
    found = asked(told, table, told.splits["test"], view="pmi")
    assert len(table.scored) == 3 * 4  # what follows is another text for each record
    assert found.asked[0].scores["alone"][1] == pytest.approx(by_hand(table, "", " pome, so plum\n"))


def test_a_closed_answer_is_the_likeliest_option():
    closed = task(KINDS)
    [request], _ = make_requests(closed, ENGINE, closed.splits["test"])
    assert isinstance(request, ScoreRequest)
    assert [TOKENIZER.decode(option) for option in request.options] == [f" {o}\n" for o in KINDS]
    assert read_answer(closed, Scores((-3.0, -1.0, -2.0, -1.0), (1, 1, 1, 1))) == "pome"
    predictions = asked(closed, ENGINE, closed.splits["test"], shots=1)
    assert predictions.answers[0] in KINDS
    [scores] = ENGINE.score([ScoreRequest(predictions.asked[0].prompt_ids, request.options)])
    np.testing.assert_allclose(predictions.asked[0].scores["logprob"], scores.logprobs, rtol=1e-5)


def test_the_order_of_options_changes_no_answer():
    turned = dataclasses.replace(MANY, options=KINDS[::-1])
    for settings in ({}, {"calibration": "contextual", "view": "pmi"}, {"calibration": "batch", "view": "per_token"}):
        first, second = (asked(one, sums(), MANY.splits["test"], shots=1, **settings) for one in (MANY, turned))
        assert first.answers == second.answers and len(set(first.answers)) > 1
        for one, other in zip(first.asked, second.asked, strict=True):
            np.testing.assert_allclose(one.scores["score"], other.scores["score"][::-1])


def test_prompts_together():
    """By hand: 0.5 and 0.5 of one prompt with 0.1 and 0.9 of the other are 0.3 and 0.7."""
    def found(*rows) -> list[Asked]:
        one = asked(MANY, sums(), MANY.splits["test"][:1]).asked[0]
        return [one._replace(scores={"score": row}) for row in rows]

    two = dataclasses.replace(MANY, options=KINDS)
    first = found((0.0, 0.0, -99.0, -99.0), (math.log(0.6), math.log(0.4), -99.0, -99.0))
    second = found((math.log(0.1), math.log(0.9), -99.0, -99.0), (math.log(0.5), math.log(0.5), -99.0, -99.0))
    assert ensemble(two, [first, second]) == ("pome", "drupe")
    alone = asked(MANY, sums(), MANY.splits["test"])
    assert ensemble(MANY, [alone.asked] * 2) == alone.answers


def test_prompts_whose_answers_were_written_vote():
    one = asked(MANY, sums(), MANY.splits["test"][:1]).asked[0]

    def said(*answers: str, **fields) -> list[Asked]:
        return [one._replace(answer=answer, scores={}, **fields) for answer in answers]

    prompts = [said("pome", "nut", "", ""), said("drupe", "nut ", "", "drupe"), said("drupe", "pome", "", "")]
    for spoken in (MANY, dataclasses.replace(MANY, options=None, kind="generation")):
        assert ensemble(spoken, prompts) == ("drupe", "nut", "", "drupe")
        assert ensemble(spoken, prompts[:2]) == ("pome", "nut", "", "drupe")  # of equals the earlier prompt's
    scored = [one, one._replace(scores={"score": (-9.0, 0.0, -9.0, -9.0)}, answer="pome")]
    assert ensemble(MANY, [scored, said("nut", "pome")]) == (one.answer, "pome")  # some wrote: all vote
    pairs = (("plum", "1"), ("pear", "2"))
    numbers = [said("1", "x", "nan"), said("2.5", "7", ""), said("900", "5", "")]
    assert ensemble(task(None, pairs, kind="regression"), numbers) == ("2.5", "6", "")
