"""The order in which experts take their rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Every choice [T * K] as a row, those of an expert together. Nothing here is as large as [T, E].

    Attributes:
        experts: [T * K], the expert of each row, ascending; E for sentinels, which come last. Its dtype is the smallest
            that holds them, since sorting takes a pass for each byte.
        order: [T * K] int64, which choice a row is of. It is of token ``order // K``.
        back: [T * K] int64, which row is of a choice.
        ends: [E] int32, where the rows of each expert end.
    """

    experts: Tensor
    order: Tensor
    back: Tensor
    ends: Tensor


def route(top_k_index: Tensor, experts: int) -> Routing:
    """Sort the choices ``top_k_index`` [T, K] by expert, stably. Nothing waits for the device."""
    dtype = next(each for each in (torch.uint8, torch.int16, torch.int32) if experts <= torch.iinfo(each).max)
    choices, order = top_k_index.reshape(-1).to(dtype).sort(stable=True)
    back = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    numbers = torch.arange(experts, dtype=dtype, device=order.device)
    return Routing(choices, order, back, torch.searchsorted(choices, numbers, right=True, out_int32=True))
