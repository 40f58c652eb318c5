"""The report's plots as inline SVG: one colour per method, legible on light and dark, equal for equal data.

Text stays text, in the page's own font and colour. Matplotlib is imported when something is drawn.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.evaluation.comparison import pareto
from limbeck.evaluation.label_placement import place_labels, spread_apart
from limbeck.evaluation.quantities import quantity
from limbeck.evaluation.scales import higher_is_better, limits, score_of, seen, words
from limbeck.model.markdown import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Violet is the foundation, blues prompt, warm colours tune, greens distil; each at least 3:1 against either page.
COLOURS = {
    "pretrain": "#8b72c4",
    "zero_shot": "#5b98cf", "one_shot": "#3f82c4", "few_shot": "#2970b8",
    "full": "#d55e00", "lora": "#b98300", "bias_norm": "#bf6a9b", "last_block": "#a8743c",
    "distilled": "#009e73", "student_alone": "#5f9089",
}
_ALIASES = {
    "base": "few_shot", "tuned": "full", "tune": "full", "teacher": "full", "student": "distilled",
    "alone": "student_alone",
    "pretrained": "pretrain",
}
_MARKERS = {"zero_shot": "o", "one_shot": "o", "few_shot": "o", "distilled": "D", "student_alone": "D"}
CROWD = 12  # methods from which on a picture of them is large
DASHES = (0, (4, 3))
INK = "#767777"  # stands for the page's text colour: replaced by currentColor below
_STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9.5, "axes.titlesize": 9.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.linewidth": 0.6,
    "xtick.color": INK, "xtick.labelsize": 9, "xtick.major.width": 0.6, "xtick.minor.size": 0,
    "ytick.color": INK, "ytick.labelsize": 9, "ytick.major.width": 0.6, "ytick.minor.size": 0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": INK, "grid.alpha": 0.18, "grid.linewidth": 0.6,
}


def colour(method: str) -> str:
    """The colour of a method, or of a model known by another name (`tuned` is `full`); grey for any other.

    Of students of several sizes, `distilled_0.25` is one that is `distilled`.
    """
    kind = re.sub(r"_[\d.]+$", "", method)
    return COLOURS.get(_ALIASES.get(kind, kind), "#85888c")


def in_order(names: Sequence[str]) -> list[str]:
    """`pretrain`, then the methods in the order of the lesson, then names that the lesson does not know."""
    lesson = list(COLOURS)
    return sorted(names, key=lambda name: (lesson.index(name) if name in lesson else len(lesson), name))


def draw(name: str, size: tuple[float, float], paint: Callable[["Figure"], None]) -> str:
    """The SVG of what `paint` draws on a new figure of `size` points; it scales, and refers to nothing."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}])
    with style, warnings.catch_warnings():
        # The page's font draws the text; that matplotlib's own lacks a script matters only for spacing.
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        buffer = io.StringIO()
        undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=undated)
    text = re.sub(r"^.*?<svg[^>]*>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;\"]*;?|'DejaVu Sans'[^;\"]*", "", text)
    text = text.replace(INK, "currentColor")
    box = f"0 0 {size[0]:g} {size[1]:g}"
    return f'<svg class="plot" role="img" aria-label="{html.escape(name)}" viewBox="{box}">{text.strip()}\n'


def standalone(svg: str) -> str:
    """The same picture as a file of its own, in the grey that is legible on light and dark pages."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f'style="color: {INK}; font-family: system-ui, sans-serif"'
    return svg.replace('<svg class="plot"', f"<svg {spaces} {style}", 1)


def quality(rows: Sequence[dict[str, Any]], metric: str, key: str, label: str) -> str:
    """The metric with its interval against `rows[...][key]` on a log axis; filled marks are the Pareto front.

    From so many rows on that their names would not fit, the picture is larger and its axis begins where the values do.
    Returns "" where fewer than two rows have both.
    """
    scored = [(row, score_of(row, metric)) for row in rows if (row.get(key) or 0) > 0]
    marks = [(row["method"], row[key], score) for row, score in scored if score is not None]
    if len(marks) < 2:
        return ""
    names, costs, scores = zip(*marks, strict=True)
    cost = np.array(costs, dtype=float)
    value = np.array([score["value"] for score in scores], dtype=float)
    points = list(zip(cost, value, strict=True))
    front = pareto(list(zip(cost, value if higher_is_better(metric) else -value, strict=True)))
    low, high = limits(metric, seen(rows, metric))
    if crowded := len(marks) > CROWD:
        ends = [end for score in scores for end in (score.get("ci95") or (score["value"],))]
        low, high = min(ends) - 0.05 * (max(ends) - min(ends)), max(ends)
    headroom = 0.04 * (high - low)

    def paint(figure: "Figure") -> None:
        ax = figure.subplots()
        ax.set_xscale("log")
        spread = max(cost.max() / cost.min(), 1.6) ** 0.22
        ax.set_xlim(cost.min() / spread, cost.max() * spread)
        ax.set_ylim(low - (headroom if low < 0 else 0), high + headroom)
        if low < 0:
            ax.axhline(0, color=INK, linewidth=0.6)
        steps = sorted({(cost[i], value[i]) for i in front})
        ends = [*steps, (ax.get_xlim()[1], steps[-1][1])]
        ax.step(*zip(*ends, strict=True), where="post", color=INK, linewidth=1, alpha=0.6, linestyle=DASHES)
        for index, (name, x, score) in enumerate(marks):
            shade = colour(name)
            if score.get("ci95") is not None:
                ax.plot([x] * 2, score["ci95"], color=shade, linewidth=1.4, alpha=0.75)
            ax.plot(
                x, score["value"], _MARKERS.get(name, "s"), color=shade, markersize=6.5,
                markeredgewidth=1.4, markerfacecolor=shade if index in front else "none",
            )
        ax.set_ylabel(words(metric) + ("" if higher_is_better(metric) else ", lower is better"))
        quantities(ax.xaxis, label)
        lines = [(x, *(score.get("ci95") or (y, y))) for (x, y), score in zip(points, scores, strict=True)]
        lines = [(x, bottom, x, top) for x, bottom, top in lines]
        lines += [(x, y, end, y) for (x, y), (end, _) in zip(ends, ends[1:], strict=False)]
        _name_points(figure, ax, dict(zip(names, points, strict=True)), lines)

    return draw(f"{words(metric)} against {label}", (860, 440) if crowded else (380, 290), paint)


def bias_intervals(rows: Sequence[dict[str, Any]]) -> str:
    """Each probe's value with its interval for every model, a panel a probe, the ideal value as a line."""
    rows = [row for row in rows if not row.get("group")]  # the parts are in the tables
    asked_in: dict[str, set[str]] = {}
    for row in rows:
        asked_in.setdefault(row["probe"], set()).add(row.get("set", ""))
    panels_of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        title = row["probe"] if len(asked_in[row["probe"]]) < 2 else f"{row['probe']} ({row['set']})"
        panels_of.setdefault(title, []).append(row)
    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = 2
    lines = max(1, -(-len(panels_of) // columns))

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
        for (probe, members), ax in zip(panels_of.items(), panels, strict=False):
            for row in members:
                place, shade = models.index(row["model"]), colour(row["model"])
                if row.get("ci95") is not None:
                    ax.plot(row["ci95"], [place] * 2, color=shade, linewidth=2.2, alpha=0.6)
                ax.plot(row["value"], place, "o", color=shade, markersize=6.5)
                if row.get("ideal") is not None:
                    ax.axvline(row["ideal"], color=INK, linewidth=1, linestyle=DASHES)
            ax.set_title(one_line(probe, 44), loc="left")
            ax.set_yticks(range(len(models)), [one_line(model, 18) for model in models])
            ax.set_ylim(len(models) - 0.4, -0.6)
            ax.margins(x=0.12)
            ax.locator_params(axis="x", nbins=5)
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        for ax in list(panels):
            ax.set_axis_off()

    return draw("bias probes", (380 * columns, lines * (46 + 24 * len(models))), paint)


def ambiguity_bars(panels: dict[str, list[list[Any]]]) -> str:
    """Probability of each answer, a panel for each way of asking, an answer on the same line in all."""
    answers = list(dict.fromkeys(answer for top in panels.values() for answer, _ in top[:5]))

    def paint(figure: "Figure") -> None:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for ax, (title, top) in zip(axes, panels.items(), strict=True):
            for answer, probability in top:
                if answer in answers:
                    place = answers.index(answer)
                    ax.barh(place, probability, height=0.62, color=COLOURS["few_shot"])
                    ax.text(probability + 0.03, place, f"{probability:.2f}", va="center", fontsize=9)
            ax.set_title(one_line(title, 24), loc="left")
            ax.set_yticks(range(len(answers)), [one_line(str(answer), 20) for answer in answers])
            ax.set(xlim=(0, 1.16), ylim=(len(answers) - 0.4, -0.6))
            ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
            ax.spines["bottom"].set_bounds(0, 1)

    return draw("answers and their probability", (700, 44 + 19 * len(answers)), paint)


def _name_points(
    figure: "Figure", ax: "Axes", points: dict[str, tuple[float, float]], lines: list[tuple[float, ...]]
) -> None:
    """Writes each point's name beside it, clear of `lines` (x0, y0, x1, y1), all in data coordinates.

    A name that has to stand further off gets a thin line to its point.
    """
    figure.draw_without_rendering()
    anchors = ax.transData.transform(list(points.values()))
    texts = [one_line(name, 18) for name in points]
    sizes = np.array([[5.2 * len(text) + 2, 11.0] for text in texts])  # of the page's font, in points
    lines_px = ax.transData.transform(np.reshape(lines, (-1, 2))).reshape(-1, 4) + [-1, -1, 1, 1]
    obstacles = np.vstack([np.concatenate([anchors - 5, anchors + 5], axis=1), lines_px])
    box = ax.get_window_extent()
    centres = place_labels(anchors, sizes, (box.x0, box.y0, box.x1, box.y1), obstacles)
    for name, text, size, anchor, centre in zip(points, texts, sizes, anchors, centres, strict=True):
        shade = colour(name)
        far = np.hypot(*np.maximum(np.abs(centre - anchor) - size / 2, 0)) > 12
        line = {"arrowstyle": "-", "color": shade, "linewidth": 0.7, "alpha": 0.7, "shrinkA": 1, "shrinkB": 5}
        ax.annotate(
            text, anchor, centre, xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", fontsize=9, color=shade, arrowprops=line if far else None,
        ).set_in_layout(False)


def name_ends(
    figure: "Figure", ax: "Axes", names: Sequence[tuple[str, str]], ends: Sequence[tuple[float, float]]
) -> None:
    """Writes names, each (text, colour), right of the plot, beside the ends of their lines (in data coordinates)."""
    width, height = 72 * figure.get_size_inches()
    figure.get_layout_engine().set(rect=(0, 0, 1 - 82 / width, 1))  # type: ignore[union-attr]
    figure.draw_without_rendering()
    ends_px = ax.transData.transform(np.array(ends))[:, 1]
    texts_px = spread_apart(ends_px, 11.5)
    texts_px -= max(texts_px.max() + 6 - height, 0)
    for (name, shade), end_px, text_px in zip(names, ends_px, texts_px, strict=True):
        ax.annotate(
            one_line(name, 15), (1, end_px), (5, text_px - end_px), va="center", color=shade, fontsize=9,
            xycoords=("axes fraction", "figure pixels"), textcoords="offset points", annotation_clip=False,
        ).set_in_layout(False)


def quantities(axis: Any, label: str) -> None:
    """Ticks such as 10, 100, 1 k on a log axis, minor ones (without labels) left to the eye."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0,) if high / low > 30 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=7))
    axis.set_major_formatter(lambda value, _: quantity(value).replace(" ", "\u202f"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_label_text(label)
