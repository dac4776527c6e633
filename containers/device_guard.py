"""A kernel that runs on one kind of device, protected from tensors of another."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from kernelkit.errors import KernelDeviceError
from kernelkit.spec import Kernel, KernelSpec


def on_its_device(kernel: Kernel, spec: KernelSpec) -> Kernel:
    """``kernel`` with a check of its first tensor's device; as it is where the spec says that any device will do."""
    if not spec.hardware.device_types:
        return kernel
    # meta tensors compute nothing and pass everywhere.
    allowed = frozenset({*spec.hardware.device_types, "meta"})

    @functools.wraps(kernel)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        # Nearly always the first argument, and this is on every call's way.
        tensor = args[0] if args and isinstance(args[0], Tensor) else _first_tensor((*args, *kwargs.values()))
        if tensor is not None and tensor.device.type not in allowed:
            raise KernelDeviceError(
                f"{spec.op}: {spec.name} runs on {' or '.join(spec.hardware.device_types)} and was given tensors on "
                f"{tensor.device.type}. Build the model for the device it runs on, or name another implementation."
            )
        return kernel(*args, **kwargs)

    return guarded


def _first_tensor(values: Iterable[Any]) -> Tensor | None:
    for value in values:
        found = _first_tensor(value) if isinstance(value, (tuple, list)) else value
        if isinstance(found, Tensor):
            return found
    return None
