from limbeck.experiments.sweep import axis


def test_an_axis_is_a_point_for_each_value() -> None:
    assert axis("a", range(1, 3)) == [{"a": 1}, {"a": 2}]
    assert axis("b.c", "xy") == [{"b.c": "x"}, {"b.c": "y"}]
    assert axis("a", []) == []
