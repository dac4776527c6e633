"""What a kernel must do. Each check yields what it finds wrong, one sentence at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from kernelkit.ops.comparison import MULTIPLE, Call, Outcome, deviations, run, tensors, with_gradient
from kernelkit.testing.subject import Subject, strided, transposed

Check = Callable[[Subject], Iterator[str]]

COARSE = 1e-3
"""The relative error that values of unusual size are allowed in the first dtype that a kernel takes."""


def accuracy(subject: Subject) -> Iterator[str]:
    """Outputs and gradients err at most as much as a multiple of eager's own error, in each dtype."""
    for dtype in subject.dtypes:
        for call in subject.calls(dtype):
            for found in deviations(subject.kernel, subject.eager, call):
                yield f"in {_name(dtype)}, {call.shapes()}: {found}"


def magnitudes(subject: Subject) -> Iterator[str]:
    """Nothing overflows or vanishes where the values are a hundred times larger, or ten thousand times smaller."""
    # Where a softmax is all but one-hot, a gradient may be nothing but rounding errors.
    for factor, least in ((1e2, 1.0), (1e-4, COARSE)):
        for call in subject.calls(subject.dtypes[0]):
            first = next(iter(call.arguments))
            extreme = Call(call.op, {**call.arguments, first: _times(call.arguments[first], factor)})
            mine = run(subject.kernel, extreme)
            only = [output is not None for output in mine.outputs]
            usual, truth = (run(subject.eager, each, only=only) for each in (extreme, extreme.exact()))
            for index, (found, eagers, right) in enumerate(zip(*map(_values, (mine, usual, truth)), strict=True)):
                allowed = MULTIPLE * (eagers.double() - right).norm() + COARSE * (right.norm() + least)
                if not (found.double() - right).norm() <= allowed:
                    yield f"{first} times {factor:g}: value {index} is far from float64's, {call.shapes()}"


def layout(subject: Subject) -> Iterator[str]:
    """So they do whatever the strides of the inputs, and with memory full of nan where nothing was written."""
    for call in subject.calls():
        for change in (strided, transposed):
            with _poisoned_memory():
                for found in deviations(subject.kernel, subject.eager, call, change=change):
                    yield f"{change.__name__}, {call.shapes()}: {found}"


def purity(subject: Subject) -> Iterator[str]:
    """Inputs, outputs and incoming gradients stay as they are, in forward and backward."""
    for call in subject.calls():
        given = with_gradient(call)
        watched = [(f"input {index}", tensor) for index, tensor in enumerate(tensors(given.arguments))]
        before = [(tensor.detach().clone(), tensor._version) for _, tensor in watched]
        outputs = _differentiable(given(subject.kernel))
        incoming = given.cotangents_of(list(outputs))
        more = [(f"output {index}", tensor) for index, tensor in enumerate(outputs)]
        more += [(f"incoming gradient {index}", tensor) for index, tensor in enumerate(incoming)]
        before += [(tensor.detach().clone(), tensor._version) for _, tensor in more]
        torch.autograd.grad(outputs, given.leaves(), incoming, allow_unused=True)
        for (name, tensor), (value, version) in zip([*watched, *more], before, strict=True):
            if not torch.equal(tensor, value) or tensor._version != version:
                yield f"{name} was modified, {call.shapes()}"


def second_backward(subject: Subject) -> Iterator[str]:
    """A second backward gives the same gradients, or raises."""
    for call in map(with_gradient, subject.calls()):
        outputs = _differentiable(call(subject.kernel))
        incoming = call.cotangents_of(list(outputs))
        try:
            first, second = (
                torch.autograd.grad(outputs, call.leaves(), incoming, retain_graph=True, materialize_grads=True)
                for _ in range(2)
            )
        except RuntimeError:
            continue
        tolerance: dict[str, float] = {"rtol": 0, "atol": 0} if subject.spec.deterministic else {}
        yield from _differences("gradient", second, first, **tolerance)


def determinism(subject: Subject) -> Iterator[str]:
    """Two runs give the same bits, if the spec says so."""
    if subject.spec.deterministic:
        for call in subject.calls():
            first, second = run(subject.kernel, call), run(subject.kernel, call)
            yield from _differences("output", tensors(second.outputs), tensors(first.outputs), rtol=0, atol=0)
            yield from _differences("gradient", second.gradients, first.gradients, rtol=0, atol=0)


def operators(subject: Subject) -> Iterator[str]:
    """The operators that it is made of, if any, pass ``torch.library.opcheck``."""
    with _Recorded() as recorded:
        run(subject.kernel, next(subject.calls(subject.dtypes[0])))
    for operator, arguments in recorded.calls.items():
        try:
            torch.library.opcheck(operator, arguments)
        except Exception as error:  # whatever the check raises is its finding
            yield f"{operator.name()}: {_first_line(error)}"


def tracing(subject: Subject) -> Iterator[str]:
    """``torch.compile`` traces it whole, in training and in inference, if the spec says so."""
    if not subject.spec.traceable:
        return
    backend = "inductor" if subject.device.type == "cuda" else "aot_eager"
    kernel = subject.kernel
    for training in (True, False):
        call = next(subject.calls())
        torch.compiler.reset()
        traced = torch.compile(lambda *args, **keywords: kernel(*args, **keywords), backend=backend, fullgraph=True)
        with torch.set_grad_enabled(training):
            found, expected = (run(each, call, backward=training) for each in (traced, kernel))
        # Traced, a compiled kernel is its eager form, and inductor may round the last bit differently.
        loose = subject.spec.name == "compile" or backend == "inductor"
        bound = {"rtol": 2e-2, "atol": 2e-2} if loose else {}
        yield from _differences("traced output", tensors(found.outputs), tensors(expected.outputs), **bound)
        yield from _differences("traced gradient", found.gradients, expected.gradients, **bound)


def checkpointing(subject: Subject) -> Iterator[str]:
    """Under activation checkpointing it gives the same gradients."""
    for call in subject.calls():
        expected = run(subject.kernel, call)

        def again(*args: Any, **keywords: Any) -> Any:
            return checkpoint(subject.kernel, *args, use_reentrant=False, **keywords)

        found = run(again, call)
        tolerance: dict[str, float] = {"rtol": 0, "atol": 0} if subject.spec.deterministic else {}
        yield from _differences("gradient", found.gradients, expected.gradients, **tolerance)


def streams(subject: Subject) -> Iterator[str]:
    """On a stream that is not the default one it gives the same; only on CUDA."""
    if subject.device.type == "cuda":
        for call in subject.calls():
            expected = run(subject.kernel, call)
            stream = torch.cuda.Stream(subject.device)  # type: ignore[no-untyped-call]  # untyped in torch
            stream.wait_stream(torch.cuda.current_stream(subject.device))
            with torch.cuda.stream(stream):
                found = run(subject.kernel, call)
            torch.cuda.current_stream(subject.device).wait_stream(stream)
            yield from _differences("output", tensors(found.outputs), tensors(expected.outputs))
            yield from _differences("gradient", found.gradients, expected.gradients)


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        accuracy,
        magnitudes,
        layout,
        purity,
        second_backward,
        determinism,
        operators,
        tracing,
        checkpointing,
        streams,
    )
}
"""The checks by name."""


class _Recorded(TorchDispatchMode):
    """Keeps the arguments of the first call of each operator that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.calls: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims") and func not in self.calls:
            # The operator of a backward has no gradient, on purpose.
            trained = not func.name().endswith("_backward")
            self.calls[func] = tree_map_only(
                Tensor, lambda tensor: tensor.detach().clone().requires_grad_(trained and tensor.requires_grad), args
            )
        return func(*args, **(kwargs or {}))


def _times(argument: Any, factor: float) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor * factor, argument)


def _values(outcome: Outcome) -> list[Tensor]:
    return tensors(outcome.outputs) + outcome.gradients


def _differentiable(outputs: Any) -> list[Tensor]:
    return [output for output in tensors(outputs) if output.requires_grad]


def _differences(what: str, found: Any, expected: Any, **tolerance: Any) -> Iterator[str]:
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        try:
            torch.testing.assert_close(mine, theirs, equal_nan=True, **tolerance)
        except AssertionError as error:
            yield f"{what} {index} differs: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


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
