"""Kernels as torch operators: opaque to ``torch.compile``, known to it by the shapes that they return."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # documented, but not in __all__

_scratch: dict[str, Callable[..., int]] = {}


def custom_op(
    name: str, *, fake: Callable[..., Any], scratch: Callable[..., int] | None = None
) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Register the decorated function as the operator ``kernelkit::<name>``.

    The function must leave its inputs as they are and return new tensors. It runs without autograd, on the device of
    its first tensor. Give the operator its gradient with ``register_autograd``, and compute that gradient in a second
    operator, which has none: differentiating twice then raises instead of being silently wrong.

    Args:
        name: unique in kernelkit.
        fake: same signature; returns empty tensors of the shapes, strides and dtypes that the function would return.
        scratch: same signature; the bytes that the function takes beside its outputs while it runs, where they count.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            with torch.no_grad(), on_device_of(args[0]):
                return function(*args)

        # The wrapper hides the annotations' names from torch, so the schema is read off the function itself.
        schema = torch.library.infer_schema(function, mutates_args=())
        operator = torch.library.custom_op(f"kernelkit::{name}", run, mutates_args=(), schema=schema)
        operator.register_fake(fake)
        if scratch is not None:
            _scratch[f"kernelkit::{name}"] = scratch
        return operator

    return register


def scratch_bytes(operator: Any, args: tuple[Any, ...]) -> int:
    """Bytes that a call of an operator takes beside its outputs; zero where it does not say."""
    scratch = _scratch.get(operator.name().partition(".")[0]) if hasattr(operator, "name") else None
    return scratch(*args) if scratch is not None else 0


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device the current one: Triton launches there, on its current stream, not where the data is."""
    if tensor.device.type == "cpu":
        return contextlib.nullcontext()
    module = torch.get_device_module(tensor.device)
    if module.current_device() == tensor.device.index:  # nearly always, and entering it takes microseconds
        return contextlib.nullcontext()
    device: contextlib.AbstractContextManager[Any] = module.device(tensor.device)
    return device
