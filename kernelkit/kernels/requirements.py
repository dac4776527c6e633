"""What the Triton kernels, ours and borrowed ones, ask of a machine, for their specs."""

from __future__ import annotations

from typing import Any

from kernelkit.hardware import HardwareRequirement

FLOATS = ("float32", "bfloat16", "float16")
"""The dtypes that Triton kernels take."""

TRITON: dict[str, Any] = {
    "hardware": HardwareRequirement(device_type="cuda"),
    "packages": ("triton>=3.6",),
    "dtypes": FLOATS,
}

LIGER: dict[str, Any] = {
    "hardware": HardwareRequirement(device_type=("cuda", "xpu")),
    # Before 0.8.5 the rotary kernel reads a partial width wrongly, and the experts' backward is unstable.
    "packages": ("liger-kernel>=0.8.5,<0.9", "triton>=3.6"),
}

LIGER_NPU: dict[str, Any] = {
    "hardware": HardwareRequirement(device_type="npu"),
    "packages": ("liger-kernel>=0.8.5,<0.9", "torch-npu", "triton-ascend"),
    "tested": False,
}
