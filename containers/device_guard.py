"""A kernel that runs on one kind of device, protected from tensors of another."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from kernelkit.errors import KernelDeviceError
from kernelkit.spec import Kernel, KernelSpec


def on_its_device(kernel: Kernel, spec: KernelSpec) -> Kernel:
    """``kernel`` with a check of its first tensor's device; as it is where the spec says that any device will do."""
    # meta tensors compute nothing and pass everywhere.
    allowed = frozenset({*spec.hardware.device_types, "meta"})
    if not spec.hardware.device_types:
        return kernel

    @functools.wraps(kernel)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if device not in allowed:
            raise KernelDeviceError(
                f"{spec.op}: {spec.name} runs on {' or '.join(spec.hardware.device_types)} and was given tensors on "
                f"{device}. Build the model for the device it runs on, or name another implementation."
            )
        return kernel(*args, **kwargs)

    return guarded
