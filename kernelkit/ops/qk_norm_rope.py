"""What Qwen3 does with queries and keys before attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops import rotary_pos_emb
from kernelkit.ops.cost import memory
from kernelkit.ops.norms import Norm, SampleNorm
from kernelkit.spec import Cost, Kernel, Op, Samples


class QKNormRope(Protocol):
    """Normalise each head of query and key, then rotate both by their positions.

    - ``standard``: the variants ``standard`` of ``rms_norm`` and ``full`` of ``rotary_pos_emb``
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        q_norm: Norm,
        k_norm: Norm,
        rotary_pos_emb: Kernel,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Normalise and rotate ``query`` [B, S, Hq, D] and ``key`` [B, S, Hk, D].

        Args:
            query: [B, S, Hq, D], as the projection gives it; any strides.
            key: [B, S, Hk, D].
            q_norm, k_norm: the model's norms over D.
            rotary_pos_emb: the model's rotation, for a kernel that is composed of it.
            cos, sin: [B or 1, S, D], in the dtype of the query. A kernel owes them no gradient.

        Returns:
            Query [B, Hq, S, D] and key [B, Hk, S, D], new tensors in the dtype that the norms give.

        Raises:
            ValueError: where the kernel does not call the norms, and something hangs on one that a call would honour.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """The samples of the rotation with norms before it: in the dtype of the query, and in float32 as under autocast."""
    for (query, key, cos, sin), _ in rotary_pos_emb.samples("full", dtype, device, generator):
        weights = torch.randn(2, query.shape[-1], generator=generator, device=device)
        for kept in dict.fromkeys((dtype, torch.float32)):
            norms = [SampleNorm(weight.to(kept), 1e-6) for weight in weights]
            yield (query.transpose(1, 2), key.transpose(1, 2), *norms, rotated, cos, sin), {}


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """Those of the rotation, with norms before it."""
    for (query, key, cos, sin), _ in rotary_pos_emb.sized_samples("full", sizes, dtype, device, generator):
        weights = torch.randn(2, query.shape[-1], generator=generator, device=device).to(dtype)
        norms = [SampleNorm(weight, 1e-6) for weight in weights]
        yield (query.transpose(1, 2), key.transpose(1, 2), *norms, rotated, cos, sin), {}


def rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation by its definition, for calls that come without a model's kernels."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def turned(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin

    return turned(query), turned(key)


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Forward reads and writes query and key; backward reads them and their gradients, and writes gradients."""
    return Cost((5 if backward else 2) * memory(arguments["query"], arguments["key"]))


OP = Op(
    name="qk_norm_rope",
    variants={"standard": "transformers Qwen3Attention, between the projections and the attention"},
    protocol=QKNormRope,
    preference=("triton", "eager"),
    parts=("rms_norm", "rotary_pos_emb"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 67, "heads": 3, "kv_heads": 1, "head_dim": 512},
    cost=cost,
    benchmarks=({"batch": 4, "length": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128},),
)
