"""Calls at the edges of a contract, made from the samples of an op."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from kernelkit.ops.comparison import NOT_DIFFERENTIATED, Call


def scaled(call: Call, factor: float) -> Call:
    """The call with its first argument times ``factor``."""
    name, value = next(iter(call.arguments.items()))
    return with_arguments(call, **{name: tree_map_only(Tensor, lambda tensor: tensor * factor, value)})


def without_labels(call: Call) -> Call:
    """The call with every label ignored."""
    labels = call.arguments["labels"]
    return with_arguments(call, labels=torch.full_like(labels, call.arguments.get("ignore_index", -100)))


def tied(call: Call) -> Call:
    """The call with every logit the same: heads that see nothing, and a bias that prefers nothing; or the routers'.

    A teacher keeps his preferences: from a student that shares his lack of them the divergence would be nothing.
    """
    values = {"weight": 0.0, "bias": 2.0, "logits": 0.5}

    def flat(name: str, value: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: torch.full_like(tensor, values[_last_word(name)]), value)

    changed = [name for name in call.arguments if _last_word(name) in values and name not in NOT_DIFFERENTIATED]
    return with_arguments(call, **{name: flat(name, call.arguments[name]) for name in changed})


def _last_word(name: str) -> str:
    return name.rpartition("_")[2]


def with_arguments(call: Call, **changed: Any) -> Call:
    """The call with other arguments, and with gradients of its own to send into it."""
    return replace(call, arguments={**call.arguments, **changed}, cotangents={})


def strided(tensor: Tensor) -> Tensor:
    """The same values, every second in memory; what is between them is no number."""
    gap = torch.nan if tensor.is_floating_point() else 0
    return torch.stack((tensor, torch.full_like(tensor, gap)), dim=-1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values, first dimension innermost in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim > 1 else tensor
