"""Checks of how a kernel goes with torch's machinery: operators, tracing, autocast, streams and several devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from kernelkit.ops.comparison import EPSILONS, run, tensors
from kernelkit.testing.purity import differences, first_line
from kernelkit.testing.subject import NotMadeError, Subject


def operators(subject: Subject) -> Iterator[str]:
    """The operators that it is made of, if any, pass ``torch.library.opcheck``."""
    with _Recorded() as recorded:
        subject.run(next(subject.calls(subject.dtypes[0])))
    if not recorded.calls:
        raise NotMadeError("is not made of operators of its own")
    for operator, arguments in recorded.calls.items():
        try:
            torch.library.opcheck(operator, arguments)
        except Exception as error:  # whatever the check raises is its finding
            yield f"{operator.name()}: {first_line(error)}"


def tracing(subject: Subject) -> Iterator[str]:
    """``torch.compile`` traces it whole, in training and in inference, if the spec says so."""
    if not subject.spec.traceable:
        raise NotMadeError("does not say that torch.compile traces it")
    backend = "inductor" if subject.device.type == "cuda" else "aot_eager"
    kernel = subject.kernel
    for training in (True, False) if subject.trained else (False,):
        call = next(subject.calls())
        torch.compiler.reset()
        traced = torch.compile(lambda *args, **keywords: kernel(*args, **keywords), backend=backend, fullgraph=True)
        with torch.set_grad_enabled(training):
            found, expected = (run(each, call, backward=training) for each in (traced, kernel))
        # Traced, a compiled kernel is its eager form, and inductor may round the last bit differently.
        loose = 2e-2 if subject.spec.name == "compile" or backend == "inductor" else None
        yield from differences("traced output", tensors(found.outputs), tensors(expected.outputs), relative=loose)
        yield from differences("traced gradient", found.gradients, expected.gradients, relative=loose)


def autocast(subject: Subject) -> Iterator[str]:
    """Under autocast it takes float32, and is as good as eager there: to two epsilons of what autocast rounds to."""
    if torch.float32 not in subject.dtypes or subject.low is torch.float32:
        raise NotMadeError("is judged in one precision alone")
    for call in subject.calls(torch.float32):
        usual = subject.run(call, subject.eager)
        with torch.autocast(subject.device.type, subject.low):
            lowered = subject.run(call, subject.eager)
            # What autocast does not change in eager, it changes in no kernel.
            pairs = (tensors(usual.outputs), tensors(lowered.outputs)), (usual.gradients, lowered.gradients)
            changed = any(found for each in pairs for found in differences("", *each, relative=0.0))
            relative = EPSILONS * torch.finfo(subject.low).eps if changed else 0.0
            yield from subject.worse(call, relative=relative)


def streams(subject: Subject) -> Iterator[str]:
    """On a stream that is not the default one it gives the same; only on CUDA."""
    if subject.device.type != "cuda":
        raise NotMadeError(f"there is one stream on {subject.device.type}")
    for call in subject.calls():
        expected = subject.run(call)
        stream = torch.cuda.Stream(subject.device)  # type: ignore[no-untyped-call]  # untyped in torch
        stream.wait_stream(torch.cuda.current_stream(subject.device))
        with torch.cuda.stream(stream):
            found = subject.run(call)
        torch.cuda.current_stream(subject.device).wait_stream(stream)
        yield from differences("output", tensors(found.outputs), tensors(expected.outputs))
        yield from differences("gradient", found.gradients, expected.gradients)


def other_device(subject: Subject) -> Iterator[str]:
    """On a GPU that is not the current one it is as good; only where there are two."""
    if subject.device.type != "cuda" or torch.cuda.device_count() < 2:
        raise NotMadeError("there is no second GPU")
    other = torch.device("cuda", (torch.cuda.current_device() + 1) % torch.cuda.device_count())
    there = replace(subject, device=other)
    for call in there.calls():
        yield from there.worse(call)


class _Recorded(TorchDispatchMode):
    """Keeps the arguments of the first call of each operator that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.calls: dict[Any, Any] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """True, without which a kernel that compiles itself would not do so while this mode is on."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims") and func not in self.calls:
            # The operator of a backward has no gradient, on purpose.
            trained = not func.name().endswith("_backward")
            self.calls[func] = tree_map_only(
                Tensor, lambda tensor: tensor.detach().clone().requires_grad_(trained and tensor.requires_grad), args
            )
        return func(*args, **(kwargs or {}))
