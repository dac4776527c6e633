"""Checks of what a kernel computes: against eager in float64, by the error that eager itself makes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kernelkit.ops.comparison import EPSILONS, MULTIPLE, Call, Compared, Outcome, compared, errors, run, tensors
from kernelkit.testing.edges import scaled, strided, tied, transposed, without_labels
from kernelkit.testing.subject import LeftOut, NotMadeError, Subject

LARGE = 1e4
COARSE = 1e-3
"""The relative error that values of unusual size are allowed in the first dtype that a kernel takes."""


def accuracy(subject: Subject) -> Iterator[str]:
    """Outputs and gradients err at most as much as a multiple of eager's own error, in each dtype."""
    for dtype in subject.dtypes:
        for call in subject.calls(dtype):
            yield from (f"in {_name(dtype)}: {found}" for found in subject.worse(call))


def magnitudes(subject: Subject) -> Iterator[str]:
    """Nothing overflows or vanishes where the values are a hundred times larger, or ten thousand times smaller."""
    # Where a softmax is all but one-hot, a gradient may be nothing but rounding errors.
    for factor, least in ((1e2, 1.0), (1e-4, COARSE)):
        for call in subject.calls(subject.dtypes[0]):
            yield from _far_off(subject, scaled(call, factor), f"times {factor:g}", COARSE, least)


def large_values(subject: Subject) -> Iterator[str]:
    """So with values of 1e4, in each dtype: to the usual multiple of eager's error, and two epsilons of the values.

    They count as one at least, the size of the gradients that come in, and as 1e4 in the gradients of the arguments
    that the large one is a factor of. Where eager overflows, and float64 does not, nothing is judged.
    """
    if "router_logits" in subject.parameters:
        raise NotMadeError("of such router logits a softmax leaves one, and of the others any may be chosen")
    for dtype in subject.dtypes:
        for call in subject.calls(dtype):
            large = scaled(call, LARGE)
            if _overflows(subject, large):
                yield LeftOut(f"calls in {_name(dtype)} in which eager overflows too")
                continue
            relative = EPSILONS * torch.finfo(dtype).eps
            yield from _far_off(subject, large, f"in {_name(dtype)}", relative)


def layout(subject: Subject) -> Iterator[str]:
    """So they do whatever the strides of the inputs, and with memory full of nan where nothing was written."""
    for call in subject.calls():
        for change in (strided, transposed):
            with _poisoned_memory():
                yield from (f"{change.__name__}: {found}" for found in subject.worse(call, change))


def long_rows(subject: Subject) -> Iterator[str]:
    """So they do with rows that no block of a kernel holds, or no block divides.

    Sums in float32 may be taken one by one, which errs by about the root of their length in epsilons.
    """
    for dtype in subject.outermost:
        calls = subject.long_calls(dtype)
        if not calls:
            yield LeftOut(f"calls in {_name(dtype)}, which it refuses")
        for call in calls:
            longest = max(max(tensor.shape, default=1) for tensor in tensors(call.arguments))
            found = subject.worse(call, relative=math.sqrt(longest) * torch.finfo(torch.float32).eps)
            yield from (f"in {_name(dtype)}: {each}" for each in found)


def ignored_labels(subject: Subject) -> Iterator[str]:
    """Where no label counts, all is as eager has it: nan where it divides by their number, else zero."""
    if "labels" not in subject.parameters:
        raise NotMadeError("its op takes no labels")
    for call in subject.calls():
        yield from subject.worse(without_labels(call))


def ties(subject: Subject) -> Iterator[str]:
    """Where all logits are equal, whichever of them are chosen, the values are right."""
    routed = "router_logits" in subject.parameters
    if "labels" not in subject.parameters and not routed:
        raise NotMadeError("its op takes no logits")
    for call in subject.calls():
        # The gradient of a router's logits says which experts were chosen, and of equal ones any will do.
        found = subject.worse(tied(call), backward=subject.trained and not routed)
        yield from (each for each in found if not each.startswith(_counts(subject)))


def _one_or_large(call: Call, one: Compared) -> float:
    """The norm of a tensor of ones, or of the large value where a gradient has that as a factor."""
    multiplied = one.what.startswith("the gradient") and one.what != f"the gradient of {next(iter(call.arguments))}"
    return (LARGE if multiplied else 1.0) * math.sqrt(one.right.numel())


def _overflows(subject: Subject, call: Call) -> bool:
    """Whether the call holds infinities, or eager makes them."""
    usual, truth = (run(subject.eager, each, backward=subject.trained) for each in (call, call.exact()))
    arguments = tensors(call.arguments)
    values = [*zip(arguments, arguments, strict=True), *zip(_values(usual), _values(truth), strict=True)]
    return any(bool((found.isinf() | (found.isnan() & ~right.isnan())).any()) for found, right in values)


def _values(outcome: Outcome) -> list[Tensor]:
    return tensors(outcome.outputs) + outcome.gradients


def _far_off(subject: Subject, call: Call, what: str, relative: float, least: float | None = None) -> Iterator[str]:
    """Values whose error, as a vector, is neither within eager's nor small beside them and ``least``, or one each."""
    for one in compared(subject.kernel, subject.eager, call, backward=subject.trained):
        if one.what in _counts(subject):
            continue
        allowed = MULTIPLE * errors(one.eagers, one.right).norm()
        size = _one_or_large(call, one) if least is None else least
        allowed += relative * (one.right.nan_to_num(0, 0, 0).norm() + max(size, one.terms))
        if not errors(one.found, one.right).norm() <= allowed:
            yield f"{next(iter(call.arguments))} {what}: {one.what} is far from float64's, {call.shapes()}"


def _counts(subject: Subject) -> tuple[str, ...]:
    """The outputs that depend on which of two equal values is the largest."""
    return tuple(f"output {index}" for index in subject.op.counts)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Every tensor that is allocated without values is full of nan."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
