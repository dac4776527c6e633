"""A picture for each op: bars for the implementations, and the floor under them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernelkit.bench.records import Record

COLORS = {"fwd": "#8db4d9", "fwd+bwd": "#2f6ca8"}
FLOOR = "#c0392b"


def need_charts() -> None:
    """Raise where charts cannot be drawn, before an hour is spent on measuring.

    Raises:
        ImportError: with the command that installs matplotlib.
    """
    _matplotlib("matplotlib.figure")


def draw(folder: Path, records: Sequence[Record]) -> list[Path]:
    """``<op>.png`` in ``folder`` for each op of which something was timed; the files."""
    ops = dict.fromkeys(record.op for record in records if record.ms)
    return [_draw(folder / f"{op}.png", [each for each in records if each.op == op and each.ms]) for op in ops]


def _draw(path: Path, records: list[Record]) -> Path:
    # Without pyplot, which keeps a figure for the whole process.
    shapes = list(dict.fromkeys((record.variant, record.shape) for record in records))
    height = sum(1 + len({record.impl for record in records if _panel(record) == shape}) for shape in shapes)
    figure = _matplotlib("matplotlib.figure").Figure(figsize=(8, 0.45 * height + 0.8), layout="constrained")
    panels = figure.subplots(len(shapes), squeeze=False)[:, 0]
    for axes, shape in zip(panels, shapes, strict=True):
        _bars(axes, [record for record in records if _panel(record) == shape])
        axes.set_title(f"{records[0].op} {' '.join(shape)}", fontsize=9, loc="left")
    panels[-1].set_xlabel(f"ms on {records[0].gpu}; the red line is the floor")
    figure.savefig(path, dpi=120)
    return path


def _panel(record: Record) -> tuple[str, str]:
    return record.variant, record.shape


def _bars(axes: Any, records: list[Record]) -> None:
    impls = list(dict.fromkeys(record.impl for record in records))
    for record in records:
        at = impls.index(record.impl) + (0.2 if record.passes == "fwd+bwd" else -0.2)
        axes.barh(at, record.ms, height=0.38, color=COLORS[record.passes])
        axes.annotate(f" {record.passes} {record.ms:.3g}", (record.ms, at), va="center", fontsize=7)
        if record.floor_ms:
            axes.plot([record.floor_ms] * 2, [at - 0.19, at + 0.19], color=FLOOR, linewidth=1.5)
    axes.set_yticks(range(len(impls)), impls, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.18)
    axes.set_xlim(left=0)


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}): pip install 'kernelkit[bench]'") from error
