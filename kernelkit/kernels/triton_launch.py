"""How our Triton kernels are launched: block sizes by one small rule, and no autotuning."""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

ELEMENTS_PER_THREAD = 16
"""Two loads of sixteen bytes in bfloat16: enough under way to hide memory's latency, and few enough registers."""


def warps(elements: int) -> int:
    """Warps of a program that holds a tile of so many elements."""
    return min(32, max(1, power_of_two(elements) // (32 * ELEMENTS_PER_THREAD)))


@functools.cache
def power_of_two(size: int) -> int:
    """The smallest power of two that is not below ``size``: the length of a block."""
    return int(triton.next_power_of_2(size))


def blocks_of(length: int, size: int) -> int:
    """How many blocks of ``length`` cover ``size``, without the microseconds of ``triton.cdiv``."""
    return -(-size // length)


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor of the same shape, unwritten; half the time of ``new_empty``."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the device of ``tensor``; two in the interpreter, so that sums are taken across programs."""
    return 2 if tensor.device.type == "cpu" else _processors(tensor.device)


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def shared_memory(tensor: Tensor) -> int:
    """Bytes of shared memory that a program on the device of ``tensor`` may take; an A100's in the interpreter."""
    return 163 * 1024 if tensor.device.type == "cpu" else _shared_memory(tensor.device)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])
