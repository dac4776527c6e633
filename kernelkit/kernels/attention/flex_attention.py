"""``torch.nn.attention.flex_attention``: a fused kernel generated for the mask and the softcap."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from kernelkit.hardware import HardwareRequirement
from kernelkit.spec import KernelSpec

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexAttentionOptions(BaseModel):
    """Sizes of the generated kernel, by torch's ``FlexKernelOptions``; None leaves them to torch.

    Attributes:
        block_m, block_n: rows of queries and of keys that one program of the forward works on; powers of 2.
        num_warps, num_stages: of the forward and the backward. Fewer stages need less shared memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_m: int | None = Field(default=None, ge=16)
    block_n: int | None = Field(default=None, ge=16)
    num_warps: int | None = Field(default=None, ge=1)
    num_stages: int | None = Field(default=None, ge=1)

    def kernel_options(self, q_length: int) -> FlexKernelOptions | None:
        """As ``flex_attention`` takes them, for ``q_length`` queries."""
        # Left to itself, torch 2.11 takes its decoding kernel for up to 128 queries and may find no size that fits.
        backend = {} if q_length == 1 else {"BACKEND": "TRITON"}
        named: dict[str, int | None] = {"fwd_BLOCK_M": self.block_m, "fwd_BLOCK_N": self.block_n}
        named |= {"num_warps": self.num_warps, "num_stages": self.num_stages}
        chosen = backend | {name: value for name, value in named.items() if value is not None}
        return cast("FlexKernelOptions", chosen) if chosen else None


class FlexAttention:
    """flex_attention as one resolved kernel; see :class:`kernelkit.ops.attention.Attention`.

    On a GPU it is compiled, once for each instance, so that two models share neither compiled code nor its limit on
    recompilations; within an outer ``torch.compile`` it becomes part of that graph. The head dimension is at least 16.
    On a CPU torch's flex_attention refuses to make gradients, compiled or not. There the same mask and softcap are
    applied to a whole matrix of scores, for tests and small models.
    """

    def __init__(self, options: FlexAttentionOptions) -> None:
        self.options = options

    def __reduce__(self) -> tuple[type[FlexAttention], tuple[FlexAttentionOptions]]:
        return FlexAttention, (self.options,)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: BlockMask | None,
        *,
        scaling: float,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Raises:
            ValueError: for dropout, which flex_attention does not have, and without a mask for several queries.
        """
        if dropout > 0.0:
            raise ValueError("attention: flex_attention has no dropout; set attention_dropout to 0 or use sdpa")
        if mask is None and query.shape[2] > 1:
            raise ValueError(
                "attention: flex_attention needs the mask that build_mask('block', ...) makes for several queries"
            )
        # Under autocast, rotary embeddings and norms leave query and key in float32.
        query, key = query.to(value.dtype), key.to(value.dtype)
        score_mod = None if softcap is None else _softcap(softcap)
        attend = self._attend_on(query.device)
        output = attend(query, key, value, score_mod, mask, scaling, self.options.kernel_options(query.shape[2]))
        return output.transpose(1, 2).contiguous(), None

    def _attend_on(self, device: torch.device) -> Callable[..., Tensor]:
        if device.type == "cpu":
            return _dense
        return _fused if torch.compiler.is_compiling() else self._compiled

    @functools.cached_property
    def _compiled(self) -> Callable[..., Tensor]:
        # torch keeps compiled code with the code object, so a new one keeps this instance's apart.
        fresh = types.FunctionType(_fused.__code__.replace(), _fused.__globals__)
        return torch.compile(fresh)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    mask: BlockMask | None,
    scaling: float,
    kernel_options: FlexKernelOptions | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(
        query, key, value, score_mod, mask, scale=scaling, enable_gqa=True, kernel_options=kernel_options
    )


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    mask: BlockMask | None,
    scaling: float,
    kernel_options: FlexKernelOptions | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import create_mask

    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)).float() * scaling
    if score_mod is not None:
        index = scores.new_zeros((), dtype=torch.int32)
        scores = score_mod(scores, index, index, index, index)
    if mask is not None:
        seen = create_mask(mask.mask_mod, batch, 1, length, key.shape[2], device=query.device)
        scores = scores.masked_fill(~seen, float("-inf"))
    return torch.matmul(scores.softmax(-1).to(value.dtype), value)


def _softcap(softcap: float) -> ScoreMod:
    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


SPECS = [
    KernelSpec(
        op="attention",
        variant=variant,
        name="flex_attention",
        factory="kernelkit.kernels.attention.flex_attention:FlexAttention",
        hardware=HardwareRequirement(device_type=("cpu", "cuda")),
        dtypes=("float16", "bfloat16", "float32"),
        options=FlexAttentionOptions,
        traits={"mask": "block"},
        description="A kernel that torch generates for the mask, skipping what it hides; dense on a CPU.",
    )
    for variant in ("causal", "sliding_window", "softcap")
]
