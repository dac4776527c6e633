"""How a kernel is judged: against eager in float64, by the error that eager itself makes in the kernel's dtype."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from kernelkit.hardware import Hardware
from kernelkit.registry import default_registry

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's kernels run on the CPU, in its interpreter; see test_interpreted.py."""

# The interpreter computes nothing right in bfloat16, and rounds to float16 as a GPU does.
HALF = torch.float16 if INTERPRETED else torch.bfloat16
DTYPES = (torch.float32, HALF)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))

NOT_DIFFERENTIATED = {"cos", "sin"}
"""Arguments that no kernel owes a gradient."""

MULTIPLE, EPSILONS = 3.0, 2.0
"""A kernel may err three times as much as eager, which may be lucky, and by two epsilons of the largest value."""


def judged_ops():
    """Every op that says how it is to be called; attention has tests of its own."""
    return [op for op in default_registry().ops.values() if op.samples is not None and op.name != "attention"]


def judged_kernels(op=None):
    """Every registered kernel as a parameter, those that wait for a compiler marked slow."""
    return [
        pytest.param(spec, id="-".join(spec.key), marks=[pytest.mark.slow] if spec.name == "compile" else [])
        for each in judged_ops()
        for spec in default_registry().list(each.name)
        if op in (None, each.name) and (_wants_triton(spec) or not INTERPRETED)
    ]


def _wants_triton(spec):
    return any("triton" in package for package in spec.packages)


def built(spec, device, dtype=None):
    """The kernel; the test is skipped, with the reason, where it cannot run."""
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if INTERPRETED:
        reason = None if name in (None, *(spec.dtypes or (name,))) else f"takes {spec.dtypes}"
    else:
        reason = spec.problem(Hardware.detect(device), dtype=name)
    if reason is not None:
        pytest.skip(f"{'.'.join(spec.key)} {reason}")
    return _built(spec.key)


@functools.cache
def _built(key):
    return default_registry().get(*key).build()


@functools.cache
def eager(op, variant):
    return default_registry().get(op, variant, "eager").build()


@dataclass
class Call:
    """One call of an op: the arguments by name, and the gradients to send into its outputs."""

    op: str
    arguments: dict[str, Any]
    cotangents: dict[Any, Tensor] = field(default_factory=dict)

    def map(self, change):
        """The same call with every tensor changed."""
        return Call(self.op, tree_map_only(Tensor, change, self.arguments), self.cotangents)

    def leaves(self):
        """The tensors that a gradient is taken of, in order."""
        named = {name: value for name, value in self.arguments.items() if name not in NOT_DIFFERENTIATED}
        return [tensor for tensor in tensors(named) if tensor.is_floating_point()]

    def cotangents_of(self, outputs):
        """The gradients to send into those outputs that are there, the same for every kernel."""
        return [self._cotangent(index, output) for index, output in enumerate(outputs) if output is not None]

    def _cotangent(self, index, output):
        if index not in self.cotangents:
            generator = torch.Generator().manual_seed(index)
            self.cotangents[index] = torch.randn(output.shape, generator=generator).to(output)
        return self.cotangents[index].to(output.dtype)

    def __call__(self, kernel):
        """Positional arguments first, as models pass them."""
        signature = inspect.signature(default_registry().op(self.op).protocol.__call__)
        bound = signature.bind(None, **self.arguments)
        outputs = kernel(*bound.args[1:], **bound.kwargs)
        return outputs if isinstance(outputs, tuple) else (outputs,)


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def calls(op, variant, dtype, device):
    """The sample calls of an op."""
    contract = default_registry().op(op)
    signature = inspect.signature(contract.protocol.__call__)
    generator = torch.Generator(device).manual_seed(0)
    samples = contract.samples(variant, dtype, torch.device(device), generator)
    return [Call(op, _named(signature, args, kwargs)) for args, kwargs in samples]


def _named(signature, args, kwargs):
    arguments = dict(signature.bind(None, *args, **kwargs).arguments)
    arguments.pop("self")
    return arguments


def with_gradient(call):
    """The call with fresh tensors that ask for their gradient."""
    call = call.map(lambda tensor: tensor.clone(memory_format=torch.preserve_format))
    for leaf in call.leaves():
        leaf.requires_grad_()
    return call


def strided(tensor):
    """The same values, every second in memory."""
    return torch.stack((tensor, torch.zeros_like(tensor)), dim=-1)[..., 0]


@dataclass
class Outcome:
    outputs: list[Tensor | None]
    gradients: list[Tensor]


def run(kernel, call, *, only=None):
    """Call forward and backward. ``only`` says which outputs to look at and to send gradients into."""
    call = with_gradient(call)
    outputs = [output if only is None or only[index] else None for index, output in enumerate(call(kernel))]
    incoming = call.cotangents_of(outputs)
    gradients = torch.autograd.grad(tensors(outputs), call.leaves(), incoming, materialize_grads=True)
    return Outcome([None if output is None else output.detach() for output in outputs], list(gradients))


def assert_as_good_as_eager(kernel, spec, call, change=lambda tensor: tensor):
    """``change`` lays out the tensors that the kernel is given; eager gets them as they are."""
    exact = call.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    truth = run(eager(spec.op, spec.variant), exact)
    # What a kernel does not return it is not asked for either.
    call.cotangents = exact.cotangents
    mine = run(kernel, call.map(change))
    only = [output is not None for output in mine.outputs]
    usual, truth = (run(eager(spec.op, spec.variant), each, only=only) for each in (call, exact))
    for kind in ("outputs", "gradients"):
        for index, (found, eagers, right) in enumerate(
            zip(*(getattr(outcome, kind) for outcome in (mine, usual, truth)), strict=True)
        ):
            if found is not None and found.numel() > 0:
                _assert_close(f"{kind}[{index}]", found, eagers, right)


def _assert_close(name, found, eagers, right):
    assert found.dtype == eagers.dtype, f"{name} is {found.dtype}, and eager's {eagers.dtype}"
    rounding = torch.finfo(found.dtype).eps * right.abs().max()
    error, usual = _error(found, right), _error(eagers, right)
    assert error <= MULTIPLE * usual + EPSILONS * rounding, f"{name} errs by {error:.2e}, eager by {usual:.2e}"


def _error(found, truth):
    return (found.double() - truth).abs().max()


@contextlib.contextmanager
def poisoned_memory():
    """Every tensor that is allocated without values is full of nan."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
