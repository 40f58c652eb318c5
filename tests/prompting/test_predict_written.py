"""Answers that are written: drawn and voted on, read as options, found in reasons; what is asked for them."""

import dataclasses

import numpy as np
import pytest
from table_engine import ENGINE, FRUITS, KINDS, TOKENIZER, Table, asked, task

from limbeck.inference.requests import GenerateRequest, Generation
from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import choose
from limbeck.prompting.predict import answer_tokens, make_requests, predict, query_text, read_answer
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template


def scripted(*texts: str, logprobs=(0.0,) * 9) -> Table:
    """Says the n-th text as the n-th sample of any prompt."""
    return Table(
        np.zeros((1, 1)),
        lambda r: Generation(texts[r.sample], tuple(range(len(texts[r.sample]))), logprobs[r.sample], True),
    )


def test_drawn_answers_vote():
    engine = scripted(" pome", " drupe ", "pome", "berry")
    (one,) = asked(task(), engine, task().splits["test"], samples=4, seed=7, max_new_tokens=5).asked
    assert one.answer == "pome" and one.read == ("pome", "drupe", "pome", "berry")
    assert one.generations == (" pome", " drupe ", "pome", "berry") and one.right == "syconium"
    assert [request.sample for request in engine.drawn] == [0, 1, 2, 3]
    assert {request.sampling for request in engine.drawn} == {engine.drawn[0].sampling}
    sampling = engine.drawn[0].sampling
    assert (sampling.temperature, sampling.seed, sampling.max_new_tokens) == (0.7, 7, 5)
    assert engine.drawn[0].stop == ("\n",)
    # By the token 'b' is twice exp(-1.3), less than exp(-2 / 4); whole texts of that likelihood would say otherwise.
    engine = scripted("b", "aaaa", "b", logprobs=(-1.3, -2.0, -1.3))
    found = asked(task(), engine, task().splits["test"], samples=3, vote="weighted")
    assert found.answers == ("aaaa",) and found.asked[0].logprobs == (-1.3, -2.0, -1.3)
    assert found.asked[0].tokens == (1, 4, 1)
    assert asked(task(), engine, task().splits["test"], samples=3).answers == ("b",)


def test_several_records_keep_their_own_samples():
    many = task(None, FRUITS, test=3)
    said = lambda r: Generation(f"{TOKENIZER.decode(r.prompt)}{r.sample}", (1,), 0.0, True)  # noqa: E731
    found = asked(many, Table(np.zeros((1, 1)), said), many.splits["test"], samples=3)
    assert [one.read for one in found.asked] == [
        tuple(f"{record['input']}:{sample}" for sample in range(3)) for record in many.splits["test"]
    ]


def test_options_that_are_drawn_are_read_in_words_or_letters():
    closed = task(KINDS)
    engine = scripted("Pome", " pome", "drupe and pome", "nothing")
    (one,) = asked(closed, engine, closed.splits["test"], samples=4).asked
    assert one.read == ("pome", "pome", "", "") and one.answer == "pome" and not one.scores
    config = PromptConfig(samples=2, verbalisers=(("pome", "ستر"), ("drupe", "POME")))
    read = lambda text, config: read_answer(closed, Generation(text, (), 0.0, True), config)  # noqa: E731
    assert [read(text, config) for text in ("ستر", "POME", "pome", "hesperidium")] == [
        "pome",
        "drupe",
        "drupe",
        "hesperidium",
    ]
    months = task(("May", "may", ""), (("x", "May"), ("y", "may")))
    texts = ("may", "May", "MAY", "")
    said = [read_answer(months, Generation(text, (), 0.0, True), PromptConfig(samples=2)) for text in texts]
    assert said == ["may", "May", "", ""]
    letters = PromptConfig(samples=2, form="multiple_choice")
    texts = ("B", " C.", "(A) drupe", "b", "pome", "D) what?", "E", "A drupe")
    assert [read(text, letters) for text in texts] == ["pome", KINDS[2], "drupe", "pome", "pome", KINDS[3], "", ""]


def test_reasons_are_written_and_the_answer_is_found_in_them():
    config = {"reasoning": "Step by step:", "extract": r"#### (-?\d+)", "max_new_tokens": 40}
    added = task(None, (("1 + 1", "2"), ("2 + 3", "5"), ("7 * 6", "42")))
    engine = scripted(" 7 six times. #### 41. No, #### 42 ")
    (one,) = asked(added, engine, added.splits["test"], **config).asked
    assert one.answer == "42" and one.text == "7 * 6: Step by step:" and engine.drawn[0].sampling.temperature == 0
    assert asked(added, scripted("It is 42."), added.splits["test"], **config).answers == ("",)
    engine = scripted("#### 1", "no", "no", "#### 42", "#### 42")
    assert asked(added, engine, added.splits["test"], samples=5, **config).answers == ("42",)  # nothing is no vote
    closed = task(KINDS)
    persian = {"reasoning": "گام‌به‌گام:", "extract": "پاسخ: (.*)", "verbalisers": (("pome", "دانه‌دار"),)}
    engine = scripted(" چون پاسخ: دانه‌دار ")
    assert asked(closed, engine, closed.splits["test"], max_new_tokens=9, **persian).answers == ("pome",)
    with pytest.raises(UserError, match="reasoning='Step by step:': say by max_new_tokens="):
        asked(added, engine, added.splits["test"], reasoning="Step by step:", extract="(.)")
    with pytest.raises(UserError, match=r"record '0': '\\n2\\n' has the separator '\\n' in it.*separator="):
        asked(added, engine, added.splits["test"], target="\n{output}")
    told = dataclasses.replace(added, template=Template(target=" {input} is {output}"))
    assert answer_tokens(told, TOKENIZER, PromptConfig(reasoning="So", extract="(.)")) == len(" 1 + 1 is 2\n") + 1


def test_reasons_of_many_lines_in_the_examples():
    """As GSM8K has them: what the records call steps stands before the answer, and says how long one may be."""
    steps = "1 + 1 = 2\n2 * 3 = 6"
    records = [{"id": str(i), "question": f"six? {i}", "steps": steps, "answer": "6"} for i in range(3)]
    template = Template("Q: {question}\nA:", " {steps}\n#### {answer}", "\n\n")
    splits = {"train": tuple(records[:2]), "test": tuple(records[2:])}
    gsm = Task("gsm", splits, template, None, answer_field="answer", rationale_field="steps")
    engine = scripted(" 7 - 1 = 6\n#### 6")
    (one,) = asked(gsm, engine, gsm.splits["test"], shots=1, extract=r"#### (\S+)").asked
    solved = f"Q: six? {one.shown[0]}\nA: {steps}\n#### 6\n\n"
    assert one.text == f"{solved}Q: six? 2\nA:" and one.answer == one.right == "6"
    [request] = engine.drawn
    assert request.stop == ("\n\n",) and request.sampling.max_new_tokens == len(f" {steps}\n#### 6\n\n") + 1


def test_an_open_answer_is_generated_up_to_the_separator():
    open_task = task()
    ((request, *_), dropped) = make_requests(open_task, ENGINE, open_task.splits["test"], PromptConfig(shots=2))
    assert isinstance(request, GenerateRequest) and request.stop == ("\n",) and dropped == 0
    assert request.prompt.count(TOKENIZER.bos_id) == 1 and request.prompt[0] == TOKENIZER.bos_id
    shown = choose(open_task, open_task.splits["test"][0], 2, 0)
    assert TOKENIZER.decode(request.prompt) == open_task.prompt(open_task.splits["test"][0], shown)
    assert read_answer(open_task, Generation(" pome ", (), 0.0, True)) == "pome"
    assert answer_tokens(open_task, TOKENIZER) == len(" hesperidium\n") + 1 == request.sampling.max_new_tokens
    assert query_text(open_task, open_task.splits["test"][0]) == "fig"


def test_labels_and_numbers_are_generated_as_text():
    records = [{"id": str(i), "input": "plum", "output": "none"} for i in range(2)]
    parts = {"train": (records[0],), "test": (records[1],)}
    labelled = Task("moods", parts, Template(), ("joy", "anger"), kind="multi_label")
    [request], _ = make_requests(labelled, ENGINE, records[1:])
    assert isinstance(request, GenerateRequest)
    (answer,) = predict(labelled, ENGINE, labelled.splits["test"]).answers
    assert isinstance(answer, str)
    with pytest.raises(UserError, match="view='pmi', calibration='none': for options that are compared.*multi_label"):
        asked(labelled, ENGINE, records, view="pmi")


def test_an_answer_is_read_back_by_the_target():
    splits = {
        split: tuple({**record, "why": "stones"} for record in records) for split, records in task().splits.items()
    }
    told = Template(target=" {why}\n#### {output}", separator="\n\n")
    because = dataclasses.replace(task(), splits=splits, template=told)
    read = lambda text, **said: read_answer(because, Generation(text, (), 0.0, True), PromptConfig(**said))  # noqa: E731
    assert read(" stones\n#### so\n#### drupe ") == "drupe"
    assert read(" a drupe") == "a drupe"  # of another form: all that is written
    assert read(" stones\n#### drupe", target=" {output}") == "stones\n#### drupe"
    open_end = dataclasses.replace(because, template=Template(target=" {why}{output}"))
    with pytest.raises(UserError, match="cannot be read back"):
        answer_tokens(open_end, TOKENIZER)
