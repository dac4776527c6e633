"""A run from its config to its report."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from dependency_injector import providers

from kernelkit.distill.checkpoints import Checkpoints
from kernelkit.distill.config import DistillConfig
from kernelkit.distill.container import DistillContainer, make_model
from kernelkit.distill.flops import Speed, forward_flops, peak_flops
from kernelkit.distill.folder import STAGES, RunFolder
from kernelkit.distill.identity import identity, schedule
from kernelkit.distill.metrics import read_records
from kernelkit.distill.model_plan import ModelPlan
from kernelkit.distill.plan import Plan
from kernelkit.distill.report import RunReport, StageReport, need_report_packages, write_report
from kernelkit.distill.sinks import FanOut
from kernelkit.distill.stage import Stage
from kernelkit.distill.stopping import Stop
from kernelkit.distill.teacher import Teacher
from kernelkit.distill.trainer import Trainer
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.report import kernel_report


class Distiller:
    """One run: a student learns from a teacher, each with kernels of its own.

    Where the config says so, the teacher is trained first, and a control afterwards: a second student with the same
    first weights and the same data, which learns from the labels alone.

    Args:
        config: what the run is.
        container: its parts, some of them replaced perhaps; made of ``config`` unless given.

    Raises:
        ImportError: where a package for the report or for TensorBoard is missing.
    """

    def __init__(self, config: DistillConfig, container: DistillContainer | None = None) -> None:
        need_report_packages()
        self.config = config
        self.container: Any = container or DistillContainer(config=providers.Object(config))
        self._student: CausalLM | None = None
        self._teacher: Teacher | None = None
        self._begin: dict[str, Any] | None = None

    @property
    def plan(self) -> Plan:
        """The run, checked.

        Raises:
            ValidationError: for everything that is wrong with it.
        """
        plan: Plan = self.container.plan()
        return plan

    @property
    def folder(self) -> RunFolder:
        """Where the run writes."""
        return RunFolder(self.config, self.plan.ranks)

    @property
    def student(self) -> CausalLM:
        """The student as it is now: before :meth:`fit` with its first weights, or with those of the run's folder."""
        if self._student is None:
            self._student = self._saved("student") or self.container.student()
        return self._student

    @property
    def teacher(self) -> Teacher:
        """The teacher."""
        if self._teacher is None:
            trained = self.folder.path / "teacher" if self.config.teacher.pretrain else None
            self._teacher = self.container.teacher(trained)
        return self._teacher

    def fit(self, *, resume: bool = False, last_good: bool = False, overwrite: bool = False) -> RunReport:
        """Train, save the models, and write the report.

        Args:
            resume: go on with the run that is in the folder already, from its newest checkpoint.
            last_good: pass over checkpoints that are damaged.
            overwrite: remove the run that is in the folder.

        Raises:
            ValidationError: for everything that is wrong with the config.
            FileExistsError: where the folder holds another run, and neither ``resume`` nor ``overwrite`` is given.
            CheckpointError: for a checkpoint that is damaged or of another run.
            NonFiniteLossError: when the loss is not a number any more.
            StoppedError: after SIGTERM or SIGINT, once a checkpoint is saved.
        """
        plan, stop = self.plan, Stop()
        with plan.ranks.joined(plan.student.device), stop.on_signals():
            self.folder.claim(resume=resume, overwrite=overwrite)
            sink = FanOut(self.container.sinks())
            try:
                for name in self.stages():
                    if self.folder.is_done(name):
                        self._checkpoints(name).check_finished()
                        continue
                    trainer = self._trainer(name, sink, stop)
                    if resume:
                        trainer.resume(last_good=last_good)
                        self.folder.describe()
                    trainer.fit()
                    trainer.checkpoints.finish()
                    self.folder.save(trainer.stage.model, plan.data.tokenizer, self.folder.path / name)
            finally:
                sink.close()
            report = self.report()
            if plan.ranks.is_first:
                write_report(self.folder.path / "report.html", report)
        return report

    def evaluate(self) -> dict[str, float]:
        """What the validation data say of the student: cross-entropy, KL to the teacher and agreement with it.

        Raises:
            ValueError: where there are no validation data.
        """
        with self.plan.ranks.joined(self.plan.student.device):
            evaluation = self.container.evaluation()
            if evaluation is None:
                raise ValueError("there are no validation data: name some in data.validation")
            found: dict[str, float] = evaluation(self.student, self.teacher, self.plan.student.device)
            return found

    def save(self, path: str | Path | None = None) -> Path:
        """Write the student and the tokenizer in HF's format, into the run's folder unless another is given."""
        target = self.folder.path / "student" if path is None else Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.folder.save(self.student, self.plan.data.tokenizer, target)
        return target

    def stages(self) -> list[str]:
        """The trainings of this run, in order."""
        wanted = {"teacher": self.config.teacher.pretrain is not None, "control": self.config.train.control}
        return [name for name in STAGES if wanted.get(name, True)]

    def report(self) -> RunReport:
        """What the run has found so far."""
        path = self.folder.path / "metrics.jsonl"
        records = read_records(path) if path.exists() else []
        stages = []
        for name in dict.fromkeys(["teacher", *self.stages()]):
            model = self._model_plan(name).outline()
            own = [record for record in records if record.stage == name]
            stages.append(
                StageReport(name, _size(model), kernel_report(model), own, dict(self._summary(name, records)))
            )
        return RunReport(self.folder.path.name, self.config.to_yaml(), dict(self._environment()), stages)

    def _trainer(self, name: str, sink: FanOut, stop: Stop) -> Trainer:
        plan, train = self.plan, self.config.train
        stage = self._stage(name)
        self._begin = self._begin or plan.data.train.state_dict()
        plan.data.train.load_state_dict(self._begin)
        return Trainer(
            stage,
            data=plan.data.train,
            evaluation=self.container.evaluation(),
            every=(self.config.eval.every, train.save_every),
            sink=sink,
            checkpoints=self._checkpoints(name, stage.teacher),
            speed=self._speed(stage),
            ranks=plan.ranks,
            device=plan.student.device if name != "teacher" else plan.teacher.device,
            stop=stop,
        )

    def _checkpoints(self, name: str, teacher: Teacher | None = None) -> Checkpoints:
        ranks, folder = self.plan.ranks, self.folder.path / "checkpoints" / name
        taught_by = {"teacher.weights": teacher.fingerprint(ranks)} if teacher else {}
        return Checkpoints(folder, ranks, identity(self.plan, name) | taught_by, self.config.train.keep)

    def _stage(self, name: str) -> Stage:
        config = self.config
        steps, lr = schedule(config, name)
        teacher = judge = None
        if name == "teacher":
            model = make_model(self.plan.teacher, self.plan.ranks, seed=config.train.teacher_seed)
        else:
            judge = self.teacher
            model = self.container.student()
            if name == "student":
                teacher, self._student = judge, model
        return Stage(
            name, model, teacher, judge, self.container.loss(), config.optim, lr=lr, steps=steps, seed=config.train.seed
        )

    def _model_plan(self, stage: str) -> ModelPlan:
        return self.plan.teacher if stage == "teacher" else self.plan.student

    def _saved(self, stage: str) -> CausalLM | None:
        path = self.folder.path / stage
        return make_model(self._model_plan(stage), self.plan.ranks, path) if self.folder.is_done(stage) else None

    def _speed(self, stage: Stage) -> Speed:
        seq_len, plan = self.config.data.seq_len, self._model_plan(stage.name)
        peak = peak_flops(plan.device, plan.dtype)
        teacher = self.plan.teacher.config
        return Speed(
            model=3 * forward_flops(stage.model, plan.config, seq_len),
            teacher=forward_flops(stage.teacher.model, teacher, seq_len) if stage.teacher else 0.0,
            peak=None if peak is None else peak * self.plan.ranks.world_size,
        )

    def _summary(self, stage: str, records: list[Any]) -> Iterator[tuple[str, float]]:
        """A teacher that was not trained here is known by the evaluations of its student."""
        if stage == "teacher":
            found = [record.figures for record in records if "teacher_cross_entropy" in record.figures]
            if found:
                yield "cross_entropy", found[-1]["teacher_cross_entropy"]

    def _environment(self) -> Iterator[tuple[str, str]]:
        device = self.plan.student.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type
        yield "date", datetime.now(UTC).isoformat(" ", "minutes")
        yield "device", f"{self.plan.ranks.world_size} x {name}"
        yield "Python", platform.python_version()
        for package in ("kernelkit", "torch", "transformers", "triton", "liger-kernel"):
            try:
                yield package, metadata.version(package)
            except metadata.PackageNotFoundError:
                continue


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
