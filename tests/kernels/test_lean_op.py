"""Operators that are not called as operators unless somebody looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernelkit.kernels.lean_op import differentiable_op, lean_op


def _like(gradient: Tensor, states: Tensor) -> Tensor:
    return torch.empty_like(states)


@lean_op("test_cube_backward", fake=_like)
def cube_backward(gradient: Tensor, states: Tensor) -> Tensor:
    return gradient * 3 * states**2


@differentiable_op(
    "test_cube",
    fake=torch.empty_like,
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    differentiate=lambda ctx, gradient: cube_backward(gradient, *ctx.saved_tensors),
)
def cube(states: Tensor) -> Tensor:
    return states**3


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def differentiated(function, states):
    return torch.autograd.grad(function(states).sum(), states)[0]


@pytest.fixture
def states():
    return torch.tensor([1.0, 2.0, -3.0], requires_grad=True)


def test_values_and_gradients_are_those_of_the_function(states):
    assert cube(states).tolist() == [1.0, 8.0, -27.0]
    assert differentiated(cube, states).tolist() == [3.0, 12.0, 27.0]


def test_a_dispatch_mode_sees_the_operators(states):
    with Names() as names:
        differentiated(cube, states)
    assert {"kernelkit::test_cube", "kernelkit::test_cube_backward"} <= set(names.seen)


def test_eagerly_the_function_itself_is_called(states):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        differentiated(cube, states)
    assert not any("kernelkit" in event.key for event in profile.key_averages())


def test_it_is_traced_whole_and_once(states):
    graphs = []

    def backend(graph, _):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(lambda states: cube(states) + 1, backend=backend, fullgraph=True)
    assert compiled(states).tolist() == [2.0, 9.0, -26.0]
    assert len(graphs) == 1
    assert any("test_cube" in str(target) for target in graphs[0])


def test_differentiating_twice_raises(states):
    (gradient,) = torch.autograd.grad(cube(states).sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_no_graph_is_kept_where_gradients_are_off(states):
    with torch.no_grad():
        assert cube(states).grad_fn is None


def test_a_subclass_of_tensor_is_dispatched(states):
    seen = []

    class Noted(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs)

    cube(states.detach().as_subclass(Noted))
    assert any("test_cube" in name for name in seen)
