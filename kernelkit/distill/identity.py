"""What a training is: what must be the same where a run goes on."""

from __future__ import annotations

from typing import Any

from kernelkit.distill.config import DistillConfig
from kernelkit.distill.model_plan import ModelPlan
from kernelkit.distill.plan import Plan

_ORIGIN = {"transformers_version", "_name_or_path", "architectures", "dtype"}


def schedule(config: DistillConfig, stage: str) -> tuple[int, float]:
    """Steps and peak learning rate of a stage's training."""
    pretrain, lr = config.teacher.pretrain, config.optim.lr
    if stage == "teacher" and pretrain is not None:
        return pretrain.steps, pretrain.lr or lr
    return config.train.steps, lr


def identity(plan: Plan, stage: str) -> dict[str, Any]:
    """What the checkpoints of a stage must share, by name; JSON values. Kernels, devices and ranks may differ."""
    config = plan.config
    steps, lr = schedule(config, stage)
    sections = {
        "model": _model(plan.teacher if stage == "teacher" else plan.student),
        "optim": config.optim.model_dump(mode="json"),
        "data": plan.data.train.fingerprint,
    }
    if stage == "student":
        sections |= {"loss": config.loss.distillation._asdict(), "teacher": _model(plan.teacher)}
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {"stage": stage, "steps": steps, "lr": lr, "seed": config.train.seed, **flat}


def _model(plan: ModelPlan) -> dict[str, Any]:
    """What a model's config says of the model itself, and not of where it comes from."""
    own = plan.config.to_diff_dict()
    return {"dtype": plan.section.dtype} | {key: own[key] for key in sorted(own.keys() - _ORIGIN)}
