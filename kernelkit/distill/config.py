"""What a distillation run is: everything that ``kernelkit distill`` reads from its YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, PrivateAttr, StrictBool, ValidationError, field_serializer, model_validator

from kernelkit.distill.config_file import ConfigFile
from kernelkit.distill.data.config import DataConfig
from kernelkit.distill.model_config import Section, Steps, StudentConfig, TeacherConfig
from kernelkit.errors import Problem, validation_error
from kernelkit.models.layers.teaching import Distillation
from kernelkit.ops.distillation_loss import Divergence

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LossConfig(Section):
    """How the student follows the teacher; see ``kernelkit explain distillation_loss``."""

    divergence: Divergence = "forward_kl"
    """``forward_kl``: KL(teacher||student); ``reverse_kl``: KL(student||teacher); ``jsd``: between, by ``beta``."""

    beta: Share | None = None
    """Of ``jsd``, 0.5 unless given: 0 is KL(teacher||student), 1 is KL(student||teacher)."""

    temperature: Positive = 1.0
    """Divides the logits of both models in the divergence."""

    temperature_squared: StrictBool = False
    """Multiply the divergence, and with it its gradient, by the temperature's square."""

    alpha: Share = 0.0
    """Share of the labels: loss = alpha * cross-entropy + (1 - alpha) * divergence."""

    vocab: Literal["same", "truncate"] = "same"
    """``truncate``: where the vocabularies differ in size, compare the first tokens, which both have. Otherwise they
    must have the same size."""

    @model_validator(mode="after")
    def _beta_is_of_jsd(self) -> Self:
        if self.beta is not None and self.divergence != "jsd":
            message = f"beta is of jsd, and the divergence is {self.divergence}"
            raise validation_error(type(self).__name__, [Problem(("beta",), "unused_beta", message, self.beta)])
        return self

    @property
    def distillation(self) -> Distillation:
        """As a student's ``forward`` takes it."""
        beta = 0.5 if self.beta is None else self.beta
        truncate = self.vocab == "truncate"
        return Distillation(
            self.divergence, beta, self.temperature, self.temperature_squared, self.alpha, truncate=truncate
        )


class OptimConfig(Section):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) and its learning rate."""

    lr: Positive = 3e-4
    """Peak learning rate."""

    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the moving averages of gradient and squared gradient."""

    eps: Positive = 1e-8
    """Added to the root of the squared gradient's average."""

    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Of matrices; norms and biases do not decay."""

    clip_norm: Positive | None = 1.0
    """Largest norm of the gradient of all parameters; larger ones are scaled down. None: never."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up, to ``min_lr_ratio`` of its peak at the last step."""

    warmup_steps: Annotated[int, Field(strict=True, ge=0)] = 0
    """Steps in which the learning rate rises linearly from zero to its peak."""

    min_lr_ratio: Share = 0.1
    """See ``schedule``."""


class TrainConfig(Section):
    """How long the student is trained."""

    steps: Steps
    """Steps of the optimizer. Gradients are accumulated over the micro-batches of a step."""

    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    """Of new weights, of the order of the data, and of dropout."""

    save_every: Steps | None = None
    """Steps between two checkpoints. None: a checkpoint is only written when the run is told to stop."""

    keep: Steps = 2
    """How many checkpoints are kept, the newest ones."""

    control: StrictBool = False
    """Train a second student from the same weights on the labels alone, to see what the teacher is good for."""

    @property
    def teacher_seed(self) -> int:
        """Of a new teacher: a student of the same shape shall not begin as its twin."""
        return self.seed + 1


class EvalConfig(Section):
    """When the validation data are looked at; there must be some for that."""

    every: Steps | None = None
    """Steps between two evaluations; there is one after the last step in any case."""

    batches: Steps | None = None
    """The first so many batches of the validation data; None for all."""


class OutputConfig(Section):
    """Where the run writes what it finds."""

    dir: Annotated[str, Field(min_length=1)]
    """Folder of the run: models, checkpoints, ``metrics.jsonl``, ``report.html``."""

    tensorboard: StrictBool = True
    """Write the figures for TensorBoard too."""


class DistillConfig(Section):
    """A whole run. All mistakes are reported at once, with file and line where it was read from YAML."""

    teacher: TeacherConfig
    student: StudentConfig
    loss: LossConfig = LossConfig()
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    output: OutputConfig

    _source: ConfigFile | None = PrivateAttr(default=None)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """The config in a YAML file.

        Args:
            path: the file.
            overrides: values in place of the file's, such as ``"student.ops.rms_norm=liger"``; what stands behind the
                sign is YAML.

        Raises:
            ValidationError: for every mistake, each with ``file:line:column`` or the override that it is in.
        """
        source = ConfigFile.read(path, overrides)
        config = source.validate(cls)
        config._source = source
        return config

    def __eq__(self, other: object) -> bool:
        # Where it was read from makes no difference.
        return isinstance(other, DistillConfig) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def error(self, problems: Sequence[Problem]) -> ValidationError:
        """``problems``, found later than reading, as one error; located where this config is from a file."""
        title = type(self).__name__
        return self._source.error(title, problems) if self._source else validation_error(title, problems)

    @model_validator(mode="after")
    def _steps_agree(self) -> Self:
        problems = []
        for steps, loc in ((self.train.steps, ("train", "steps")), *self._pretraining()):
            if self.optim.warmup_steps > steps:
                message = f"the warm-up is longer than {'.'.join(loc)}, which is {steps}"
                problems.append(Problem(("optim", "warmup_steps"), "long_warmup", message, self.optim.warmup_steps))
        if self.eval.every is not None and self.data.validation is None:
            message = "there are no validation data to evaluate on: name some in data.validation, or held-out"
            problems.append(Problem(("eval", "every"), "no_validation", message, self.eval.every))
        if problems:
            raise validation_error(type(self).__name__, problems)
        return self

    def _pretraining(self) -> list[tuple[int, tuple[str, ...]]]:
        pretrain = self.teacher.pretrain
        return [] if pretrain is None else [(pretrain.steps, ("teacher", "pretrain", "steps"))]

    @field_serializer("teacher", "student")
    def _as_written(self, section: Any) -> dict[str, Any]:
        plain: dict[str, Any] = section.model_dump(exclude_unset=True, exclude={"ops"})
        return {**plain, "ops": section.ops.model_dump()} if section.ops.model_dump() else plain

    def to_yaml(self) -> str:
        """This config as YAML, without what is left at its default; ``from_yaml`` reads it back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
