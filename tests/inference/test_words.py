"""What a store holds, in words."""

import json

from limbeck.inference.words import about, options_of, reader
from limbeck.tasks.label_metrics import join_labels


def test_an_answer_is_a_text_or_the_likeliest_option_or_numbers():
    assert reader({})({"text": " hesperidium\n", "tokens": [1]}) == "hesperidium"
    chosen = reader({"options": '["ham", "spam"]'})
    assert chosen({"logprobs": [-3.0, -1.0], "lengths": [1, 1]}) == "spam"
    assert chosen({"logprobs": [-1.0, -1.0]}) == "ham"  # the first of equals
    assert chosen({"values": [0.5, 2.5]}) == "spam"
    assert chosen({"text": "written"}) == "written"
    several = {"options": '["ham", "spam", "eggs"]', "job": '{"kind": "classify", "answers": "multi_label"}'}
    assert reader(several)({"values": [0.1, -2.0, 3.0]}) == join_labels(["ham", "eggs"], ["ham", "spam", "eggs"])
    assert reader({"options": "null"})({"values": [3.14159265]}) == "3.14159"
    assert reader({})({"values": [0.5, -1.0]}) == "[0.5, -1.0]"


def test_a_manifest_in_words():
    manifest = {
        "weights": "ab" * 32,
        "task": "12" * 32,
        "normalisation": "nfc_casefold",
        "options": json.dumps([f"گزینه {i}" for i in range(15)], ensure_ascii=False),
        "job": json.dumps({"kind": "score", "shots": 4, "model": "other", "adapter": None, "stop": []}),
        "model": "runs/a/model",
        "some_thing": "x",
        "empty": "null",
    }
    told = about(manifest)
    assert [name for name, _ in told] == [
        "answers", "spelling", "model", "kind", "shots", "some thing", "task", "weights",
    ]  # fmt: skip
    words = dict(told)
    assert words["answers"].startswith("گزینه 0, گزینه 1, ") and words["answers"].endswith("گزینه 11 and 3 more")
    assert words["spelling"].endswith("; upper and lower case are the same")
    assert words["weights"] == "abababababab…" and words["task"] == "121212121212…"
    assert words["model"] == "runs/a/model" and words["shots"] == "4"


def test_what_nobody_foresaw_is_shown_as_it_is():
    told = about({"normalisation": "later", "job": "no json", "note": "<b>"})
    assert told == [("spelling", "later"), ("note", "<b>")]
    assert about({"job": "[1, 2]"}) == [] and options_of({}) is None
