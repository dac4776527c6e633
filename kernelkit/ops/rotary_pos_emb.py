"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from kernelkit.ops.cost import memory, rows
from kernelkit.spec import Cost, Op, Samples


class RotaryPosEmb(Protocol):
    """Rotate pairs of query and key channels by an angle that grows with the position (Su et al., arXiv:2104.09864).

    Each is x * cos + rotate(x) * sin. The variants differ in which channels make a pair:

    - ``full``: channel i with channel i + D/2
    - ``partial``: the same within the first R channels, R being the width of cos; the others pass unchanged
    - ``interleaved``: channel 2i with channel 2i + 1, within the first R channels; cos holds each angle twice, halves
      one after the other as HF builds them, and only its first half is read
    """

    def __call__(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate ``query`` [B, Hq, S, D] and ``key`` [B, Hk, S, D].

        Args:
            query: [B, Hq, S, D], any strides; a projection seen through ``transpose(1, 2)`` is the usual case.
            key: [B, Hk, S, D].
            cos, sin: [B or 1, S, R] with R <= D, in the dtype of the query. A kernel owes them no gradient.

        Returns:
            The rotated query and key, new tensors of the same shapes and dtypes.
        """


def samples(variant: str, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Samples:
    """One and several positions and batches, grouped heads, shared and per-row angles, and an empty sequence."""
    for batch, heads, kv_heads, length, dim, shared in (
        (2, 4, 2, 5, 16, False),
        (1, 3, 1, 1, 32, False),
        (2, 2, 2, 7, 64, True),
        (1, 2, 1, 0, 16, False),
    ):
        rotated = dim if variant == "full" else dim // 2
        rows = 1 if shared else batch
        yield _call((batch, length), (heads, kv_heads), dim, rows, rotated, dtype, device, generator)


def sized_samples(
    variant: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Samples:
    """64 positions of ``heads`` and ``kv_heads`` with ``head_dim`` channels, of which ``rotary_dim`` are rotated."""
    dim = sizes["head_dim"]
    rotated = sizes.get("rotary_dim", dim if variant == "full" else dim // 2)
    yield _call(rows(sizes), (sizes["heads"], sizes["kv_heads"]), dim, 1, rotated, dtype, device, generator)


def _call(
    shape: tuple[int, int],
    heads: tuple[int, int],
    dim: int,
    rows: int,
    rotated: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[tuple[Tensor, ...], dict[str, object]]:
    """Queries and keys as projections leave them, and the angles of ``rows`` rows."""
    angles = torch.rand(rows, shape[1], rotated // 2, generator=generator, device=device) * 6.28
    angles = torch.cat((angles, angles), dim=-1)
    query, key = (
        torch.randn(*shape, count, dim, generator=generator, device=device).to(dtype).transpose(1, 2) for count in heads
    )
    return (query, key, angles.cos().to(dtype), angles.sin().to(dtype)), {}


def cost(arguments: Mapping[str, Any], backward: bool) -> Cost:
    """Each direction reads and writes query and key, or their gradients."""
    return Cost((4 if backward else 2) * memory(arguments["query"], arguments["key"]))


OP = Op(
    name="rotary_pos_emb",
    variants={
        "full": "transformers llama.apply_rotary_pos_emb",
        "partial": "transformers qwen3_next.apply_rotary_pos_emb",
        "interleaved": "transformers glm4.apply_rotary_pos_emb",
    },
    protocol=RotaryPosEmb,
    preference=("triton", "compile", "liger", "eager"),
    samples=samples,
    sized_samples=sized_samples,
    long_rows={"length": 67, "heads": 3, "kv_heads": 1, "head_dim": 512},
    cost=cost,
    benchmarks=({"batch": 4, "length": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128},),
)
