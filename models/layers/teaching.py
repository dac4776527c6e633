"""What a teacher hands to its student: hidden states and a head, never the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from kernelkit.ops.distillation_loss import DistillationOutput, Divergence


class Teaching(NamedTuple):
    """A teacher's prediction for a batch, as ``CausalLM.teach`` gives it.

    Attributes:
        hidden_states: [B, S, Ht], what the head projects.
        weight: [V, Ht], the head's weight.
        bias: [V], or None.
    """

    hidden_states: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def cut(self, vocabulary: int) -> Teaching:
        """The same for the first ``vocabulary`` tokens alone."""
        bias = self.bias if self.bias is None else self.bias[:vocabulary]
        return Teaching(self.hidden_states, self.weight[:vocabulary], bias)

    def to(self, device: torch.device) -> Teaching:
        """The same on another device."""
        bias = self.bias if self.bias is None else self.bias.to(device)
        return Teaching(self.hidden_states.to(device), self.weight.to(device), bias)


class Distillation(NamedTuple):
    """How a student is to follow its teacher; as the arguments of the op ``distillation_loss``.

    Attributes:
        divergence, beta, temperature, temperature_squared, alpha: as in the op.
        truncate: where the vocabularies differ in size, compare the tokens that both have, the first ones.
    """

    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    temperature_squared: bool = False
    alpha: float = 0.0
    truncate: bool = False


FORWARD_KL = Distillation()


@dataclass
class DistilledOutput(MoeCausalLMOutputWithPast):
    """What a student returns for a ``teaching``: as without one, and the figures that its loss is made of."""

    distillation: DistillationOutput | None = None
