"""``kernelkit distill``: train a student from a teacher, each with kernels of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kernelkit.cli.arguments import HardwareName, hardware_of
from kernelkit.cli.console import fail, print_table

if TYPE_CHECKING:
    from pydantic import ValidationError

    from kernelkit.distill.config import DistillConfig

STOPPED = 143
"""Exit status of a run that was told to stop and has saved itself, as a shell gives it for SIGTERM."""

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="In place of the file's: student.ops.rms_norm=liger"),
]
Dry = Annotated[bool, typer.Option("--dry-run", help="Check the run, say what it needs, and stop.")]
NumRanks = Annotated[int, typer.Option("--ranks", min=1, metavar="N", help="With --dry-run: for so many processes.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in output.dir from its last checkpoint.")]
LastGood = Annotated[
    bool, typer.Option("--resume-last-good", help="As --resume, passing over checkpoints that are damaged.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the run that is in output.dir.")]


def distill(
    config: Config,
    overrides: Overrides = None,
    dry_run: Dry = False,
    hardware: HardwareName = None,
    ranks: NumRanks = 1,
    resume: Resume = False,
    last_good: LastGood = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a student from a teacher, and leave both, the figures and a report in the folder of the run.

    With several processes: torchrun --nproc-per-node 8 -m kernelkit distill CONFIG.
    """
    from pydantic import ValidationError

    from kernelkit.distill.config import DistillConfig

    if (hardware is not None or ranks != 1) and not dry_run:
        fail("--hardware and --ranks are for --dry-run; a run is where it is started")
    if overwrite and (resume or last_good):
        fail("--overwrite begins anew and --resume goes on; give one of them")
    try:
        run = DistillConfig.from_yaml(config, overrides or ())
        if dry_run:
            _look_at(run, hardware, ranks)
        else:
            _fit(run, resume=resume or last_good, last_good=last_good, overwrite=overwrite)
    except ValidationError as error:
        _refuse(error)


def _look_at(config: DistillConfig, hardware: str | None, ranks: int) -> None:
    from kernelkit.distill.dry_run import DryRun
    from kernelkit.distill.parallel import Ranks
    from kernelkit.distill.plan import Plan

    machine = None if hardware is None else hardware_of(hardware)
    found = DryRun.of(Plan.make(config, Ranks(world_size=ranks), machine))
    typer.echo(f"Teacher. {found.teacher}\n\nStudent. {found.student}\n")
    print_table(("what", "how much"), list(found.facts()))


def _fit(config: DistillConfig, *, resume: bool, last_good: bool, overwrite: bool) -> None:
    from transformers.utils.logging import disable_progress_bar

    from kernelkit.distill.checkpoints import CheckpointError
    from kernelkit.distill.data.documents import DataError
    from kernelkit.distill.distiller import Distiller
    from kernelkit.distill.report import headline
    from kernelkit.distill.trainer import NonFiniteLossError, StoppedError
    from kernelkit.models.report import kernel_report

    disable_progress_bar()  # a run has one of its own
    try:
        distiller = Distiller(config)
        is_first = distiller.plan.ranks.is_first
        if is_first and resume and not distiller.folder.holds_run:
            typer.echo(f"kernelkit: {distiller.folder.path} holds no run yet; it begins now", err=True)
        if is_first:
            for name, model in (("Teacher", distiller.plan.teacher), ("Student", distiller.plan.student)):
                typer.echo(f"{name}. {kernel_report(model.outline())}\n")
        report = distiller.fit(resume=resume, last_good=last_good, overwrite=overwrite)
    except StoppedError as stop:
        typer.echo(f"kernelkit: {stop}. To go on: --resume", err=True)
        raise typer.Exit(STOPPED) from None
    except (CheckpointError, DataError, FileExistsError, ImportError, NonFiniteLossError) as error:
        typer.echo(f"kernelkit: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:  # a full disk, a folder that may not be written to, a file where a folder should be
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"kernelkit: {place}{error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    if is_first:
        heading, rows = headline(report)
        typer.echo()
        print_table(heading, rows)
        typer.echo(f"\nThe report is {distiller.folder.path / 'report.html'}")


def _refuse(error: ValidationError) -> NoReturn:
    for line in error.errors(include_url=False):
        typer.echo(line["msg"], err=True)
    raise typer.Exit(1)
