"""Which blocks the grouped products work in: by a table, and no search at the first call."""

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
        flatten: let Triton load for the next tile while the last one is stored; the gradients of weights always do.
        resident: programs that share a processor.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8
    flatten: bool = False
    resident: int = 1


HOPPER = {
    "up": Blocks(128, 256, 64, 8, 4, flatten=True),
    "down": Blocks(128, 256, 64, 8, 4, flatten=True),
    "of_activated": Blocks(128, 256, 64, 8, 4, flatten=True),
    "of_rows": Blocks(128, 256, 64, 8, 4, flatten=True),
    "of_down": Blocks(128, 256, 64, 8, 4),
    "of_up": Blocks(128, 256, 64, 8, 4),
}
"""By product, where the device copies tensors by itself.

Of two to nineteen for each on an H100, none was faster by more than two runs of the same differ.
"""

PLAIN = Blocks(128, 256, 64, 8, 4)
"""Of every product elsewhere. Not measured yet."""


def blocks_for(product: str, tensor: Tensor, rows: int, columns: int, depth: int, tma: bool) -> Blocks:
    """Those of the table, no larger than so many ``rows``, ``columns`` and ``depth`` nor than shared memory."""
    base = HOPPER[product] if tma else PLAIN
    found = base._replace(
        rows=max(16, min(base.rows, power_of_two(rows))),
        columns=max(32, min(base.columns, power_of_two(columns))),
        depth=max(16, min(base.depth, power_of_two(depth))),
    )
    if found[:3] != base[:3]:
        large = found.rows * found.columns >= 128 * 128
        found = found._replace(warps=8 if large else 4)
    # Half a tile goes out through shared memory while the next one's blocks are there.
    memory = shared_memory(tensor) // found.resident - found.rows * found.columns * tensor.element_size() // 2
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
