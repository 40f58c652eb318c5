"""A log has a line now and then, and none of what is timed."""

from limbeck.model.progress import no_progress, progress


def count(n):
    with progress("counting", n, "thing") as advance:
        for _ in range(n):
            advance(note="so far")


def test_what_is_timed_shows_no_progress(capsys):
    count(2)
    assert "counting: 2/2 things" in capsys.readouterr().err
    with no_progress():
        count(2)
    assert capsys.readouterr().err == ""
    count(1)
    assert "counting: 1/1 things" in capsys.readouterr().err
