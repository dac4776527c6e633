"""``torch.nn.functional.scaled_dot_product_attention``, called as transformers calls it."""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernelkit.spec import Kernel, KernelSpec

MAX_GQA_HEAD_DIM = 256
"""Wider heads leave SDPA's fused kernels when it is asked to share keys between heads."""


BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


class SdpaOptions(BaseModel):
    """What a config may set.

    Attributes:
        backend: which of SDPA's own kernels to use; unless given, PyTorch picks one for each call. A call that it
            cannot serve raises; ``flash`` takes no mask of padding or of several documents in a row. On an H200
            torch 2.11 picks ``cudnn``, which plans anew for each shape that it meets: batches of ever other lengths may
            be faster with ``flash``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["flash", "efficient", "cudnn", "math"] | None = None


def with_options(options: SdpaOptions) -> Kernel:
    """The kernel; with a backend, no other one is tried."""
    if options.backend is None:
        return sdpa
    backend = BACKENDS[options.backend]

    @functools.wraps(sdpa)
    def of_one_backend(*args: Tensor, **settings: float) -> tuple[Tensor, None]:
        with sdpa_kernel(backend):
            # On a GPU the efficient one takes as many heads of keys as of queries.
            return sdpa(*args, **settings, shares_keys=options.backend != "efficient")  # type: ignore[arg-type]  # the keywords are of different types

    return of_one_backend


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    shares_keys: bool = True,
) -> tuple[Tensor, None]:
    """See :class:`kernelkit.ops.attention.Attention`; it chooses as transformers' ``sdpa_attention_forward`` does.

    Args:
        query, key, value, mask, scaling, dropout, sliding_window, softcap: as there.
        shares_keys: heads of queries may share those of keys inside of SDPA.

    Raises:
        ValueError: for ``softcap``, which SDPA does not have.
    """
    if softcap is not None:
        raise ValueError("attention: sdpa has no softcap; use eager, flex_attention or flash_attention_2")
    batch, heads, length, _ = query.shape
    # SDPA aligns is_causal at the first key; a static cache's slots past the last query would only cost time.
    is_causal = length > 1 and mask is None
    if is_causal and key.shape[2] > length:
        key, value = key[:, :, :length], value[:, :, :length]

    groups = heads // key.shape[1]
    share = shares_keys and groups > 1 and mask is None and key.shape[-1] == value.shape[-1] <= MAX_GQA_HEAD_DIM
    if groups > 1 and not share:
        if length == 1 and not torch.compiler.is_compiling():
            # With one query, the heads of a group can stand in for queries, and no key is copied.
            query = query.reshape(batch, -1, groups, query.shape[-1])
            if mask is not None and mask.shape[1] > 1:
                mask = mask.reshape(len(mask), -1, groups, mask.shape[-1])
        else:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scaling, enable_gqa=share
    )
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


SPECS = [
    KernelSpec(
        op="attention",
        variant=variant,
        name="sdpa",
        factory="kernelkit.kernels.attention.sdpa:with_options",
        options=SdpaOptions,
        # On a GPU the backwards of its flash and memory-efficient kernels add up in no fixed order.
        deterministic=False,
        traits={"mask": "bool"},
        description="PyTorch's scaled_dot_product_attention, which picks a fused kernel by itself.",
    )
    for variant in ("causal", "sliding_window")
]
