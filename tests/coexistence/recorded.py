"""A teacher and a student of one class whose kernels note who calls them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernelkit import KernelContainer, build_model
from kernelkit.models import kernel_needs
from kernelkit.registry import default_registry
from tests.models.families import small_config, tokens

CALLS: list[tuple[str, str]] = []
"""(who, op) of each call, in order; cleared by a fixture before every test."""

RECORDED = {"rms_norm": "standard", "rotary_pos_emb": "full", "swiglu_mlp": "silu", "cross_entropy_loss": "standard"}


class Recorder:
    """A kernel that notes its caller, and scales the result so that a mix-up changes the numbers.

    It stands at the top level of a module and pickles by value.
    """

    def __init__(self, who: str, op: str, scale: float) -> None:
        self.who, self.op, self.scale = who, op, scale
        self.__name__ = f"{who}_{op}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        CALLS.append((self.who, self.op))
        result = default_registry().get(self.op, RECORDED[self.op], "eager").build()(*args, **kwargs)
        if isinstance(result, Tensor):
            return result * self.scale
        return tuple(None if part is None else part * self.scale for part in result)


def container_of(who: str, scale: float, family: str) -> KernelContainer:
    """A container whose kernels are recorders."""
    container = KernelContainer.from_config({"preset": "eager"}, device="cpu")
    for op in RECORDED.keys() & {need.op for need in kernel_needs(small_config(family))[1]}:
        container.override(op, Recorder(who, op, scale))
    return container


def recorded_model(who: str, scale: float, family: str = "qwen3", **changes: Any) -> Any:
    """A small model with recorders for kernels."""
    torch.manual_seed(0)
    return build_model(small_config(family, **changes), kernels=container_of(who, scale, family), device="cpu").eval()


def teacher_and_student(family: str = "qwen3") -> tuple[Any, Any]:
    """Two models of one class and equal weights; the student's kernels scale what they return."""
    return recorded_model("teacher", 1.0, family), recorded_model("student", 1.01, family)


def run(model: Any, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one step; gradients are cleared afterwards."""
    loss = model(tokens(2, 6, seed=seed), labels=tokens(2, 6, seed=seed + 1)).loss
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return loss.detach(), gradients


def assert_equal_runs(first: tuple[Tensor, list[Tensor]], second: tuple[Tensor, list[Tensor]]) -> None:
    """Bit for bit."""
    assert torch.equal(first[0], second[0])
    for one, other in zip(first[1], second[1], strict=True):
        assert torch.equal(one, other)
