import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluation.label_placement import place_labels, spread_apart

places = st.lists(st.floats(0, 100), min_size=1, max_size=9)


@given(places)
def test_spread_labels_keep_their_order_and_distance(values):
    moved = spread_apart(values, 10.0)
    order = np.argsort(values, kind="stable")
    assert (np.diff(moved[order]) >= 10 - 1e-9).all()
    assert np.isclose(np.mean(moved), np.mean(values))


def test_labels_far_apart_stay_where_they_are():
    np.testing.assert_allclose(spread_apart([50.0, 0.0, 20.0], 10.0), [50.0, 0.0, 20.0])


def test_labels_of_a_crowd_cover_neither_each_other_nor_a_mark():
    rng = np.random.default_rng(0)
    for _ in range(20):
        # Nine methods of which seven have nearly the same cost and quality: the report's usual picture.
        anchors = np.concatenate([[250, 200] + rng.normal(size=(7, 2)) * [6, 18], [[60, 190], [60, 150]]])
        sizes = np.array([[rng.integers(25, 75), 11] for _ in anchors], dtype=float)
        marks = np.concatenate([anchors - 4, anchors + 4], axis=1)
        centres = place_labels(anchors, sizes, (0, 0, 340, 260), marks)
        labels = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
        for index, label in enumerate(labels):
            others = np.concatenate([np.delete(labels, index, axis=0), marks])
            apart = (label[:2] >= others[:, 2:] - 1e-9) | (label[2:] <= others[:, :2] + 1e-9)
            assert apart.any(axis=1).all()
        assert (labels[:, :2] >= 0).all() and (labels[:, 2:] <= [340, 260]).all()
