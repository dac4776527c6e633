"""Which kernels are judged, and by which calls; see :mod:`kernelkit.ops.comparison` for how."""

from __future__ import annotations

import functools
import os

import pytest
import torch

from kernelkit.hardware import Hardware
from kernelkit.ops.comparison import Call, deviations, run, tensors, with_gradient
from kernelkit.registry import default_registry
from kernelkit.testing.kit import interpretable

__all__ = ["run", "tensors", "with_gradient"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's kernels run on the CPU, in its interpreter; see test_interpreted.py."""

# The interpreter computes nothing right in bfloat16, and rounds to float16 as a GPU does.
HALF = torch.float16 if INTERPRETED else torch.bfloat16
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


def judged_ops():
    """Every op that says how it is to be called; attention has tests of its own."""
    return [op for op in default_registry().ops.values() if op.samples is not None and op.name != "attention"]


def judged_kernels(op=None):
    """Every registered kernel as a parameter, those that wait for a compiler marked slow."""
    return [
        pytest.param(spec, id="-".join(spec.key), marks=[pytest.mark.slow] if spec.name == "compile" else [])
        for each in judged_ops()
        for spec in default_registry().list(each.name)
        if op in (None, each.name) and (interpretable(spec) or not INTERPRETED)
    ]


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


def call_of(op, arguments):
    """One call of an op, by the names of its arguments."""
    return Call(default_registry().op(op), arguments)


def calls(op, variant, dtype, device):
    """The sample calls of an op."""
    contract = default_registry().op(op)
    generator = torch.Generator(device).manual_seed(0)
    return Call.of_samples(contract, contract.samples(variant, dtype, torch.device(device), generator))


def first_served(kernel, spec, dtype, device):
    """The first sample call of its op that the kernel does not refuse by name."""
    for call in calls(spec.op, spec.variant, dtype, device):
        try:
            call(kernel)
        except ValueError as error:
            assert str(error).startswith(f"{spec.op}: {spec.name} ")  # noqa: PT017  # and goes on where it is so
        else:
            return call
    return pytest.skip(f"{'.'.join(spec.key)} refuses every sample")


def strided(tensor):
    """The same values, every second in memory."""
    return torch.stack((tensor, torch.zeros_like(tensor)), dim=-1)[..., 0]


def assert_as_good_as_eager(kernel, spec, call, change=lambda tensor: tensor):
    """``change`` lays out the tensors that the kernel is given; eager gets them as they are."""
    found = list(deviations(kernel, eager(spec.op, spec.variant), call, change=change))
    assert not found, "; ".join(map(str, found))
