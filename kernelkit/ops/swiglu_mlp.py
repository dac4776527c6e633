"""The gated activation of a feed-forward block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples


class SwiGLUMLP(Protocol):
    """Gate one projection by the activation of another (Shazeer, arXiv:2002.05202).

    Only the elementwise part: the three linears stay modules, so that LoRA, FSDP and quantised linears keep working.

    - ``silu``: silu(gate) * up
    - ``gelu_tanh``: gelu(gate, approximate="tanh") * up
    - ``clamped``: g = min(gate, 7), u = clamp(up, -7, 7); (u + 1) * g * sigmoid(1.702 g)
    """

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Combine ``gate`` [..., I] and ``up`` [..., I].

        Args:
            gate: [..., I], any floating dtype, any strides; it may be a view of one tensor together with ``up``.
            up: [..., I].

        Returns:
            [..., I], in the dtype of the inputs. Each step rounds to that dtype, as HF's modules do.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """Contiguous projections, the two halves of a fused one, an odd width, and no rows."""
    for shape in ((2, 5, 64), (3, 33), (1, 1536), (0, 64)):
        gate, up = (torch.randn(shape, generator=generator, device=device).to(dtype) * 3 for _ in range(2))
        yield (gate, up), {}
    fused = torch.randn(4, 128, generator=generator, device=device).to(dtype)
    yield tuple(fused.chunk(2, dim=-1)), {}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 rows of ``intermediate_size``."""
    shape = (*rows(sizes), sizes["intermediate_size"])
    gate, up = (torch.randn(shape, generator=generator, device=device).to(dtype) * 3 for _ in range(2))
    yield (gate, up), {}


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Forward reads two tensors and writes one; backward reads three and writes two."""
    return Cost((8 if backward else 3) * memory(arguments["gate"]))


OP = Op(
    name="swiglu_mlp",
    variants={
        "silu": "transformers LlamaMLP, Qwen3MLP",
        "gelu_tanh": "transformers Gemma3MLP",
        "clamped": "transformers GptOssExperts._apply_gate",
    },
    protocol=SwiGLUMLP,
    preference=("triton", "compile", "liger", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 3, "intermediate_size": 20_011},
    cost=cost,
    benchmarks=({"batch": 4, "length": 4096, "intermediate_size": 12288},),
)
