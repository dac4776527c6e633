"""FlashAttention-3 (Shah et al., arXiv:2407.08608), from the package flash-attn-3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from kernelkit.hardware import HardwareRequirement
from kernelkit.spec import KernelSpec

if TYPE_CHECKING:
    from kernelkit.kernels.attention.flash_kernels import FlashAttention


class FlashAttention3Options(BaseModel):
    """What a config may set.

    Attributes:
        deterministic: a backward that gives the same bits each time, slower and with more memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deterministic: bool = False


def flash_attention_3(options: FlashAttention3Options) -> FlashAttention:
    """The kernel, from the package's own functions and not through what transformers has loaded.

    Raises:
        ImportError: where flash-attn-3 is missing, or was built for another torch.
    """
    from flash_attn_interface import flash_attn_func, flash_attn_varlen_func

    from kernelkit.kernels.attention.flash_kernels import FlashAttention

    return FlashAttention(flash_attn_func, flash_attn_varlen_func, options.deterministic, has_dropout=False)


SPECS = [
    KernelSpec(
        op="attention",
        variant=variant,
        name="flash_attention_3",
        factory="kernelkit.kernels.attention.flash_attention_3:flash_attention_3",
        hardware=HardwareRequirement(device_type="cuda", min_capability=(9, 0), max_capability=(9, 9)),
        packages=("flash-attn-3",),
        dtypes=("float16", "bfloat16"),
        limits={"head_dim": 256},
        # Its mask has shapes that depend on the data.
        traceable=False,
        deterministic=False,
        options=FlashAttention3Options,
        traits={"mask": "varlen"},
        tested=False,
        description="The package flash-attn-3, for Hopper: padding is packed away, documents are sequences.",
    )
    for variant in ("causal", "sliding_window", "softcap")
]
