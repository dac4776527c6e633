"""Named bundles of implementations."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PRESETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        # The references: slow, and the first thing to try when a loss looks wrong.
        "eager": {
            "attention": "eager",
            "rms_norm": "eager",
            "rotary_pos_emb": "eager",
            "swiglu_mlp": "eager",
            "moe_experts": "eager",
            "cross_entropy_loss": "eager",
            "load_balancing_loss": "eager",
        },
        # What PyTorch fuses by itself, nothing to install or compile.
        "torch": {"attention": "sdpa", "rms_norm": "torch", "moe_experts": "torch"},
        # Each op through torch.compile on its own.
        "compile": {
            "attention": "sdpa",
            "rms_norm": "compile",
            "rotary_pos_emb": "compile",
            "swiglu_mlp": "compile",
            "moe_experts": "torch",
            "cross_entropy_loss": "compile",
            "load_balancing_loss": "compile",
        },
        # Everything that Liger offers, made pure.
        "liger": {
            "attention": "sdpa",
            "rms_norm": "liger",
            "rotary_pos_emb": "liger",
            "swiglu_mlp": "liger",
            "moe_experts": "liger",
            "cross_entropy_loss": "liger",
        },
        # Liger's Ascend kernels.
        "liger_npu": {"attention": "sdpa", "rms_norm": "liger_npu", "rotary_pos_emb": "liger_npu"},
    }
)
"""Impl by op for each preset. A member counts only for models that have its op; ops that a preset leaves out keep their
default. A member that cannot run is an error like any other choice."""
