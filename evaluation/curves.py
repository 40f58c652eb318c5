"""How a training went: the loss of every stage, and what was found on data that is not trained on."""

from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.evaluation import plots
from limbeck.evaluation.quantities import quantity
from limbeck.evaluation.scales import digits, figure, heading, higher_is_better
from limbeck.model.markdown import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE: dict[str, Any] = {"linewidth": 1.5}
_MARKED: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linestyle": (0, (3, 2)), "linewidth": 1}
_HEIGHTS = {1: 210, 2: 190, 3: 150, 4: 128}  # of a panel, by how many stand side by side


def training_curves(
    curves: dict[str, list[list[float]]], evaluations: dict[str, list[dict[str, Any]]], metric: str
) -> str:
    """A panel for the loss of each stage and one for the metric that was evaluated on the way, on their own scales.

    `curves` are [[step, loss], ...]; long ones are drawn as 120 means of bins. `evaluations` are [{"step", name:
    number, ...}, ...]: "validation_loss" joins the panel of the loss; the panel beside it has the metric, by its name
    or with "validation_" before it, or "score" where there is neither. Returns "" where there is nothing to draw.
    """
    panels = []
    for stage in plots.in_order([stage for stage in {**curves, **evaluations}]):
        found = evaluations.get(stage) or []
        losses = _points(found, "validation_loss")
        if curves.get(stage) or losses:
            panels.append((stage, "loss", curves.get(stage) or [], losses))
        for name in (metric, f"validation_{metric}", *(() if losses else ("score",))):
            if points := _points(found, name):
                panels.append((stage, "score" if name == "score" else metric, [], points))
                break
    if not panels:
        return ""
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)

    def paint(page: "Figure") -> None:
        axes = page.subplots(lines, columns, squeeze=False).flat
        for (stage, what, training, validation), ax in zip(panels, axes, strict=False):
            shade = plots.colour(stage)
            if what == "loss":
                _losses(ax, shade, training, validation)
            else:
                _progress(ax, shade, what, validation)
            named = stage if what == "loss" else f"{stage}, {heading(what)}"
            ax.set_title(one_line(named, 96 // columns - 8), loc="left", color=shade, fontweight="bold")
            ax.locator_params(nbins=3 if columns > 2 else 5)
            ax.xaxis.set_major_formatter(lambda value, _: quantity(value).replace(" ", ""))
        for ax in list(axes):
            ax.set_axis_off()
        page.supxlabel("step", fontsize=9)

    return plots.draw("loss of every stage", (760, 24 + _HEIGHTS[columns] * lines), paint)


def _points(found: list[dict[str, Any]], name: str) -> list[list[float]]:
    return [[row["step"], row[name]] for row in found if row.get(name) is not None]


def _losses(ax: "Axes", shade: str, training: list[list[float]], validation: list[list[float]]) -> None:
    """Training as a line, validation as marks; which is which is said only where there are both."""
    top = 0.0
    for points, style, word in ((training, _LINE, "training"), (validation, _MARKED, "validation")):
        if not points:
            continue
        bins = np.array_split(np.asarray(points, dtype=float), min(120, len(points)))
        step, loss = np.array([part.mean(axis=0) for part in bins]).T
        ax.plot(step, loss, color=shade, label=f"{word} {_loss(loss[-1])}", **style)
        top = max(top, loss.max())
        if not (training and validation):
            ax.annotate(
                _loss(loss[-1]), (step[-1], loss[-1]), (0, 5), textcoords="offset points",
                ha="right", fontsize=9, annotation_clip=False,
            )
    ax.set_ylim(0, top * 1.08 or 1)
    if training and validation:
        ax.legend(loc="best", frameon=False, fontsize=9, handlelength=1.6)


def _progress(ax: "Axes", shade: str, metric: str, points: list[list[float]]) -> None:
    """The metric on a scale that shows its changes; the best value is written beside its mark."""
    step, value = np.asarray(points, dtype=float).T
    ax.plot(step, value, color=shade, **_MARKED)
    best = int(value.argmax() if higher_is_better(metric) else value.argmin())
    ax.plot(step[best], value[best], "o", color=shade, markersize=6)
    ax.margins(x=0.08, y=0.25)
    ax.annotate(
        figure(value[best], max(digits(metric, value), 3 if abs(value[best]) <= 1 else 0)), (step[best], value[best]),
        (0, 6 if higher_is_better(metric) else -6), textcoords="offset points", ha="center",
        va="bottom" if higher_is_better(metric) else "top", fontsize=9, annotation_clip=False,
    )


def _loss(value: float) -> str:
    return figure(value, digits("loss", [value]))
