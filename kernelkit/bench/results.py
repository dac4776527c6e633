"""The measurements of a real run as a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from kernelkit.bench.charts import draw
from kernelkit.bench.ranking import ranked
from kernelkit.bench.records import Record, read, slug_of, write
from kernelkit.bench.step_cases import STEP
from kernelkit.bench.targets import Target, read_targets, rows
from kernelkit.distill.atomic import replace_text
from kernelkit.kernels.measurements import SHIPPED, MeasuredGpu, text_of

INTRODUCTION = """# Results

Written by `kernelkit bench`; do not edit. Forward, and forward with backward, in bfloat16 on random data. Times are of
the device alone, by replays of a CUDA graph, or of what takes long or cannot be captured, marked *, by events around
calls in a row. Inputs are not in its cache. The implementations of a shape take turns; on the H100 they followed one
another, and where the GPU had rested before one, that is up to a tenth too fast. The floor is what a call must move or
multiply, at the rates of a plain copy and of one large product in the same run. Liger's experts tune themselves for
minutes at each shape, and on the H200 were measured at the first alone. Peak is memory over the inputs and the returned
gradients. Whole steps follow one another as in training: time is by the clock around four of them, and peak is all
memory. Each is measured in a process of its own, and its latest run stays, so that the cases of a table may be of
different cards: two H200s were 3 % apart in the same step of ours, and 11 % in that of Liger's patches.
"""

_NOTHING = Record(op="", variant="", impl="", shape="", passes="fwd", gpu="", versions={}, run="")

Column = tuple[str, Callable[[Record | None, Record | None], str]]


def publish(folder: Path, records: Sequence[Record]) -> Path:
    """Take ``records`` of a run on a GPU into ``folder``: ``results/<gpu>.json``, charts, and ``RESULTS.md``.

    They replace all earlier ones of the same ops on the same device, since only those of a shape that were measured
    together compare; a whole step, which is measured alone, replaces itself.
    What ``targets.yaml`` of ``folder`` wants, if it is there, is set against them.
    Where ``folder`` is that of a checkout, the package beside it gets the order in which all results put the
    implementations, for the presets ``fastest-*``.

    Returns:
        The document, which shows every file in ``results``.

    Raises:
        ValueError: for records that no GPU made, and for none.
    """
    if not records:
        raise ValueError("there is no record to publish")
    if any(record.gpu == "cpu" for record in records):
        raise ValueError("a CPU runs small shapes, which say nothing of speed: results are published from a GPU alone")
    slug = slug_of(records[0].gpu)
    path = folder / "results" / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = {_measured_together(record) for record in records}
    kept = [each for each in read(path) if _measured_together(each) not in measured] if path.exists() else []
    write(path, sorted([*kept, *records], key=lambda record: record.op == STEP))
    charts = folder / "results" / slug
    charts.mkdir(exist_ok=True)
    draw(charts, read(path))
    document = folder / "RESULTS.md"
    all_results = {each.stem: read(each) for each in sorted(path.parent.glob("*.json"))}
    replace_text(document, render(all_results, read_targets(folder / "targets.yaml")))
    beside = folder.resolve().parent / "kernelkit" / "kernels" / SHIPPED.name
    if beside.exists():
        replace_text(beside, text_of(measured_gpus(folder)))
    return document


def _measured_together(record: Record) -> tuple[str, ...]:
    return record.op, record.variant, *([record.impl] if record.op == STEP else [])


def measured_gpus(folder: Path) -> Iterator[MeasuredGpu]:
    """What the results in ``folder`` say of each GPU."""
    for path in sorted((folder / "results").glob("*.json")):
        if records := read(path):
            yield ranked(records)


def render(
    results: Mapping[str, Sequence[Record]], targets: Mapping[str, Sequence[Target]] = MappingProxyType({})
) -> str:
    """``RESULTS.md`` of the records of each device, by the name of its file, and its ``targets``, by its own."""
    parts = [INTRODUCTION]
    for slug, records in results.items():
        if records:
            gpu = records[0].gpu
            parts += [f"## {gpu}\n", *_targets(targets.get(gpu, ()), records), *_device(slug, records)]
    return "\n".join(parts)


def _targets(targets: Sequence[Target], records: Sequence[Record]) -> Iterator[str]:
    lines = [*rows(targets, records)]
    if lines:
        heading = ("", "pass", "wanted", "reached", "what bounds it")
        yield "### Targets\n"
        yield _markdown([heading, ["---"] * len(heading), *lines])


def _device(slug: str, records: Sequence[Record]) -> Iterator[str]:
    for op in dict.fromkeys(record.op for record in records):
        mine = [record for record in records if record.op == op]
        yield f"### {'Whole steps' if op == STEP else f'`{op}`'}\n"
        # Ops may come from different runs, and so may steps, and the shapes of an op.
        for run, versions in {each.run: each.versions for each in mine}.items():
            yield f"Run {run}: {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
        if any(record.ms for record in mine):
            yield f"![{op}](results/{slug}/{op}.png)\n"
        for variant, shape in dict.fromkeys((record.variant, record.shape) for record in mine):
            rows = [record for record in mine if (record.variant, record.shape) == (variant, shape)]
            yield f"{variant}, {shape}:\n"
            yield _table(rows, _STEPS if op == STEP else _KERNELS)
            yield from (f"- `{row.impl}`, {row.passes}: {row.error}" for row in rows if row.error)
            yield ""


def _table(records: Iterable[Record], columns: Sequence[Column]) -> str:
    """A row for each implementation."""
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        found.setdefault(record.impl, {})[record.passes] = record
    heading = ["", *(name for name, _ in columns)]
    lines = [heading, ["---"] * len(heading)]
    for impl, passes in found.items():
        lines.append([impl, *(cell(passes.get("fwd"), passes.get("fwd+bwd")) for _, cell in columns)])
    return _markdown(lines)


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _ms(record: Record | None) -> str:
    if record is None or record.ms is None:
        return "-"
    return f"{record.ms:.4g}{'*' if record.how == 'events' else ''}"


def _of_floor(record: Record | None) -> str:
    return "-" if record is None or record.of_floor is None else f"{record.of_floor:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _achieved(record: Record | None) -> str:
    """The rate that the floor is about: of products where there are any."""
    if record is None or record.tb_per_s is None or record.tflop_per_s is None:
        return "-"
    return f"{record.tflop_per_s:.0f} TFLOP/s" if record.tflop_per_s else f"{record.tb_per_s:.2f} TB/s"


_KERNELS: tuple[Column, ...] = (
    ("fwd ms", lambda fwd, both: _ms(fwd)),
    ("of floor", lambda fwd, both: _of_floor(fwd)),
    ("fwd+bwd ms", lambda fwd, both: _ms(both)),
    ("of floor", lambda fwd, both: _of_floor(both)),
    ("achieved", lambda fwd, both: _achieved(both or fwd)),
    ("peak MiB", lambda fwd, both: _number((both or fwd or _NOTHING).peak_mib)),
)
_STEPS: tuple[Column, ...] = (
    ("tokens/s", lambda fwd, both: _number((both or _NOTHING).tokens_per_s)),
    ("ms", lambda fwd, both: _ms(both)),
    ("peak MiB", lambda fwd, both: _number((both or _NOTHING).peak_mib)),
    ("loss", lambda fwd, both: "-" if both is None or both.loss is None else f"{both.loss:.4f}"),
    ("run", lambda fwd, both: (both or _NOTHING).run),
)
