"""What the Triton kernels, ours and borrowed ones, and quack's ask of a machine, for their specs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernelkit.hardware import Hardware, HardwareRequirement

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

QUACK_EPILOGUES: dict[str, Any] = QUACK | {"probe": f"{__name__}:obstacle_to_epilogues"}
"""For quack's products that do something to a tile before they store it."""


def obstacle_to_epilogues(hardware: Hardware) -> str | None:
    """Why quack's products with epilogues cannot be imported here.

    Quack fingerprints what an epilogue calls, and takes only what is installed as it is: elsewhere it reads on into the
    CUTLASS DSL, and refuses its loggers and context variables.
    """
    found = find_spec("cutlass")
    if found is None or found.origin is None:
        return "finds no module cutlass, which nvidia-cutlass-dsl brings and adds to sys.path by a .pth file"
    if {"site-packages", "dist-packages"} & set(Path(found.origin).parts):
        return None
    return (
        f"does not load with the CUTLASS DSL in {Path(found.origin).parent}: quack takes it only from below a folder "
        "named site-packages or dist-packages"
    )
