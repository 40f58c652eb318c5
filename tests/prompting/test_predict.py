"""Answers to a task's records, by hand where a table of log-likelihoods stands for the model; and what is stored."""

import dataclasses
import hashlib
import json
import math
from types import SimpleNamespace
from typing import Any, cast, get_args

import jax
import numpy as np
import pytest

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.prompting.calibration import domain_texts
from limbeck.prompting.config import PromptConfig, View
from limbeck.prompting.demonstrations import choose
from limbeck.prompting.predict import (
    Predictions,
    answer_tokens,
    ensemble,
    make_requests,
    predict,
    query_text,
    read_answer,
    stored_scores,
)
from limbeck.prompting.scores import view
from limbeck.tasks.task import Record, Task, Template

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=64
)
PARAMS = init(CONFIG, jax.random.key(0))
ENGINE = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
FRUITS = ("plum", "drupe"), ("pear", "pome"), ("lemon", "hesperidium"), ("fig", "syconium")
PLAIN = Template()
KINDS = ("drupe", "pome", "hesperidium", "syconium")


def task(options=None, pairs=FRUITS, test=1, template=PLAIN, **fields) -> Task:
    records = [{"id": str(i), "input": key, "output": value} for i, (key, value) in enumerate(pairs)]
    splits = {"train": tuple(records[:-test]), "test": tuple(records[-test:])}
    return Task("fruits", splits, template, options, **fields)


class Table:
    """An engine whose log-likelihood of a token hangs on the sum of those before it, modulo S; a table says how."""

    def __init__(self, logprob_SV: np.ndarray, said: Any = None, max_len: int = 999) -> None:
        self.tokenizer, self.config = TOKENIZER, SimpleNamespace(max_len=max_len)
        self.logprob_SV, self.said = logprob_SV, said
        self.scored: list[ScoreRequest] = []
        self.drawn: list[GenerateRequest] = []

    def prefix(self, adapter: str = "") -> int:
        return 0

    def of(self, ids, first: int) -> float:
        modulo = len(self.logprob_SV)
        return float(sum(self.logprob_SV[sum(ids[:at]) % modulo, ids[at]] for at in range(first, len(ids))))

    def score(self, requests) -> list[Scores]:
        self.scored += requests
        return [
            Scores(
                tuple(self.of((*request.prompt, *option), len(request.prompt)) for option in request.options),
                tuple(map(len, request.options)),
            )
            for request in requests
        ]

    def generate(self, requests) -> list[Generation]:
        self.drawn += requests
        return [self.said(request) for request in requests]


def log_softmax(rows) -> np.ndarray:
    rows = np.asarray(rows)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def asked(task: Task, engine: Any, records, **settings) -> Predictions:
    return predict(task, cast(Engine, engine), records, PromptConfig(**settings))


def sums(seed: int = 0) -> Table:
    return Table(log_softmax(np.random.default_rng(seed).normal(0, 2, (31, CONFIG.vocab_size))))


def by_hand(table: Table, before: str, after: str) -> float:
    """The log-likelihood of a text after another one, which may be empty: BOS stands before both."""
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode(before), *TOKENIZER.encode(after)]
    return table.of(ids, 1 + len(before.encode()))


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


@pytest.mark.parametrize("name", ["contextual", "domain", "batch"])
@pytest.mark.parametrize("of", ["sum", "per_token"])
def test_calibration_by_hand(name, of):
    table, closed = sums(1), task(KINDS, (*FRUITS, ("apple", "pome"), ("peach", "drupe")), test=3)
    records = closed.splits["test"]
    found = asked(closed, table, records, calibration=name, view=of, shots=1, pick="fixed", examples=("0",))

    def row(query: str) -> list[float]:
        texts = [f" {option}\n" for option in KINDS]
        sums = [by_hand(table, f"plum: drupe\n{query}:", text) for text in texts]
        return sums if of == "sum" else [a / len(text) for a, text in zip(sums, texts, strict=True)]

    logprob_NO = log_softmax([row(record["input"]) for record in records])
    if name == "batch":
        expected = logprob_NO - logprob_NO.mean(axis=0)
    else:
        texts = ("N/A", "[MASK]", "") if name == "contextual" else domain_texts(closed, 20, 0)
        expected = logprob_NO - np.log(np.exp(log_softmax([row(text) for text in texts])).mean(axis=0))
    np.testing.assert_allclose([one.scores["score"] for one in found.asked], log_softmax(expected), atol=1e-9)
    assert found.answers == tuple(KINDS[i] for i in expected.argmax(axis=1))
    assert [one.id for one in found.asked] == [record["id"] for record in records]
    plain = asked(closed, table, records, view=of, shots=1, pick="fixed", examples=("0",))
    assert [one.scores["logprob"] for one in found.asked] == [one.scores["logprob"] for one in plain.asked]


def test_prompts_without_content_have_examples_of_their_own():
    closed, table = task(KINDS, FRUITS * 3, test=4), sums()
    asked(closed, table, closed.splits["test"], calibration="contextual", shots=2, seed=3)
    texts = [TOKENIZER.decode(request.prompt) for request in table.scored]
    assert [text.rsplit("\n", 1)[-1] for text in texts] == ["plum:", "pear:", "lemon:", "fig:", "N/A:", "[MASK]:", ":"]
    for text, content in zip(texts[4:], ("N/A", "[MASK]", ""), strict=True):
        number = ("N/A", "[MASK]", "").index(content)
        blank = {"id": f"without content//{number}", "input": content, "output": ""}
        assert text == closed.prompt(blank, choose(closed, blank, 2, 3))


def test_each_group_has_blanks_of_its_own():
    pairs = [(f"{kind} {i}", KINDS[i % 4], kind) for kind in ("fruit", "tree") for i in range(6)]
    records = [{"id": a, "input": a, "output": b, "kind": c} for a, b, c in pairs]
    splits = {"train": tuple(records[::2]), "test": tuple(records[1::2])}
    grouped = Task("plants", splits, Template("{kind} {input}:"), KINDS, group_field="kind")
    whole = asked(grouped, sums(), grouped.splits["test"], calibration="contextual", shots=1)
    for kind in ("fruit", "tree"):
        own = [record for record in grouped.splits["test"] if record["kind"] == kind]
        alone = asked(grouped, sums(), own, calibration="contextual", shots=1)
        assert list(alone.asked) == [one for one in whole.asked if one.id.startswith(kind)]


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


def test_examples_that_do_not_fit_are_left_out_whole_and_counted():
    long = task(pairs=(("a" * 20, "b"), ("c" * 20, "d"), ("e" * 20, "f"), ("g" * 20, "h")))
    requests, dropped = make_requests(long, ENGINE, long.splits["test"], PromptConfig(shots=3))
    assert dropped == 2 and len(requests[0].prompt) + answer_tokens(long, TOKENIZER) <= 64
    text = TOKENIZER.decode(requests[0].prompt)
    assert text.count("\n") == 1 and text.endswith("g:")
    found = asked(long, ENGINE, long.splits["test"], shots=3)
    assert found.dropped == found.asked[0].dropped == 2 and len(found.asked[0].shown) == 1
    assert found.prompt_tokens == (len(requests[0].prompt),)
    with pytest.raises(UserError, match="record '3' with its 3 examples has .* 64 positions"):
        make_requests(long, ENGINE, long.splits["test"], PromptConfig(shots=3, overflow="error"))
    with pytest.raises(UserError, match="record '3' has .* 64 positions"):
        make_requests(*(lambda t: (t, ENGINE, t.splits["test"]))(task(pairs=(*FRUITS[:3], ("x" * 80, "y")))))


MANY = task(KINDS, [(f"{name} {i}", kind) for i in range(4) for name, kind in FRUITS], test=7)
EVERY: list[dict[str, Any]] = [
    {},
    {"shots": 2},
    {"shots": 2, "pick": "balanced", "order": "shuffled", "view": "domain_pmi"},
    {"shots": 1, "pick": "nearest", "calibration": "contextual"},
    {"shots": 2, "pick": "diverse", "order": "similar_last", "view": "per_byte", "calibration": "domain"},
    {"shots": 1, "pick": "bm25", "form": "multiple_choice", "query": "{input}\n{options}\n:", "max_new_tokens": 1},
    {"shots": 1, "form": "cloze", "query": "{input} is {output}."},
    {"shots": 1, "pick": "fixed", "samples": 3},
    {"reasoning": "so", "extract": "(.)$", "max_new_tokens": 6},
]


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_batches_order_and_company_of_records_change_nothing(settings):
    max_len = 128
    config = dataclasses.replace(CONFIG, max_len=max_len)
    records = MANY.splits["test"]
    whole = asked(MANY, Engine(config, PARAMS, TOKENIZER, batch_size=8), records, **settings)
    part = asked(MANY, Engine(config, PARAMS, TOKENIZER, batch_size=2), records[::-2], **settings)
    assert len(whole.answers) == len(records) and whole.dropped == 0
    for one, other in zip(whole.asked[::-2], part.asked, strict=True):
        same = {name: part for name, part in one._asdict().items() if name not in ("scores", "logprobs")}
        assert same == {name: part for name, part in other._asdict().items() if name not in ("scores", "logprobs")}
        assert one.scores.keys() == other.scores.keys()
        for name, values in one.scores.items():
            np.testing.assert_allclose(values, other.scores[name], atol=1e-4)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert one.prompt_sha256 == hashlib.sha256(one.text.encode()).hexdigest()
        assert one.prompt_ids == (TOKENIZER.bos_id, *TOKENIZER.encode(one.text))


def test_the_order_of_options_changes_no_answer():
    turned = dataclasses.replace(MANY, options=KINDS[::-1])
    for settings in ({}, {"calibration": "contextual", "view": "pmi"}, {"calibration": "batch", "view": "per_token"}):
        first, second = (asked(one, sums(), MANY.splits["test"], shots=1, **settings) for one in (MANY, turned))
        assert first.answers == second.answers and len(set(first.answers)) > 1
        for one, other in zip(first.asked, second.asked, strict=True):
            np.testing.assert_allclose(one.scores["score"], other.scores["score"][::-1])


def test_prompts_together():
    """By hand: 0.5 and 0.5 of one prompt with 0.1 and 0.9 of the other are 0.3 and 0.7."""
    def found(*rows) -> Predictions:
        one = asked(MANY, sums(), MANY.splits["test"][:1]).asked[0]
        return Predictions((), (), 0, tuple(one._replace(scores={"score": row}) for row in rows))

    two = dataclasses.replace(MANY, options=KINDS)
    first = found((0.0, 0.0, -99.0, -99.0), (math.log(0.6), math.log(0.4), -99.0, -99.0))
    second = found((math.log(0.1), math.log(0.9), -99.0, -99.0), (math.log(0.5), math.log(0.5), -99.0, -99.0))
    assert ensemble(two, [first, second]) == ("pome", "drupe")
    assert ensemble(MANY, [asked(MANY, sums(), MANY.splits["test"])] * 2) == asked(
        MANY, sums(), MANY.splits["test"]
    ).answers


def test_no_records_no_answers():
    assert predict(MANY, ENGINE, []) == Predictions((), (), 0, ())


def test_more_examples_than_there_are():
    with pytest.raises(UserError, match="10 shots.*9 records; ask for that many at most"):
        asked(MANY, ENGINE, MANY.splits["test"], shots=10)
    own: Record = MANY.splits["train"][0]
    with pytest.raises(UserError, match="record '0' would be shown its own answer"):
        asked(MANY, ENGINE, [own], shots=1, pick="fixed", examples=("0",))
