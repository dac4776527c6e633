"""The ``teacher:`` and ``student:`` sections of a distillation config."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from kernelkit.containers.ops_config import OpsConfig
from kernelkit.errors import Problem, validation_error

Steps = Annotated[int, Field(strict=True, ge=1)]

Ops = Annotated[OpsConfig, BeforeValidator(lambda ops: OpsConfig.load(ops) if isinstance(ops, str) else ops)]
"""A mapping of ops to implementations, or the path of a YAML file that holds one."""


class Section(BaseModel):
    """Base of the sections of a distillation config: immutable, and every key must be known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Which model, and with which kernels."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """Folder of a checkpoint in HF's format. Either this or ``config``."""

    config: dict[str, Any] | None = None
    """An HF config with its ``model_type``, for new weights: ``{model_type: qwen3, hidden_size: 64, ...}``."""

    ops: Ops = OpsConfig()
    """The implementation of each op, as in an :class:`OpsConfig`; or the path of a file that holds one."""

    compile: StrictBool = False
    """Trace the decoder with ``torch.compile``, in one graph; of a model that is sharded, each layer."""

    device: Annotated[str, Field(min_length=1)] | None = None
    """A torch device, such as ``cpu`` or ``cuda:1``. Unless given, the student is on the accelerator of its process, if
    there is one, and the teacher where the student is."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.path is None) == (self.config is None):
            which = "neither is" if self.path is None else "both are"
            message = f"a model has either a path (a checkpoint) or a config (new weights), and {which} given"
            raise validation_error(type(self).__name__, [Problem((), "model_source", message)])
        return self


class StudentConfig(ModelConfig):
    """The model that learns."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights and of the arithmetic. With ``bfloat16`` the optimizer keeps the weights in float32 as well."""

    gradient_checkpointing: StrictBool = False
    """Keep only the inputs of the layers for backward, and compute what is in between again."""


class PretrainConfig(Section):
    """How a new teacher is trained before it teaches: on labels alone, on the data of the run."""

    steps: Steps
    """Steps of the optimizer; the rest of ``optim`` and of ``train`` is that of the student."""

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Peak learning rate; the student's unless given."""


class TeacherConfig(ModelConfig):
    """The model that teaches. It is never changed by the student's training."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights and of the arithmetic."""

    pretrain: PretrainConfig | None = None
    """Train the teacher first. Only with ``config``; without it the weights of a ``config`` are random."""

    @model_validator(mode="after")
    def _is_new_where_pretrained(self) -> Self:
        if self.pretrain is not None and self.path is not None:
            message = "only a teacher with new weights is trained first; give its config, not a path"
            raise validation_error(type(self).__name__, [Problem(("pretrain",), "pretrained_checkpoint", message)])
        if self.pretrain is not None and self.dtype == "float16":
            message = "float16 is for a teacher that is not trained; use float32 or bfloat16"
            raise validation_error(type(self).__name__, [Problem(("dtype",), "trained_in_float16", message, "float16")])
        return self
