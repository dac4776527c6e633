"""Which blocks the grouped products work in: one for all, smaller where there is less, and no search at all."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from kernelkit.kernels.triton_launch import power_of_two, shared_memory


class Blocks(NamedTuple):
    """How a product is cut up.

    Attributes:
        rows, columns, depth: the block that a program multiplies at a time.
        warps: of a program.
        stages: how many blocks are in shared memory or on the way to it.
        group: blocks of rows that go through all columns of a weight together.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8


BLOCKS = Blocks(128, 256, 64, 8, 4)
"""Of every product. Of two to nineteen for each on an H100, none was faster by more than two runs of the same differ.

Without descriptors they were not measured.
"""


def blocks_for(tensor: Tensor, rows: int, columns: int, depth: int) -> Blocks:
    """Those blocks, no larger than so many ``rows``, ``columns`` and ``depth`` nor than shared memory."""
    found = BLOCKS._replace(
        rows=max(16, min(BLOCKS.rows, power_of_two(rows))),
        columns=max(32, min(BLOCKS.columns, power_of_two(columns))),
        depth=max(16, min(BLOCKS.depth, power_of_two(depth))),
    )
    if found[:3] != BLOCKS[:3]:
        large = found.rows * found.columns >= 128 * 128
        found = found._replace(warps=8 if large else 4)
    # Half a tile goes out through shared memory while the next one's blocks are there.
    memory = shared_memory(tensor) - found.rows * found.columns * tensor.element_size() // 2
    stage = (found.rows + found.columns) * found.depth * tensor.element_size()
    return found._replace(stages=max(1, min(found.stages, memory // stage)))


def takes_tma(weight: Tensor) -> bool:
    """Whether the device copies tensors by itself and this can be one: aligned, and dense in one direction."""
    if weight.device.type != "cpu" and not _has_tma(weight.device):
        return False
    first, *steps = sorted(weight.stride()[1:])
    aligned = all(step * weight.element_size() % 16 == 0 for step in (*steps, weight.stride(0)))
    return first == 1 and aligned and weight.data_ptr() % 16 == 0


@functools.cache
def _has_tma(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9
