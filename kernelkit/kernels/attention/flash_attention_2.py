"""FlashAttention-2 (Dao, arXiv:2307.08691), from the package flash-attn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from kernelkit.hardware import HardwareRequirement
from kernelkit.spec import KernelSpec

if TYPE_CHECKING:
    from kernelkit.kernels.attention.flash_kernels import FlashAttention


class FlashAttention2Options(BaseModel):
    """What a config may set.

    Attributes:
        deterministic: a backward that gives the same bits each time, slower and with more memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deterministic: bool = False


def flash_attention_2(options: FlashAttention2Options) -> FlashAttention:
    """The kernel, from the package's own functions and not through what transformers has loaded.

    Raises:
        ImportError: where flash-attn is missing, or was built for another torch.
    """
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    from kernelkit.kernels.attention.flash_kernels import FlashAttention

    return FlashAttention(flash_attn_func, flash_attn_varlen_func, options.deterministic, has_dropout=True)


SPECS = [
    KernelSpec(
        op="attention",
        variant=variant,
        name="flash_attention_2",
        factory="kernelkit.kernels.attention.flash_attention_2:flash_attention_2",
        hardware=HardwareRequirement(device_type="cuda", min_capability=(8, 0)),
        packages=("flash-attn>=2.6",),
        dtypes=("float16", "bfloat16"),
        limits={"head_dim": 256},
        # Its mask has shapes that depend on the data.
        traceable=False,
        deterministic=False,
        options=FlashAttention2Options,
        traits={"mask": "varlen"},
        tested=False,
        description="The package flash-attn: padding is packed away, documents are sequences.",
    )
    for variant in ("causal", "sliding_window", "softcap")
]
