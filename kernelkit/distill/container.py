"""The parts of a run, each of which a test or a user may replace."""

from __future__ import annotations

from pathlib import Path

from dependency_injector import containers, providers
from rich.console import Console

from kernelkit.distill.config import DistillConfig
from kernelkit.distill.evaluation import Evaluation
from kernelkit.distill.metrics import Sink
from kernelkit.distill.model_plan import ModelPlan
from kernelkit.distill.parallel import Ranks, shard
from kernelkit.distill.plan import Plan
from kernelkit.distill.sinks import JsonLines, ProgressBar, TensorBoard
from kernelkit.distill.teacher import Teacher
from kernelkit.models.layers.causal_lm import CausalLM


def make_model(
    plan: ModelPlan, ranks: Ranks, path: str | Path | None = None, *, training: bool = True, seed: int = 0
) -> CausalLM:
    """A model with its kernels, sharded where there are several ranks, and compiled where its section says so."""
    model = plan.build(path, training=training, seed=seed)
    if ranks.world_size == 1:
        if plan.section.compile:
            model.model.compile(fullgraph=True)
        return model
    if plan.section.compile:
        for layer in model.model.layers:
            layer.compile(fullgraph=True)
    shard(model, ranks, plan.device)
    return model


def make_teacher(plan: Plan, path: str | Path | None = None) -> Teacher:
    """The teacher, loaded from ``path`` where it was trained first."""
    model = make_model(plan.teacher, plan.ranks, path, training=False, seed=plan.config.train.teacher_seed)
    return Teacher(model, plan.student.device)


def make_student(plan: Plan) -> CausalLM:
    """A student with its first weights, the same ones at every call."""
    return make_model(plan.student, plan.ranks, seed=plan.config.train.seed)


def make_evaluation(plan: Plan) -> Evaluation | None:
    """What looks at the validation data, if there are any."""
    if plan.data.validation is None:
        return None
    truncate = plan.config.loss.vocab == "truncate"
    return Evaluation(plan.data.validation, plan.config.eval.batches, truncate=truncate, ranks=plan.ranks)


def make_sinks(plan: Plan, console: Console | None = None) -> list[Sink]:
    """Where the figures go: a file, the terminal, TensorBoard. Only the first rank has any."""
    if not plan.ranks.is_first:
        return []
    folder = Path(plan.config.output.dir)
    sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl"), ProgressBar(console or Console(stderr=True))]
    return [*sinks, TensorBoard(folder / "tensorboard")] if plan.config.output.tensorboard else sinks


class DistillContainer(containers.DeclarativeContainer):
    """The parts of one run, and how they are made of each other.

    Each may be replaced before the run begins::

        distiller = Distiller(config)
        distiller.container.student.override(providers.Object(my_student))
        distiller.fit()

    Attributes:
        config, ranks: what the run is made for.
        plan: the run, checked; its data among them.
        loss: how the student follows the teacher.
        teacher: takes the folder of weights, or None for those of the config.
        student: makes one at each call: the control is a second one.
        evaluation: of the validation data, or None.
        sinks: where figures go.
    """

    config = providers.Dependency(instance_of=DistillConfig)
    ranks = providers.Singleton(Ranks.from_environment)
    plan = providers.Singleton(Plan.make, config, ranks)
    loss = providers.Singleton(lambda config: config.loss.distillation, config)
    teacher = providers.Factory(make_teacher, plan)
    student = providers.Factory(make_student, plan)
    evaluation = providers.Singleton(make_evaluation, plan)
    sinks = providers.Singleton(make_sinks, plan)
