"""A norm as a fused op is given it: something to call, with its weight and epsilon to read."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor


class Norm(Protocol):
    """A module that is one RMS normalisation.

    A kernel that is composed of others calls it, so that whatever kernel it holds and whatever hangs on it takes part.
    A kernel that computes the norm itself reads the weight and the epsilon, after making sure that a call would do
    nothing else.

    Attributes:
        computes: ``"rms_norm"``, on classes whose call is that op of the two attributes below and nothing more.
        weight: [H].
        variance_epsilon: added to the mean square.
    """

    computes: ClassVar[str]
    weight: Any
    variance_epsilon: Any

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Normalise ``hidden_states`` [..., H]."""


class SampleNorm(NamedTuple):
    """A norm for the samples of an op: a tree of tensors, so that whoever judges a kernel can change them.

    Attributes:
        weight, variance_epsilon: as in :class:`Norm`.
        variant: of the op ``rms_norm``.
    """

    weight: Tensor
    variance_epsilon: float
    variant: str = "standard"

    @property
    def computes(self) -> str:
        """The op."""
        return "rms_norm"

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """The variant's formula, rounded where it says."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        if self.variant == "standard":
            return self.weight * normed.to(hidden_states.dtype)
        offset = 1.0 if self.variant == "zero_centered" else 0.0
        return (normed * (offset + self.weight.to(wide.dtype))).to(hidden_states.dtype)
