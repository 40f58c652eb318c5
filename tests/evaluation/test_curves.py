from limbeck.evaluation import curves
from limbeck.evaluation.curves import training_curves

LOSS = {"pretrain": [[0, 5.0], [10, 2.0]]}


def evaluated(**names):
    return {"pretrain": [{"step": step, "score": -step, **names} for step in (1.0, 2.0)]}


def panels(svg: str) -> list[str]:
    """The titles that were drawn, of all that a panel can have."""
    return [title for title in ("pretrain<", "pretrain, score<", "pretrain, accuracy<") if f">{title}" in svg]


def test_no_numbers_no_plot():
    assert training_curves({}, {}, "accuracy") == ""
    assert training_curves({"full": []}, {"full": []}, "accuracy") == ""
    assert training_curves({}, {"full": [{"step": 1}]}, "accuracy") == ""


def test_validation_loss_joins_the_training_loss_and_the_metric_has_its_own_panel():
    assert panels(training_curves(LOSS, {}, "accuracy")) == ["pretrain<"]
    both = training_curves(LOSS, evaluated(validation_loss=3.0), "accuracy")
    assert panels(both) == ["pretrain<"] and "training 2.000" in both and "validation 3.000" in both
    for name in ("accuracy", "validation_accuracy"):
        three = training_curves(LOSS, evaluated(validation_loss=3.0, **{name: 0.5}), "accuracy")
        assert panels(three) == ["pretrain<", "pretrain, accuracy<"]
    assert panels(training_curves(LOSS, evaluated(), "accuracy")) == ["pretrain<", "pretrain, score<"]
    assert panels(training_curves({}, evaluated(accuracy=0.5), "accuracy")) == ["pretrain, accuracy<"]


def test_the_best_value_is_the_lowest_where_lower_is_better():
    found = {"full": [{"step": i, "accuracy": v, "mse": v} for i, v in enumerate([0.111, 0.333, 0.222])]}
    assert ">0.333<" in training_curves({}, found, "accuracy")
    assert ">0.1110<" in training_curves({}, found, "mse")


def test_curves_are_thinned_to_a_small_file():
    curve = [[float(step), 5.0 / (step + 1)] for step in range(20_000)]
    assert len(training_curves({"pretrain": curve, "full": curve[:1]}, {}, "accuracy")) < 30_000


def test_every_number_of_panels_has_a_height():
    for count in range(1, 10):
        many = {f"stage {i}": [[0, 1.0], [1, 0.5]] for i in range(count)}
        assert training_curves(many, {}, "accuracy").count(">stage ") == count
    assert set(curves._HEIGHTS) == {1, 2, 3, 4}
