"""Pictures of what a prompt's result hangs on: the words that it is in, and the number of samples that vote."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.evaluation.plots import colour, draw, name_ends
from limbeck.evaluation.scales import higher_is_better, words
from limbeck.model.markdown import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def variant_strips(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """A line a prompt, a dot for each of its `variants`, the first of which, a ring, is the prompt itself.

    A bar marks the median of all. Returns "" where no row has variants.
    """
    strips = [
        (row["method"], [each["value"] for each in row["variants"] if "value" in each])
        for row in rows
        if row.get("variants")
    ]
    if not strips:
        return ""

    def paint(figure: "Figure") -> None:
        ax = figure.subplots()
        for place, (name, values) in enumerate(strips):
            shade = colour(name)
            ax.plot([min(values), max(values)], [place] * 2, color=shade, linewidth=2.2, alpha=0.35)
            ax.plot([np.median(values)] * 2, [place - 0.3, place + 0.3], color=shade, linewidth=1.6)
            ax.plot(values[1:], [place] * (len(values) - 1), "o", color=shade, markersize=5, alpha=0.6, linestyle="")
            ax.plot(values[0], place, "o", color=shade, markersize=8.5, markerfacecolor="none", markeredgewidth=1.6)
        ax.set_yticks(range(len(strips)), [one_line(name, 24) for name, _ in strips])
        ax.set_ylim(len(strips) - 0.4, -0.6)
        ax.margins(x=0.04)
        ax.set_xlabel(words(metric) + ("" if higher_is_better(metric) else ", lower is better"))
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)

    return draw(f"{words(metric)} of prompts that mean the same", (760, 46 + 24 * len(strips)), paint)


def accuracy_lines(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy of the majority of so many samples, with its interval, a line for each row that has `by_samples`.

    Returns "" where none has.
    """
    voted = [(row["method"], row["by_samples"]) for row in rows if row.get("by_samples")]
    if not voted:
        return ""

    def paint(figure: "Figure") -> None:
        ax = figure.subplots()
        ends = []
        for name, points in voted:
            samples, value = [point["samples"] for point in points], [point["value"] for point in points]
            low, high = zip(*(point["ci95"] for point in points), strict=True)
            ax.fill_between(samples, low, high, color=colour(name), alpha=0.13, linewidth=0)
            ax.plot(samples, value, "o-", color=colour(name), markersize=3.5, linewidth=1.5)
            ends.append((samples[-1], value[-1]))
        ax.set_xlabel("samples that vote")
        ax.set_ylabel("accuracy")
        ax.locator_params(axis="x", integer=True)
        name_ends(figure, ax, [(name, colour(name)) for name, _ in voted], ends)

    return draw("accuracy by the number of samples", (480, 280), paint)
