"""Named bundles of implementations."""

from __future__ import annotations

from collections.abc import Mapping

from kernelkit.frozen import FrozenDict

EAGER = "eager"
"""The one preset that means every op, those of plug-ins included."""

PRESETS: Mapping[str, Mapping[str, str]] = FrozenDict(
    {
        # The references: slow, and the first thing to try when a loss looks wrong.
        EAGER: FrozenDict(
            attention="eager",
            rms_norm="eager",
            add_rms_norm="eager",
            qk_norm_rope="eager",
            rotary_pos_emb="eager",
            swiglu_mlp="eager",
            moe_router="eager",
            moe_experts="eager",
            cross_entropy_loss="eager",
            load_balancing_loss="eager",
        ),
        # What PyTorch fuses by itself, nothing to install or compile.
        "torch": FrozenDict(attention="sdpa", rms_norm="torch", moe_experts="torch"),
        # Each op through torch.compile on its own.
        "compile": FrozenDict(
            attention="sdpa",
            rms_norm="compile",
            rotary_pos_emb="compile",
            swiglu_mlp="compile",
            moe_experts="compile",
            cross_entropy_loss="compile",
            load_balancing_loss="compile",
        ),
        # Our Triton kernels, and torch's where there is none.
        "triton": FrozenDict(
            attention="sdpa",
            rms_norm="triton",
            add_rms_norm="triton",
            qk_norm_rope="triton",
            rotary_pos_emb="triton",
            swiglu_mlp="triton",
            moe_router="triton",
            moe_experts="triton",
            cross_entropy_loss="triton",
            load_balancing_loss="triton",
        ),
        # Everything that Liger offers, made pure.
        "liger": FrozenDict(
            attention="sdpa",
            rms_norm="liger",
            rotary_pos_emb="liger",
            swiglu_mlp="liger",
            moe_experts="liger",
            cross_entropy_loss="liger",
        ),
        # Bits that repeat, on any machine: no kernel but such as declare it, also where it is the default.
        "deterministic": FrozenDict(
            attention="eager",
            rms_norm="torch",
            add_rms_norm="eager",
            qk_norm_rope="eager",
            rotary_pos_emb="eager",
            swiglu_mlp="eager",
            moe_router="eager",
            moe_experts="torch",
            cross_entropy_loss="eager",
            load_balancing_loss="eager",
        ),
        # Liger's Ascend kernels.
        "liger_npu": FrozenDict(attention="sdpa", rms_norm="liger_npu", rotary_pos_emb="liger_npu"),
    }
)
"""Impl by op for each preset of fixed members. A member counts only for models that have its op; ops that a preset
leaves out keep their default. A member that cannot run is an error like any other choice."""

MEASURED_PRESETS: Mapping[str, str] = FrozenDict({"fastest-training": "fwd+bwd", "fastest-inference": "fwd"})
"""The presets whose members are what was fastest on the hardware, each with the pass that was timed."""

PRESET_NAMES = (*PRESETS, *MEASURED_PRESETS)


def preset_member(preset: str | None, op: str) -> str | None:
    """The impl that ``preset`` gives to ``op``; None where it leaves the op alone, is measured, or is None."""
    if preset is None or preset in MEASURED_PRESETS:
        return None
    return PRESETS[preset].get(op, EAGER if preset == EAGER else None)
