"""What every method was asked of one record is found again by its id or its number."""

import io

import pytest
from rich.console import Console

from limbeck.evaluation.asked import read_asked, record_view, write_asked
from limbeck.experiments.cli import main
from limbeck.model.errors import UserError

PROMPTED = [
    {
        "id": f"test/{n}", "prompt_sha256": f"{n:x}" * 64, "prompt_ids": [1, 2, 3], "text": f"[red]میوه {n}[/red]:",
        "shown": ["train/1", "train/8"], "option_texts": [" a\n", " b\n"], "scores": {"score": [-1.5, -0.25]},
        "answer": "b", "right": "b" if n else "a",
    }
    for n in range(3)
]  # fmt: skip
TUNED = [{"id": f"test/{n}", "answer": "a", "right": "a"} for n in range(3)]


@pytest.fixture
def run(tmp_path):
    write_asked(tmp_path, "few_shot", PROMPTED)
    write_asked(tmp_path, "full", TUNED)
    return tmp_path


@pytest.mark.parametrize("record", ["test/2", "2"])
def test_a_record_is_found_by_id_and_by_number(run, record):
    assert read_asked(run, record) == {"few_shot": PROMPTED[2], "full": TUNED[2]}


def test_it_is_shown_with_answers_scores_and_the_very_prompt(run, capsys):
    out = Console(file=io.StringIO(), width=150)
    out.print(record_view(run, "test/0"))
    text = out.file.getvalue()  # type: ignore[union-attr]
    few, full = (next(line for line in text.splitlines() if line.startswith(name)) for name in ("few_shot", "full"))
    assert "wrong" in few and "train/1, train/8" in few and "b -0.25, a -1.50" in few and "0" * 12 in few
    assert "right" in full
    assert "[red]میوه 0[/red]:" in text and "few_shot, 3 tokens" in text  # data is no markup
    assert main(["report", str(run), "--record", "test/0"]) == 0 and "train/8" in capsys.readouterr().out


def test_an_answer_is_right_where_the_metric_says_so(tmp_path):
    write_asked(tmp_path, "full", [{"id": "1", "answer": "cafe\u0301 ", "right": "caf\u00e9"}])
    out = Console(file=io.StringIO(), width=150)
    out.print(record_view(tmp_path, "1"))
    assert "wrong" not in out.file.getvalue()  # type: ignore[union-attr]


def test_what_is_not_there_is_one_line(run, tmp_path):
    with pytest.raises(UserError, match=r"no record 'test/9': ids such as test/0, test/1, test/2; did you mean"):
        read_asked(run, "test/9")
    with pytest.raises(UserError, match="no record '3'"):
        read_asked(run, "3")
    with pytest.raises(UserError, match="keeps no records"):
        read_asked(tmp_path / "other", "1")
