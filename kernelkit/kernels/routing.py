"""The order in which experts take their rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Every choice [T * K] as a row, those of an expert together. Nothing here is as large as [T, E].

    Attributes:
        experts: [T * K] int32, the expert of each row, ascending; E for sentinels, which come last.
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
    choices, order = top_k_index.reshape(-1).int().sort(stable=True)
    back = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    numbers = torch.arange(experts, dtype=torch.int32, device=order.device)
    return Routing(choices, order, back, torch.searchsorted(choices, numbers, right=True, out_int32=True))
