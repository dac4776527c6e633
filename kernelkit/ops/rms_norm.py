"""Root mean square layer normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples


class RMSNorm(Protocol):
    """Divide by the root mean square of the last dimension, and scale (Zhang and Sennrich, arXiv:1910.07467).

    With n = x * rsqrt(mean(x^2) + eps) in float32, the variants differ in where they round to the dtype of x:

    - ``standard``: weight * n.to(x.dtype), the product in the promoted dtype of weight and x
    - ``zero_centered``: (n * (1 + weight.float())).to(x.dtype)
    - ``fp32_weight``: (weight * n).to(x.dtype)
    """

    def __call__(self, hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise ``hidden_states`` [..., H] by ``weight`` [H].

        Args:
            hidden_states: [..., H], any floating dtype, any strides, zero rows allowed.
            weight: [H].
            eps: added to the mean square.

        Returns:
            [..., H], in the dtype of ``hidden_states`` (``standard`` with a wider weight: in that of the weight).
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Hidden sizes of models and heads, odd ones, a single row, no row, and a transposed input."""
    for shape in ((2, 5, 64), (3, 4, 8, 128), (1, 1, 1536), (7, 33), (0, 64)):
        hidden_states = torch.randn(shape, generator=generator, device=device).to(dtype)
        yield _call(hidden_states, generator)
    yield _call(torch.randn(64, 6, generator=generator, device=device).to(dtype).t(), generator)


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 rows of ``hidden_size``."""
    shape = (*rows(sizes), sizes["hidden_size"])
    yield _call(torch.randn(shape, generator=generator, device=device).to(dtype), generator)


def _call(hidden_states: Tensor, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor, float], dict[str, object]]:
    weight = torch.randn(hidden_states.shape[-1], generator=generator, device=hidden_states.device)
    return (hidden_states, weight.to(hidden_states.dtype), 1e-6), {}


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Forward reads and writes the states; backward reads them and a gradient, and writes one."""
    return Cost((5 if backward else 2) * memory(arguments["hidden_states"]))


OP = Op(
    name="rms_norm",
    variants={
        "standard": "transformers LlamaRMSNorm, Qwen3RMSNorm",
        "zero_centered": "transformers Gemma3RMSNorm, Qwen3NextRMSNorm",
        "fp32_weight": "transformers GptOssRMSNorm, Olmo2RMSNorm",
    },
    protocol=RMSNorm,
    preference=("triton", "compile", "torch", "liger", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 3, "hidden_size": 20_011},
    cost=cost,
    benchmarks=(
        {"batch": 4, "length": 4096, "hidden_size": 4096},
        {"batch": 128, "length": 4096, "hidden_size": 128},
    ),
)
