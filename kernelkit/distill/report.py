"""The page that a run leaves: what was trained, how well, how fast, and with which kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from statistics import median

import kernelkit
from kernelkit.distill.atomic import replace_text
from kernelkit.distill.extras import extra
from kernelkit.distill.metrics import Record
from kernelkit.distill.report_charts import NUM_COLORS, draw_charts
from kernelkit.distill.report_kernels import compare_kernels
from kernelkit.models.report import KernelReport

ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class StageReport:
    """One model that was trained, or that taught.

    Attributes:
        name: of the stage.
        num_parameters: of its model.
        kernels: those that its model holds.
        records: what was measured, in order; none for a teacher that came trained.
        summary: figures of the whole stage, in place of those that :attr:`figures` takes from the records.
    """

    name: str
    num_parameters: int
    kernels: KernelReport | None = None
    records: Sequence[Record] = ()
    summary: Mapping[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """What the headline shows.

        ``cross_entropy``, ``kl`` and ``agreement`` are those of the last evaluation; ``tokens_per_second``, ``mfu`` and
        ``mfu_with_teacher`` the medians of the training steps; ``peak_memory_gib`` is the largest.
        """
        evaluations = [record.figures for record in self.records if record.kind == "eval"]
        steps = [record.figures for record in self.records if record.kind == "train"]
        found = dict(evaluations[-1]) if evaluations else {}
        for name, over in _OVER_STEPS.items():
            found.pop(name, None)
            if values := [step[name] for step in steps if name in step]:
                found[name] = over(values)
        return {**found, **self.summary}


@dataclass(frozen=True)
class RunReport:
    """A whole run.

    Attributes:
        title: its name.
        config_yaml: the config, as YAML.
        environment: when and where it ran, by name.
        stages: in the order in which they ran.
    """

    title: str
    config_yaml: str
    environment: Mapping[str, str]
    stages: Sequence[StageReport]


_OVER_STEPS: Mapping[str, Callable[[list[float]], float]] = {
    "tokens_per_second": median,
    "mfu": median,
    "mfu_with_teacher": median,
    "peak_memory_gib": max,
}

_COLUMNS = {
    "cross_entropy": ("validation CE", "{:z.4f}"),
    "kl": ("KL to teacher", "{:z.4f}"),
    "agreement": ("agreement", "{:.1%}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "mfu": ("MFU", "{:.1%}"),
    "mfu_with_teacher": ("MFU with teacher", "{:.1%}"),
    "peak_memory_gib": ("peak memory", "{:.2f} GiB"),
}
"""Titles and formats of the headline, by figure."""


def headline(report: RunReport) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the table of results, a row for each stage; what no stage has measured is no column."""
    figures = [stage.figures for stage in report.stages]
    columns = {name: column for name, column in _COLUMNS.items() if any(name in each for each in figures)}
    rows = [
        [
            stage.name,
            _short(stage.num_parameters),
            *(form.format(each[name]) if name in each else ABSENT for name, (_, form) in columns.items()),
        ]
        for stage, each in zip(report.stages, figures, strict=True)
    ]
    return ["stage", "parameters", *(title for title, _ in columns.values())], rows


def need_report_packages() -> None:
    """See that a report can be written, before a run that ends with one.

    Raises:
        ImportError: if jinja2 or matplotlib are not installed.
    """
    for module in ("jinja2", "matplotlib.figure"):
        extra(module)


def write_report(path: Path, report: RunReport) -> None:
    """Write one HTML file that needs no other, and no network.

    Raises:
        ImportError: if jinja2 or matplotlib are not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, _page(report))


def _page(report: RunReport) -> str:
    jinja2, markupsafe = extra("jinja2"), extra("markupsafe")
    source = resources.files("kernelkit.distill").joinpath("report.html.j2").read_text(encoding="utf-8")
    # Names, notes and configs are text whatever they hold; only the drawings are markup.
    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source)
    kernels = {stage.name: stage.kernels for stage in report.stages if stage.kernels is not None}
    heading, rows = headline(report)
    text: str = page.render(
        report=report,
        heading=heading,
        rows=rows,
        charts=list(draw_charts({stage.name: stage.records for stage in report.stages})),
        kernels=kernels,
        comparisons=compare_kernels(kernels),
        colors={stage.name: number % NUM_COLORS for number, stage in enumerate(report.stages)},
        svg=markupsafe.Markup,
        version=kernelkit.__version__,
    )
    # What UTF-8 lacks, such as half of a surrogate pair in a file's name, is written as an escape.
    return text.encode("utf-8", "backslashreplace").decode()


def _short(number: int) -> str:
    """``"673 K"``, ``"1.72 B"``: three digits."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            digits = 2 - min(int(math.log10(number / size)), 2)
            return f"{number / size:.{digits}f} {unit}"
    return str(number)
