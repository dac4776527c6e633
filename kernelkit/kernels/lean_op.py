"""Operators that cost little to call in eager mode.

A call of an operator that torch registered from Python takes several times as long as the launch of a Triton kernel,
which shows where a model launches many small ones. So what is called eagerly is the function itself, and the operator
wherever something looks at operators: ``torch.compile``, a dispatch mode, a tensor subclass, a second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from kernelkit.kernels.custom_op import custom_op, on_device_of

Function = Callable[..., Any]


def lean_op(name: str, *, fake: Function) -> Callable[[Function], Function]:
    """Like ``custom_op``, for an operator without a gradient: the backward of another one."""

    def register(function: Function) -> Function:
        operator = custom_op(name, fake=fake)(function)

        def call(*args: Any) -> Any:
            if torch.is_grad_enabled() or _is_watched(args):
                return operator(*args)
            with on_device_of(args[0]):
                return function(*args)

        return call

    return register


def differentiable_op(
    name: str, *, fake: Function, save: Function, differentiate: Function
) -> Callable[[Function], Function]:
    """Like ``custom_op``, with the gradient that ``register_autograd`` takes.

    Args:
        name, fake: as for ``custom_op``.
        save: called with the context, the inputs, and the output of the operator.
        differentiate: called with the context and the gradients of the outputs; calls a ``lean_op``, or this operator.
    """

    def register(function: Function) -> Function:
        operator = custom_op(name, fake=fake)(function)
        operator.register_autograd(differentiate, setup_context=save)

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                with on_device_of(args[0]):
                    output = function(*args)
                save(ctx, args, output)
                return output

            backward = staticmethod(differentiate)

        def call(*args: Any) -> Any:
            # In a backward this is a linear operator's own gradient, which create_graph may differentiate again.
            return operator(*args) if _is_watched(args) else Eager.apply(*args)  # type: ignore[no-untyped-call]  # untyped in torch

        return call

    return register


def _is_watched(args: tuple[Any, ...]) -> bool:
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return any(isinstance(arg, Tensor) and type(arg) not in (Tensor, Parameter) for arg in args)
