"""The folder of a set that a teacher wrote: its records, and a card that the hub reads and that says what it is."""

import json

from huggingface_hub import DatasetCard

from limbeck.evaluation.bias.mentions import load_group_words
from limbeck.evaluation.data_audit.card import WrittenSet, write_data_set
from limbeck.evaluation.data_audit.distilled import audit_distilled
from limbeck.model.pretrained.lineage import Origin
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

ROWS = tuple({"id": str(i), "input": f"she has {i} pears", "output": "ab"[i % 2]} for i in range(40))
TASK = Task("fruit", {"train": ROWS[:30], "test": ROWS[30:]}, Template(), ("a", "b"))
TEACHER = (Origin("big|one", "tuned", 10, "ab" * 32, method="lora"), Origin("base", "found", 10, "cd" * 32))
WROTE = [{**row, "output": "a"} for row in ROWS[:20]] + [
    {"id": f"written/{i}", "input": f"mail me at jane{i}@mail.example.org", "output": "b"} for i in range(3)
]


def written(folder, wrote=WROTE):
    found = audit_distilled(TASK, ROWS[:30], wrote, words=load_group_words(), filtered=[("drafts without an end", 7)])
    write_data_set(folder, WrittenSet("fruit, by big one", TASK.kind, wrote, TEACHER, {"written": 1}, found))
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_records_are_there_to_the_letter(tmp_path):
    written(tmp_path / "set")
    lines = (tmp_path / "set" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == WROTE


def test_the_card_says_who_wrote_it_what_shifted_and_what_was_left_out(tmp_path):
    text = written(tmp_path / "set")
    for words in ("23 records", r"big\|one: tuned lora", "base (found)", "jane", "drafts without an end"):
        assert (words in text) == (words != "jane"), words
    assert "| email |" in text and "| of these answered | 20 |" in text
    assert "Label rates, teacher and data" not in text or "female" in text
    told = json.loads((tmp_path / "set" / "card.json").read_text(encoding="utf-8"))
    assert told["teacher"] == "ab" * 32 and told["audit"]["distilled"]["dropped"]["count"] == 10


def test_the_card_tells_of_no_query_that_was_not_asked(tmp_path):
    own, asked, both = (written(tmp_path / str(i), each) for i, each in enumerate((WROTE[20:], WROTE[:20], WROTE)))
    for told in ("given", "answered |", "dropped", "answers to them", "Queries of the task"):
        assert told not in own and told in asked and told in both, told
    assert "queries of the teacher's own | 3" in own and "wrote by itself" in own and "wrote by itself" in both
    assert "wrote by itself" not in asked


def test_its_metadata_is_what_the_hub_reads(tmp_path):
    found = DatasetCard(written(tmp_path / "set")).data.to_dict()
    assert found["size_categories"] == ["n<1K"] and found["annotations_creators"] == ["machine-generated"]
    assert found["configs"][0]["data_files"] == "train.jsonl" and found["task_categories"] == ["text-classification"]


def test_the_same_set_gives_the_same_bytes(tmp_path):
    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert (tmp_path / "a" / "card.json").read_bytes() == (tmp_path / "b" / "card.json").read_bytes()
