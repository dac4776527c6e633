"""The curves of a run as SVG that is written into a page and takes its colors from it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelkit.distill.extras import extra
from kernelkit.distill.metrics import Kind, Record

Values = NDArray[np.float64]
Points = tuple[Values, Values]

NUM_COLORS = 6
"""Stages that have a color of their own in the page: its variables ``--stage-0`` and so on."""

MOST_POINTS = 400
"""In one curve. Beyond that, means over neighbouring records are drawn."""

# Colors that nothing else has: in the SVG they are replaced by variables of the page, which knows light and dark.
INK, GRID, TEACHER = "#010101", "#010102", "#010103"
STAGES = [f"#0102{number:02x}" for number in range(NUM_COLORS)]
VARIABLES = {INK: "--faint", GRID: "--line", TEACHER: "--faint"} | {
    color: f"--stage-{number}" for number, color in enumerate(STAGES)
}

STYLE = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "kernelkit",  # the same curves give the same file
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Plan:
    """What one chart shows.

    Attributes:
        title, caption: what stands over and under it.
        kind, figure: which records, and which of their figures.
        numbers: how they are written, as a format.
        noisy: whether the running mean says more than the values; a wide range of them gets a logarithmic axis.
        level: a figure of the last record that is drawn as a horizontal line: the teacher's.
    """

    title: str
    caption: str
    kind: Kind
    figure: str
    numbers: str = "#.4g"
    noisy: bool = False
    level: str = ""


PLANS = (
    Plan("Training loss", "Each stage's own objective, which others may not share.", "train", "loss", noisy=True),
    Plan("Validation cross-entropy", "Nats for each token.", "eval", "cross_entropy", level="teacher_cross_entropy"),
    Plan("KL(teacher ‖ student)", "Nats for each token of validation; zero where the models agree.", "eval", "kl"),
    Plan("Agreement", "Validation tokens where both models' first choice is the same.", "eval", "agreement", ".1%"),
    Plan("Learning rate", "Of each optimizer step.", "train", "lr", ".3g"),
    Plan("Gradient norm", "Before clipping.", "train", "grad_norm", noisy=True),
)


@dataclass(frozen=True)
class Curve:
    """One entry of a legend.

    Attributes:
        stage: its name.
        color: the number of its color in the page.
        last: the last value, as text.
    """

    stage: str
    color: int
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn.

    Attributes:
        plan: what it shows.
        curves: its legend.
        level: the teacher's value, as text, if there is such a line.
        svg: the drawing. No text of it comes from the run.
    """

    plan: Plan
    curves: tuple[Curve, ...]
    level: str
    svg: str


def draw_charts(stages: Mapping[str, Sequence[Record]]) -> Iterator[Chart]:
    """The charts for which there is at least one finite value.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    for plan in PLANS:
        curves = {name: points for name, records in stages.items() if len((points := _points(records, plan))[0])}
        if curves:
            level = _level(stages.values(), plan)
            numbers = {name: number % NUM_COLORS for number, name in enumerate(stages)}
            legend = [
                Curve(name, numbers[name], format(points[1][-1], plan.numbers)) for name, points in curves.items()
            ]
            svg = _svg([(STAGES[numbers[name]], points) for name, points in curves.items()], level, plan)
            yield Chart(plan, tuple(legend), "" if level is None else format(level, plan.numbers), svg)


def _points(records: Sequence[Record], plan: Plan) -> Points:
    """Steps and values, [N] each, of what is finite."""
    found = [
        (record.step, value)
        for record in records
        if record.kind == plan.kind and math.isfinite(value := record.figures.get(plan.figure, math.nan))
    ]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    return steps, values


def _level(stages: Iterable[Sequence[Record]], plan: Plan) -> float | None:
    levels = [record.figures[plan.level] for records in stages for record in records if plan.level in record.figures]
    return levels[-1] if levels and math.isfinite(levels[-1]) else None


def _svg(curves: list[tuple[str, Points]], level: float | None, plan: Plan) -> str:
    matplotlib, figures = extra("matplotlib"), extra("matplotlib.figure")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(5.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for color, points in curves:
            _draw(axes, color, *_thinned(*points), mean=plan.noisy)
        if level is not None:
            axes.axhline(level, color=TEACHER, linestyle=(0, (4, 3)), linewidth=1.2)
        _scale(axes, curves, plan)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _embedded(file.getvalue())


def _draw(axes: Any, color: str, steps: Values, values: Values, *, mean: bool) -> None:
    few = len(values) < 40
    if mean and not few:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        values = _running_mean(values, len(values) // 40)
    axes.plot(steps, values, color=color, marker="o" if few else None, markersize=3.5)


def _running_mean(values: Values, reach: int) -> Values:
    """Over ``reach`` values to both sides; over fewer at the ends, as many to one side as to the other."""
    at = np.arange(len(values))
    reaches = np.minimum(reach, np.minimum(at, at[::-1]))
    # Not by cumulative sums: after a spike of 1e20 they have forgotten the digits of what follows.
    return np.array([values[i - r : i + r + 1].mean() for i, r in zip(at, reaches, strict=True)])


def _thinned(steps: Values, values: Values) -> Points:
    parts = min(len(values), MOST_POINTS)
    means = [np.array([part.mean() for part in np.array_split(each, parts)]) for each in (steps, values)]
    return means[0], means[1]


def _scale(axes: Any, curves: list[tuple[str, Points]], plan: Plan) -> None:
    ticker = extra("matplotlib.ticker")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    values = np.concatenate([values for _, (_, values) in curves])
    if plan.noisy and 0 < 10 * values.min() < values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    if plan.numbers.endswith("%"):
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    else:
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))


def _embedded(svg: str) -> str:
    """Only the element, in the colors of the page; without the ids of groups, which every chart would repeat."""
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
