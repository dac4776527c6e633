"""RMS normalisation by ``torch.nn.functional.rms_norm``."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.dtypes import at_least_float32
from kernelkit.spec import KernelSpec


def standard(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The weight is left out of the fused kernel, which would round after it instead of before."""
    return weight * F.rms_norm(hidden_states, weight.shape, None, eps)


def zero_centered(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32 throughout, rounded once."""
    return _in_float32(hidden_states, 1.0 + at_least_float32(weight), eps)


def fp32_weight(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32 throughout, rounded once."""
    return _in_float32(hidden_states, at_least_float32(weight), eps)


def _in_float32(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    # Whether F.rms_norm rounds before or after a weight in bfloat16 depends on the device and on torch's version.
    return F.rms_norm(at_least_float32(hidden_states), weight.shape, weight, eps).type_as(hidden_states)


SPECS = tuple(
    KernelSpec(
        op="rms_norm",
        variant=variant,
        name="torch",
        factory=f"{__name__}:{variant}",
        description="torch.nn.functional.rms_norm, with the variant's casts around it.",
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
