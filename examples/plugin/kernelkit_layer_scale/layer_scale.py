"""A residual connection whose branch is scaled by channel."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kernelkit import KernelSpec, Op
from kernelkit.spec import Samples


class LayerScale(Protocol):
    """residual + scale * branch, one learned factor for each channel (Touvron et al., arXiv:2103.17239, section 2)."""

    def __call__(self, residual: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        """Add ``branch``, scaled, to ``residual``.

        Args:
            residual: [..., H], any floating dtype.
            branch: [..., H], of the same dtype.
            scale: [H], of the same dtype.

        Returns:
            A new tensor [..., H], in the dtype of ``residual``.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """A batch of sequences, an odd width, and no row."""
    for shape in ((2, 5, 64), (3, 33), (0, 16)):
        residual, branch = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
        yield (residual, branch, torch.randn(shape[-1], generator=generator, device=device).to(dtype)), {}


def eager(residual: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """The definition."""
    return residual + scale * branch


def addcmul(residual: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """In one pass, and rounded once."""
    return torch.addcmul(residual, branch, scale)


OP = Op(
    name="layer_scale",
    variants={"standard": "timm LayerScale"},
    protocol=LayerScale,
    preference=("torch", "eager"),
    samples=samples,
)

SPECS = [
    KernelSpec(
        op="layer_scale",
        variant="standard",
        name="eager",
        factory="kernelkit_layer_scale.layer_scale:eager",
        description="The definition, in PyTorch.",
    ),
    KernelSpec(
        op="layer_scale",
        variant="standard",
        name="torch",
        factory="kernelkit_layer_scale.layer_scale:addcmul",
        description="torch.addcmul.",
    ),
]
