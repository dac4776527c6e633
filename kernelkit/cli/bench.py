"""``kernelkit bench``: kernels, or whole steps, timed beside their peers and the floor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kernelkit.cli.arguments import op_of
from kernelkit.cli.console import fail, print_table

if TYPE_CHECKING:
    from kernelkit.bench.records import Record, Run
    from kernelkit.hardware import Hardware

Ops = Annotated[list[str] | None, typer.Option("--op", metavar="OP", help="This op only; may be repeated.")]
Impls = Annotated[
    list[str] | None,
    typer.Option("--impl", metavar="IMPL", help="This implementation only, or with --step this case; may be repeated."),
]
AllVariants = Annotated[bool, typer.Option("--all-variants", help="Every variant, not the first of each op.")]
Step = Annotated[bool, typer.Option("--step", help="Whole training steps instead of kernels.")]
ModelNames = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="With --step: this model only; may be repeated."),
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where JSON, CSV and charts go.")]
Compare = Annotated[
    Path | None, typer.Option("--compare", metavar="JSON", help="Print ratios to an earlier run's file.")
]
Publish = Annotated[
    Path | None,
    typer.Option("--publish", metavar="FOLDER", help="Also write RESULTS.md there, from its results/; needs a GPU."),
]
From = Annotated[
    Path | None, typer.Option("--from", metavar="JSON", help="Measure nothing: compare or publish this run's records.")
]
Limit = Annotated[float | None, typer.Option("--limit", metavar="SECONDS", help="For each case, at most.")]


def bench(
    op: Ops = None,
    impl: Impls = None,
    all_variants: AllVariants = False,
    step: Step = False,
    model: ModelNames = None,
    out: Out = Path("runs/bench"),
    compare: Compare = None,
    publish: Publish = None,
    source: From = None,
    limit: Limit = None,
) -> None:
    """Time every implementation that runs here, forward and with backward, beside the floor of this machine.

    Results are written as they come, so that a run that is killed leaves what it has.
    """
    from kernelkit.bench.charts import draw, need_charts
    from kernelkit.bench.records import Run, keep, read, slug_of
    from kernelkit.hardware import Hardware

    hardware = Hardware.detect()
    _check(hardware, op, impl, model, step, publish if source is None else None)
    try:
        need_charts()
        before, records = (read(path) if path else [] for path in (compare, source))
        if source is not None:
            _afterwards(records, before, publish)
            return
    except (ImportError, OSError, ValueError) as error:
        fail(str(error).partition("\n")[0])
    run = Run(hardware.name, capability=hardware.capability)
    typer.echo(f"On {hardware}; run {run.id}{_small_print(hardware)}\n")
    path = out / f"{slug_of(run.gpu)}{'-step' if step else ''}.json"
    made = _steps(run, hardware, impl, model, limit) if step else _ops(run, hardware, op, impl, all_variants, limit)
    for record in keep(made, path):
        typer.echo(line(record))
        records.append(record)
    if not records:
        fail("nothing of this runs here: see kernelkit list")
    charts = draw(out, records)
    typer.echo(f"\n{path}, {path.with_suffix('.csv').name}, {', '.join(chart.name for chart in charts)}")
    _afterwards(records, before, publish)


def line(record: Record) -> str:
    """One measurement, for who watches."""
    name = f"{record.op:20} {record.impl:{44 if record.op == 'step' else 18}} {record.passes:8}"
    if record.ms is None:
        return f"{name} {record.error}"
    speed = f" {record.of_floor:6.1%} of the floor" if record.of_floor is not None else ""
    speed += f" {record.tokens_per_s:10,.0f} tokens/s" if record.tokens_per_s is not None else ""
    memory = f" {record.peak_mib:9,.0f} MiB" if record.peak_mib is not None else ""
    return f"{name} {record.ms:10.4f} ms{speed}{memory}  {record.variant}, {record.shape}"


def _check(
    hardware: Hardware,
    op: list[str] | None,
    impl: list[str] | None,
    model: list[str] | None,
    step: bool,
    publish: Path | None,
) -> None:
    """Leave with one line for what does not go together."""
    from typing import get_args

    from kernelkit.bench.step_cases import Models
    from kernelkit.errors import unknown
    from kernelkit.registry import default_registry

    for name in op or ():
        op_of(default_registry(), name)
    for name in model or ():
        if name not in get_args(Models):
            fail(unknown("model", name, get_args(Models)))
    if (step and op) or (model and not step):
        fail("--op is for kernels, and --model for --step")
    if publish is not None and impl and not step:
        fail("--publish replaces all implementations of an op, so it goes without --impl")
    if publish is not None and hardware.device_type != "cuda":
        fail(f"{hardware} runs small shapes, which say nothing of speed: --publish needs a GPU")


def _ops(
    run: Run,
    hardware: Hardware,
    ops: list[str] | None,
    impls: list[str] | None,
    all_variants: bool,
    limit: float | None,
) -> Iterator[Record]:
    import torch

    from kernelkit.bench.floor import Floor
    from kernelkit.bench.ops import LIMIT, cases, measure_all
    from kernelkit.registry import default_registry

    device, dtype = torch.device(hardware.device_type), torch.bfloat16
    some = cases(default_registry(), hardware, dtype, ops=ops or (), impls=impls or (), all_variants=all_variants)
    if wanted := [*some]:
        floor = Floor.measure(device, dtype)
        rates = f"Copy {floor.bytes_per_second / 1e12:.3g} TB/s, product {floor.flops_per_second / 1e12:.3g} TFLOP/s"
        typer.echo(f"{rates}\n")
        yield from measure_all(wanted, run, floor, device, dtype, limit or LIMIT)


def _steps(
    run: Run, hardware: Hardware, names: list[str] | None, models: list[str] | None, limit: float | None
) -> Iterator[Record]:
    from typing import Any, get_args

    from kernelkit.bench.step_cases import Models
    from kernelkit.bench.steps import LIMIT, measure_steps

    chosen: Any = models or get_args(Models)
    for each in chosen:
        yield from measure_steps(each, run, hardware, names=names or (), limit=limit or LIMIT)


def _afterwards(records: list[Record], before: list[Record], publish: Path | None) -> None:
    from kernelkit.bench.records import compared
    from kernelkit.bench.results import publish as published

    if before:
        rows = [
            (*new.key, f"{old.ms:.4f}", f"{new.ms:.4f}", f"{ratio:.2f}")
            for old, new, ratio in compared(before, records)
        ]
        typer.echo(f"\nBefore: {before[0].gpu}, run {before[0].run}")
        print_table(("op", "variant", "impl", "shape", "pass", "ms before", "ms", "ratio"), rows)
    if publish is not None:
        typer.echo(f"\n{published(publish, records)}")


def _small_print(hardware: Hardware) -> str:
    return ". Small shapes, which say nothing of speed" if hardware.device_type != "cuda" else ""
