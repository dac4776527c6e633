"""How much arithmetic a token costs, and which share of the device's peak that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from kernelkit.models.layers.attention import head_dim_of
from kernelkit.models.layers.moe import Experts

PEAK_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16 products of a second, by what a device's name contains; NVIDIA's datasheets, SXM form."""


def forward_flops(model: nn.Module, config: PreTrainedConfig, seq_len: int) -> float:
    """Floating point operations of one token's forward pass, as PaLM counts them (arXiv:2204.02311, appendix B).

    Two for each weight that the token is multiplied with, of experts those that it is routed to, and for the attention
    4 * layers * heads * head_dim * seq_len, as if no position were masked.
    """
    weights = 0.0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weights += module.weight.numel()
        elif isinstance(module, Experts):
            share = config.num_experts_per_tok / config.num_experts
            weights += share * sum(parameter.numel() for parameter in module.parameters())
    heads = config.num_hidden_layers * config.num_attention_heads * head_dim_of(config)
    return 2 * weights + 4 * heads * seq_len


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's peak rate of products in ``dtype``, or None where it is not known."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class Speed:
    """What a token costs in a step, and what the devices could do.

    Attributes:
        model: operations of a token's forward and backward in the model that is trained.
        teacher: of its forward in the teacher; zero without one.
        peak: rate of all devices together; None where it is not known.
    """

    model: float
    teacher: float
    peak: float | None

    def figures(self, tokens: int, seconds: float) -> dict[str, float]:
        """Tokens a second, and the model flops utilisation: of the trained model alone, and with its teacher."""
        rate = tokens / seconds
        if self.peak is None:
            return {"tokens_per_second": rate}
        return {
            "tokens_per_second": rate,
            "mfu": rate * self.model / self.peak,
            "mfu_with_teacher": rate * (self.model + self.teacher) / self.peak,
        }
