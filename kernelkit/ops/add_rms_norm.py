"""The addition of a residual, and the norm of the sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.ops.norms import Norm, SampleNorm
from kernelkit.spec import Cost, Op, Samples


class AddRMSNorm(Protocol):
    """Add the residual to a block's output, and normalise the sum.

    total = residual + hidden_states, rounded to their promoted dtype; the variants are those of ``rms_norm``, of total.
    """

    def __call__(self, hidden_states: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """Add ``residual`` [..., H] to ``hidden_states`` [..., H], and normalise.

        Args:
            hidden_states: [..., H], any strides.
            residual: [..., H]; the dtypes may differ, as under autocast.
            norm: the model's norm, of which the variant is that of this kernel.

        Returns:
            The sum, which is the next residual, and the sum normalised; both new tensors [..., H].

        Raises:
            ValueError: where the kernel does not call ``norm``, and something hangs on it that a call would honour.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Hidden sizes of models, odd ones, a single row, no row, a transposed input, and what autocast makes."""
    for shape in ((2, 5, 64), (1, 1, 1536), (7, 33), (0, 64)):
        states, residual = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
        yield (states, residual, _norm(variant, states, generator)), {}
    states, residual = torch.randn(2, 64, 6, generator=generator, device=device).to(dtype).transpose(1, 2)
    yield (states, residual, _norm(variant, states, generator)), {}
    residual = torch.randn(states.shape, generator=generator, device=device)
    yield (states, residual, _norm(variant, residual, generator)), {}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 rows of ``hidden_size``."""
    shape = (*rows(sizes), sizes["hidden_size"])
    states, residual = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
    yield (states, residual, _norm(variant, states, generator)), {}


def _norm(variant: str, states: Tensor, generator: torch.Generator) -> SampleNorm:
    weight = torch.randn(states.shape[-1], generator=generator, device=states.device)
    return SampleNorm(weight.to(states.dtype), 1e-6, variant)


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Forward reads two tensors and writes two; backward reads both gradients and the sum, and writes one for both."""
    return Cost((8 if backward else 4) * memory(arguments["hidden_states"]))


OP = Op(
    name="add_rms_norm",
    variants={
        "standard": "the residual and post_attention_layernorm of transformers LlamaDecoderLayer",
        "zero_centered": "those of transformers Qwen3NextDecoderLayer",
        "fp32_weight": "those of transformers GptOssDecoderLayer",
    },
    protocol=AddRMSNorm,
    preference=("triton", "eager"),
    parts=("rms_norm",),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 3, "hidden_size": 20_011},
    cost=cost,
    benchmarks=({"batch": 4, "length": 4096, "hidden_size": 4096},),
)
