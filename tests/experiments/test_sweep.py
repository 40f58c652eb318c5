import pytest

from limbeck.experiments.sweep import axis, chain, product, zipped

A, B = axis("a", [1, 2]), axis("b.c", "xy")


@pytest.mark.parametrize(
    ("sweep", "points"),
    [
        (axis("a", []), []),
        (A, [{"a": 1}, {"a": 2}]),
        (product(A, B), [{"a": a, "b.c": b} for a in (1, 2) for b in "xy"]),
        (product(A, []), []),
        (product(), [{}]),
        (zipped(A, B), [{"a": 1, "b.c": "x"}, {"a": 2, "b.c": "y"}]),
        (chain(A, B), [{"a": 1}, {"a": 2}, {"b.c": "x"}, {"b.c": "y"}]),
        (chain(zipped(A, B), A[:1]), [{"a": 1, "b.c": "x"}, {"a": 2, "b.c": "y"}, {"a": 1}]),
    ],
)
def test_the_algebra(sweep: list, points: list) -> None:
    assert sweep == points


@pytest.mark.parametrize("combine", [product, zipped])
def test_a_field_set_twice_is_an_error(combine) -> None:
    with pytest.raises(ValueError, match="two sweeps set 'a'"):
        combine(A, A)


def test_zipped_sweeps_have_one_length() -> None:
    with pytest.raises(ValueError):
        zipped(A, axis("b", range(3)))
