"""What every method was asked of one record is found again by its id or its number, and is shown so that it tells."""

import io

import pytest
from rich.console import Console

from limbeck.evaluation.asked import changes, in_words, load_asked, read_asked, record_view, write_asked
from limbeck.experiments.cli import main
from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig

FEW = {"shots": 2, "pick": "fixed", "examples": ["train/1", "train/8"], "separator": "\n\n", "seed": 3}
PROMPTED = [
    {
        "id": f"test/{n}", "prompt_sha256": f"{n:x}" * 64, "prompt_ids": [1, 2, 3],
        "text": f"[red]میوه {n}[/red]:\n\x1b[2J", "shown": ["train/1", "train/8"], "option_texts": [" a\n", " b\n"],
        "scores": {"score": [-1.5, -0.25]}, "dropped": 0, "answer": "b", "right": "b" if n else "a",
    }
    for n in range(3)
]  # fmt: skip
TUNED = [{"id": f"test/{n}", "answer": "a", "right": "a"} for n in range(3)]


@pytest.fixture
def run(tmp_path):
    write_asked(tmp_path, "few_shot", "accuracy", PROMPTED, FEW)
    write_asked(tmp_path, "full", "accuracy", TUNED)
    return tmp_path


def shown(run, record: str, width: int = 150) -> str:
    out = Console(file=io.StringIO(), width=width)
    out.print(record_view(run, record))
    return out.file.getvalue()  # type: ignore[union-attr]


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


@pytest.mark.parametrize("record", ["test/2", "2"])
def test_a_record_is_found_by_id_and_by_number(run, record):
    found = read_asked(run, record)
    assert found["few_shot"] == {**PROMPTED[2], "metric": "accuracy", "prompt": FEW}
    assert found["full"] == {**TUNED[2], "metric": "accuracy"}
    assert load_asked(run, "full")[2] == found["full"]


def test_a_text_with_any_line_separator_is_one_line_of_the_file(tmp_path):
    rows = [{"id": "0", "answer": "a\u2028b\x85c\r\n", "right": "a"}]
    write_asked(tmp_path, "full", "accuracy", rows)
    assert load_asked(tmp_path, "full") == [{**rows[0], "metric": "accuracy"}]


def test_it_is_shown_with_answers_scores_settings_and_the_very_prompt(run, capsys):
    text = shown(run, "test/0")
    assert "record test/0, right: a" in text
    assert "b       wrong" in line(text, "few_shot") and "right" in line(text, "full")
    assert "[red]میوه 0[/red]:" in text and "few_shot, 3 tokens" in text  # data is no markup
    assert "\x1b" not in text  # nor a command to the terminal
    assert "shots 2; pick 'fixed'; examples train/1, train/8; seed 3; separator '\\n\\n'" in line(text, "asked with")
    assert "train/1, train/8" in line(text, "examples") and "not fit" not in text
    assert "b -0.25, a -1.50" in line(text, "options") and "0" * 12 in text
    assert main(["report", str(run), "--record", "test/0"]) == 0 and "train/8" in capsys.readouterr().out


def test_settings_are_said_where_they_differ_and_only_there():
    prompt = PromptConfig(shots=2, pick="bm25", instruction="", seed=1)
    assert changes(prompt) == {"shots": 2, "pick": "bm25", "seed": 1, "instruction": ""}
    assert changes(PromptConfig(shots=2, seed=5), prompt) == {"pick": "random", "seed": 5, "instruction": None}
    assert changes(prompt, prompt) == {} and in_words({}) == ""
    assert in_words({"seed": 0, "shots": 2, "members": ["a", "b"]}) == "members a, b; shots 2; seed 0"


def test_a_number_is_shown_by_how_far_it_is_off(tmp_path):
    for method, answer in {"near": "4.5", "off": "-1e2", "words": "about four", "persian": "۴٫۲۵"}.items():
        write_asked(tmp_path, method, "pearson", [{"id": "1", "answer": answer, "right": "4.25"}])
    text = shown(tmp_path, "1")
    assert "right: 4.25" in text and "wrong" not in text
    assert line(text, "near").split() == ["near", "4.5", "off", "by", "+0.25"]
    assert "off by -104.2" in line(text, "off ") and "no number" in line(text, "words")
    assert "off by +0" in line(text, "persian")


@pytest.mark.parametrize(
    ("metric", "answer", "right", "told"),
    [
        ("accuracy", "cafe\u0301 ", "caf\u00e9", "right"),
        ("macro_f1", "b", "a", "wrong"),
        ("micro_f1", "joy, anger", "joy, anger", "right"),
        ("accuracy", "The Answer", "answer", "wrong"),
        ("exact_match", "The Answer", "answer", "right"),  # which knows articles and capitals
        ("token_f1", "a green pear", "green apple", "token F1 0.50"),
        ("bleu", "two words", "two words", "chrF 100.0"),  # by BLEU, which is of longer texts, it would be 0
    ],
)
def test_an_answer_is_worth_what_the_metric_says_of_it(tmp_path, metric, answer, right, told):
    write_asked(tmp_path, "full", metric, [{"id": "1", "answer": answer, "right": right}])
    assert line(shown(tmp_path, "1"), "full").endswith(told)


def written(**fields) -> dict:
    texts = ["So it is 7.\n#### 7", "#### 8", "#### 8", "?"]
    return {
        **PROMPTED[0], "scores": {}, "option_texts": [], "generations": texts, "read": ["7", "8", "8", ""],
        "logprobs": [-1.0, -6.0, -6.0, 0.0], "tokens": [10, 2, 2, 0], "answer": "8", "right": "8", **fields,
    }  # fmt: skip


def test_all_that_was_written_is_shown_with_what_was_read_and_the_vote(tmp_path):
    write_asked(tmp_path, "few_shot", "accuracy", [written()], {"samples": 4})
    write_asked(tmp_path, "weighed", "accuracy", [written(answer="7")], {"samples": 4, "vote": "weighted"})
    write_asked(tmp_path, "silent", "accuracy", [written(read=["", "", "", ""], answer="")], {"samples": 4})
    text = shown(tmp_path, "0")
    few, silent, weighed = (text[text.index(f"{name}, 3 tokens") :] for name in ("few_shot", "silent", "weighed"))
    assert line(few, "votes").split() == ["votes", "8", "67%,", "7", "33%"]
    # By the token 7 is exp(-0.1) and each 8 exp(-3).
    assert line(weighed, "votes").split() == ["votes", "7", "90%,", "8", "10%"]
    assert "nothing was read" in line(silent, "votes")
    assert "options" not in text and "So it is 7." in few
    samples = few[few.index("read as") :].splitlines()
    assert [row.split() for row in samples[1:6]] == [
        ["1", "So", "it", "is", "7.", "7", "-0.10"], ["####", "7"], ["2", "####", "8", "8", "-3.00"],
        ["3", "####", "8", "8", "-3.00"], ["4", "?", "0.00"],
    ]  # fmt: skip


def test_one_answer_that_was_written_is_no_vote(tmp_path):
    one = written(generations=["pome"], read=["pome"], logprobs=[-1.0], tokens=[2], dropped=1)
    write_asked(tmp_path, "few_shot", "accuracy", [one])
    text = shown(tmp_path, "0")
    assert "votes" not in text and line(text, "1 ").split() == ["1", "pome", "pome", "-0.50"]
    assert "train/8 (1 did not fit)" in line(text, "examples")


def test_what_is_not_there_is_one_line(run, tmp_path):
    with pytest.raises(UserError, match=r"no record 'test/9': ids such as test/0, test/1, test/2; did you mean"):
        read_asked(run, "test/9")
    with pytest.raises(UserError, match="no record '3'"):
        read_asked(run, "3")
    with pytest.raises(UserError, match="keeps no records"):
        read_asked(tmp_path / "other", "1")
