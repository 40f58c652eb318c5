"""The whole audit of a task, of texts and of what a teacher wrote: planted faults, plain JSON, tables."""

import json
import random
from dataclasses import replace

import pytest

from limbeck.evaluation.data_audit.audit import audit_task, audit_texts
from limbeck.evaluation.data_audit.distilled import audit_distilled
from limbeck.evaluation.data_audit.duplicates import near_groups
from limbeck.evaluation.data_audit.tables import audit_tables
from limbeck.model.errors import UserError
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template
from limbeck.tasks.texts import read_texts

WORDS = {"gender": {"female": frozenset({"she"}), "male": frozenset({"he"})}}
TEMPLATE = Template("{text}\nlabel:", " {label}", separator="\n\n")
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def task_of(train, test, options=("bad", "good"), **rest):
    splits = {
        split: tuple({"id": f"{split}/{i}", "text": text, "label": label} for i, (text, label) in enumerate(rows))
        for split, rows in (("train", train), ("test", test))
    }
    return Task("reviews", splits, TEMPLATE, options, answer_field="label", **rest)


TRAIN = [
    ("She liked the film.", "good"),
    ("she  liked the FILM.", "good"),
    ("He liked the film not at all", "bad"),
    ("he liked the film not at all", "good"),
    ("She wrote to a@b.org", "bad"),
    (f"before there is a story of ships and islands that is rather long, {LONG} and what came later", "good"),
    ("something of its own about the sea", "bad"),
]
TEST = [
    ("He liked the film not at all", "bad"),
    (LONG, "good"),
    ("quite another thing", "bad"),
    ("Something of its own about the seas", "bad"),
]


def test_planted_faults_are_found_and_placed():
    found = audit_task(task_of(TRAIN, TEST), words=WORDS)
    train = found["duplicates"]["train"]
    assert train["exact"]["groups"] == 2 and train["exact"]["extra"] == 2
    assert train["exact"]["where"][0] == {"records": 2, "places": ["train/0", "train/1"]}
    assert train["contradictions"]["where"] == [{"records": 2, "places": ["train/2", "train/3"]}]
    assert train["contradictions"]["records"] == 2 and train["near"]["extra"] == 2
    leak = found["overlap"]["test"]
    assert leak["exact"]["count"] == 1 and leak["exact"]["where"] == [{"place": "test/0", "source": "train/2"}]
    assert leak["other_answer"]["count"] == 0
    assert leak["near"]["where"] == [{"place": "test/3", "source": "train/6"}]
    assert leak["ngram"]["where"] == [{"place": "test/1", "source": "train/5", "covered": 1.0}]
    assert leak["ngram"]["share"]["n"] == 1 and leak["short"]["share"]["value"] == pytest.approx(1 / 3)
    assert found["personal"]["email"] == {
        "found": 1, "records": 1, "where": [{"place": "train/4", "shown": "a…@…"}],
    }


def test_groups_and_labels_are_counted_without_the_words_of_the_template():
    task = replace(task_of(TRAIN, TEST), template=Template("She or he: {text}\nlabel:", " {label}", separator="\n\n"))
    found = audit_task(task, words=WORDS)
    assert found["records"] == {"train": 7, "test": 4}
    assert found["labels"]["train"]["good"]["value"] == pytest.approx(4 / 7)
    assert found["groups"]["gender/female"]["records"]["value"] == pytest.approx(3 / 7)
    row = next(row for row in found["label_by_group"] if (row["group"], row["label"]) == ("gender/female", "good"))
    assert row["rate"]["value"] == pytest.approx(2 / 3) and row["others"]["value"] == pytest.approx(2 / 4)
    assert found["overlap"]["test"]["exact"]["count"] == 1


def test_an_answer_of_another_kind_in_training_is_told():
    leak = audit_task(task_of(TRAIN, [("SHE liked the film.", "bad")]), words=WORDS)["overlap"]["test"]
    assert leak["other_answer"] == {"count": 1, "where": [{"place": "test/0", "source": "train/0"}]}


def test_the_audit_is_plain_json_in_one_order_and_the_same_again():
    def audit():
        return audit_task(task_of(TRAIN, TEST), words=WORDS, filtered=[("too long", 3)], ngram=5)

    text = json.dumps(audit(), allow_nan=False)
    assert text == json.dumps(audit(), allow_nan=False)
    assert list(json.loads(text)) == [
        "name", "kind", "records", "lengths", "scripts", "languages", "labels", "groups", "label_by_group",
        "duplicates", "overlap", "personal", "skipped", "filtered",
    ]


def test_counts_and_rates_do_not_depend_on_the_order_of_records():
    def plain(found):  # without what names places
        if isinstance(found, dict):
            return {key: plain(value) for key, value in found.items() if key != "where"}
        return [plain(each) for each in found] if isinstance(found, list) else found

    shuffled = random.Random(3).sample(TRAIN, len(TRAIN))
    one, other = (audit_task(task_of(train, TEST), words=WORDS) for train in (TRAIN, shuffled))
    assert plain(one) == plain(other)


def test_of_a_generation_the_answers_are_looked_at_too():
    rows = [("who?", f"call +98 912 345 6789, {LONG}"), ("what?", "that")]
    found = audit_task(task_of(rows, [(LONG, "x")], options=None), words=WORDS)
    assert "labels" not in found and "label_by_group" not in found
    assert found["personal"]["phone"]["found"] == 1
    assert found["overlap"]["test"]["ngram"]["share"]["value"] == 1.0


def test_a_regression_and_a_multi_label_task_are_told_in_their_way():
    numbers = audit_task(task_of([("a", "1"), ("b", "2.5")], [("c", "4")], None, kind="regression"), words=WORDS)
    assert numbers["answers"]["train"]["median"] == 1.75 and "labels" not in numbers
    several = task_of([("a", "x, y"), ("b", "none")], [("c", "y")], ("x", "y"), kind="multi_label")
    assert audit_task(several, words=WORDS)["labels"]["train"]["x"]["value"] == 0.5


def test_the_worst_leaks_are_told_first():
    tests = ["new a b c d", "a b c d", "nothing of it is there", "new and a b c d"]
    leak = audit_texts(["so a b c d e"], tests, words=WORDS, ngram=4)["overlap"]["test"]["ngram"]
    assert [(each["place"], each["covered"]) for each in leak["where"]] == [
        ("test/1", 1.0), ("test/0", 0.5), ("test/3", pytest.approx(1 / 3)),
    ]


def test_what_is_like_training_through_another_held_out_text_alone_is_not_told():
    """A is like B, and B like C, but A is not like C: of training texts A, a group of three has two that are near."""
    a, b, c = (" ".join(f"w{i}" for i in range(start, start + 100)) for start in (0, 6, 12))
    texts = ["nothing of the kind at all", a, f"{a} and"]
    near = audit_texts(texts, [c, b, "quite another"], words=WORDS)["overlap"]["test"]["near"]
    assert near["count"] == 1 and near["where"] == [{"place": "test/1", "source": "train/1"}]
    near = audit_texts([texts[0], a, c], [f"{c} and", b], words=WORDS)["overlap"]["test"]["near"]
    assert near["where"] == [{"place": "test/0", "source": "train/2"}, {"place": "test/1", "source": "train/1"}]


def test_texts_are_audited_with_or_without_held_out_ones():
    found = audit_texts([f"it is {LONG}", "other"], [LONG], words=WORDS, places=["a.txt, row 1", "a.txt, row 2"])
    assert found["overlap"]["test"]["ngram"]["where"][0]["source"] == "a.txt, row 1"
    assert audit_texts(["a text"], words=WORDS)["overlap"] == {}
    assert audit_texts([], words=WORDS)["records"] == {"train": 0}


def test_tables_have_whole_rows_of_single_lines():
    task = replace(task_of([*TRAIN, ("a\nb\x1b[31m", "bad")], TEST), skipped=("f.csv, row 3: no label",))
    found = audit_task(task, words=WORDS, filtered=[("too\nlong", 3)])
    tables = audit_tables(json.loads(json.dumps(found)))
    for table in tables:
        assert table.rows and all(len(row) == len(table.header) for row in table.rows)
        assert all(isinstance(cell, str) and "\n" not in cell for row in table.rows for cell in row)
    by_title = {table.title: table for table in tables}
    assert by_title["Left out"].rows == [["too long", "3"], ["bad rows: f.csv, row 3: no label", "1"]]
    assert by_title["Personal data by its form"].rows[0] == ["email", "1", "1", "train/4 a…@…"]
    assert "What the teacher wrote" not in by_title
    assert audit_tables(audit_texts([], words=WORDS))


def test_many_labels_are_cut_to_those_that_differ_most():
    labels = tuple(f"l{i:02}" for i in range(30))
    train = [(f"{'she' if i % 30 == 7 or i % 60 == 3 else 'it'} w{i}", labels[i % 30]) for i in range(300)]
    found = audit_task(task_of(train, [("x", "l00")], labels), words=WORDS)
    by_title = {table.title: table for table in audit_tables(found)}
    assert len(found["label_by_group"]) == 30 and len(by_title["Labels"].rows) == 20
    assert [row[1] for row in by_title["Labels by group"].rows[:2]] == ["l07", "l03"]
    assert by_title["Labels"].note == "10 more labels."


GOLD = [(f"{'she' if i % 2 else 'he'} text number {i}", "good" if i % 4 < 2 else "bad") for i in range(40)]


def test_what_a_teacher_wrote_is_matched_by_id_and_its_shift_is_told():
    task = task_of(GOLD, TEST)
    gold = task.splits["train"]
    kept = [{**record, "label": "good" if "she" in record["text"] else record["label"]} for record in gold[:36]]
    own = [{"id": "written/0", "text": "he liked the film not at all", "label": "bad"}]
    found = audit_distilled(task, gold, [*kept, *own], words=WORDS)
    told = found["distilled"]
    assert (told["given"], told["answered"], told["answers"], told["own_queries"]) == (40, 36, 36, 1)
    assert told["dropped"] == {"count": 4, "where": [f"train/{i}" for i in range(36, 40)]}
    assert told["agreement"]["value"] == 0.75
    shifts = {(row["group"], row["label"]): row["shift"]["value"] for row in told["label_shift"]}
    assert shifts["gender/female", "good"] == 0.5 and shifts["gender/male", "good"] == 0
    assert found["overlap"]["test"]["exact"]["where"] == [{"place": "test/0", "source": "written/0"}]
    assert json.dumps(found, allow_nan=False)
    assert audit_tables(found)[0].title == "What the teacher wrote"


def test_answers_drawn_several_times_belong_to_one_record():
    task = task_of([("a", "x"), ("b", "y")], [("c", "z")], options=None)
    drawn = [{"id": f"train/0/{i}", "text": "a", "label": label} for i, label in enumerate(("x", "X ", "w", "w"))]
    told = audit_distilled(task, task.splits["train"], drawn, words=WORDS)["distilled"]
    assert (told["answered"], told["answers"], told["dropped"]["count"], told["own_queries"]) == (1, 4, 1, 0)
    assert told["agreement"]["value"] == 0.5 and "label_shift" not in told


def test_queries_of_its_own_alone_have_nothing_to_agree_with():
    task = task_of([("a", "x")], [("c", "z")], options=None)
    found = audit_distilled(task, task.splits["train"], [{"id": "written/0", "text": "q", "label": "r"}], words=WORDS)
    assert found["distilled"] == {"own_queries": 1}  # none was asked, so none was dropped
    table = next(table for table in audit_tables(found) if table.title == "What the teacher wrote")
    assert table.rows == [["queries of the teacher's own", "1"]]


def test_a_teacher_that_wrote_nothing_is_the_users_mistake():
    task = task_of(GOLD, TEST)
    with pytest.raises(UserError, match="no train records"):
        audit_distilled(task, task.splits["train"], [], words=WORDS)


@pytest.mark.shared
def test_real_messages_have_phones_and_copies_across_splits(shared_data):
    task = load_task(shared_data / "sms_spam")
    task = replace(task, splits={"train": task.splits["train"][:1500], "test": task.splits["test"][:300]})
    found = audit_task(task, words=WORDS)
    spam = {record["id"] for record in task.splits["train"] if record["label"] == "spam"}
    assert found["personal"]["phone"]["records"] > 100 and found["personal"]["card"]["found"] == 0
    assert {where["place"] for where in found["personal"]["phone"]["where"]} <= spam
    assert found["overlap"]["test"]["exact"]["count"] > 5 and found["duplicates"]["train"]["exact"]["extra"] > 10


@pytest.mark.shared
def test_real_stories_have_nothing_personal_and_no_copies(shared_data):
    texts = [document.text for document in read_texts(shared_data / "tinystories").documents[:200]]
    found = audit_texts(texts, words=WORDS)
    assert all(each["found"] == 0 for each in found["personal"].values())
    assert found["duplicates"]["train"]["near"]["groups"] == 0
    assert list(found["languages"]["train"]) == ["en"]


def test_texts_that_are_alike_by_way_of_a_held_out_one_are_no_copies_in_training():
    """A and C are alike to B alone, which is held out: nothing could go from training."""
    words_of_b = [f"word{i}" for i in range(60)]
    a, b, c = (" ".join(words_of_b[i:]) for i in (0, 8, 16))
    assert [len(each) for each in near_groups([a, b, c])] == [3] and not near_groups([a, c])
    found = audit_task(task_of([(a, "good"), (c, "good"), ("other words by far", "bad")], [(b, "good")]), words=WORDS)
    assert found["duplicates"]["train"]["near"]["groups"] == 0
    assert found["overlap"]["test"]["near"]["share"]["value"] == 1
