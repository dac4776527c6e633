"""Checks of what a kernel leaves alone, and of whether it repeats itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernelkit.ops.comparison import Call, tensors, with_gradient
from kernelkit.testing.subject import NotMadeError, Subject


def purity(subject: Subject) -> Iterator[str]:
    """Inputs, outputs and incoming gradients stay as they are, in forward and backward."""
    for call in subject.calls():
        given = with_gradient(call) if subject.trained else call
        watched = [(f"input {index}", tensor) for index, tensor in enumerate(tensors(given.arguments))]
        before = [(tensor.detach().clone(), tensor._version) for _, tensor in watched]
        outputs = _differentiable(given(subject.kernel))
        if subject.trained:
            incoming = given.cotangents_of(list(outputs))
            more = [(f"output {index}", tensor) for index, tensor in enumerate(outputs)]
            more += [(f"incoming gradient {index}", tensor) for index, tensor in enumerate(incoming)]
            before += [(tensor.detach().clone(), tensor._version) for _, tensor in more]
            watched += more
            torch.autograd.grad(outputs, given.leaves(), incoming, allow_unused=True)
        for (name, tensor), (value, version) in zip(watched, before, strict=True):
            if tensor._version != version or not _same(tensor, value):
                yield f"{name} was modified, {call.shapes()}"


def second_backward(subject: Subject) -> Iterator[str]:
    """A second backward gives the same gradients, or raises."""
    _needs_backward(subject)
    for call in map(with_gradient, subject.calls()):
        outputs = _differentiable(call(subject.kernel))
        incoming = call.cotangents_of(list(outputs))
        try:
            # A copy: a backward that returns what it keeps would change the first result together with the second.
            kept = [gradient.clone() for gradient in _gradients(call, outputs, incoming)]
            second = _gradients(call, outputs, incoming)
        except RuntimeError:
            continue
        yield from differences("gradient", second, kept, relative=_tolerance(subject))


def determinism(subject: Subject) -> Iterator[str]:
    """Two runs give the same bits, if the spec says so."""
    if not subject.spec.deterministic:
        raise NotMadeError("does not say that it is deterministic")
    for call in (call for dtype in subject.outermost for call in subject.calls(dtype)):
        first, second = subject.run(call), subject.run(call)
        yield from differences("output", tensors(second.outputs), tensors(first.outputs), relative=0.0)
        yield from differences("gradient", second.gradients, first.gradients, relative=0.0)


def checkpointing(subject: Subject) -> Iterator[str]:
    """Under activation checkpointing it gives the same gradients."""
    _needs_backward(subject)

    def again(*args: Any, **keywords: Any) -> Any:
        return checkpoint(subject.kernel, *args, use_reentrant=False, **keywords)

    for call in subject.calls():
        expected, found = subject.run(call), subject.run(call, again)
        yield from differences("gradient", found.gradients, expected.gradients, relative=_tolerance(subject))


def differences(what: str, found: Any, expected: Any, *, relative: float | None = None) -> Iterator[str]:
    """Where values differ by more than ``torch.testing.assert_close`` allows.

    With ``relative`` by more than that share of the largest one expected, or of one.
    """
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        tolerance: dict[str, Any] = {}
        if relative is not None:
            largest = theirs.nan_to_num().abs().amax().item() if theirs.numel() else 0.0
            tolerance = {"rtol": relative, "atol": relative * max(1.0, largest)}
        try:
            torch.testing.assert_close(mine, theirs, equal_nan=True, **tolerance)
        except AssertionError as error:
            yield f"{what} {index} differs: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Of its message."""
    return str(error).strip().partition("\n")[0]


def _needs_backward(subject: Subject) -> None:
    if not subject.trained:
        raise NotMadeError("has no backward")


def _gradients(call: Call, outputs: list[Tensor], incoming: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, call.leaves(), incoming, retain_graph=True, materialize_grads=True)


def _differentiable(outputs: Any) -> list[Tensor]:
    return [output for output in tensors(outputs) if output.requires_grad]


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _tolerance(subject: Subject) -> float | None:
    return 0.0 if subject.spec.deterministic else None
