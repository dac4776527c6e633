"""What the Triton kernels, ours and borrowed ones, and quack's ask of a machine, for their specs."""

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

QUACK: dict[str, Any] = {
    "hardware": HardwareRequirement(device_type="cuda", min_capability=(9, 0)),
    # What we call of quack changes from one version to the next; with these versions of its compiler it loads.
    "packages": ("quack-kernels==0.6.5", "nvidia-cutlass-dsl>=4.7.1,<4.9"),
    "dtypes": FLOATS,
}
