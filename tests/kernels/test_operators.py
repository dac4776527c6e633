"""The operators that kernels are made of, as torch's own check sees them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.kernels.judge import DEVICES, HALF, built, first_served, judged_kernels, run, tensors, with_gradient

pytestmark = pytest.mark.parametrize("device", DEVICES)


class Recorded(TorchDispatchMode):
    """Keeps the arguments of the first call of each operator of ours."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "kernelkit" and func not in self.calls:
            # The operator of a backward has no gradient, on purpose.
            trained = not func.name().endswith("_backward")
            self.calls[func] = tree_map_only(
                Tensor, lambda tensor: tensor.detach().clone().requires_grad_(trained and tensor.requires_grad), args
            )
        return func(*args, **(kwargs or {}))


def operators(spec, device):
    dtype = HALF if spec.dtypes and str(torch.float32).removeprefix("torch.") not in spec.dtypes else torch.float32
    kernel = built(spec, device, dtype)
    call = first_served(kernel, spec, dtype, device)
    with Recorded() as recorded:
        run(kernel, call)
    return kernel, recorded.calls


@pytest.mark.parametrize("spec", [kernel for kernel in judged_kernels() if kernel.values[0].name != "compile"])
def test_differentiating_an_operator_twice_raises(spec, device):
    kernel, found = operators(spec, device)
    if not found:
        pytest.skip("is not made of operators of its own")
    dtype = next(iter(found.values()))[0].dtype
    call = with_gradient(first_served(kernel, spec, dtype, device))
    outputs = tensors(call(kernel))
    incoming = call.cotangents_of(outputs)

    def differentiate_twice():
        gradients = torch.autograd.grad(outputs, call.leaves(), incoming, create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()

    # A rotation is linear: its gradient depends on no input, and there is nothing to differentiate.
    with pytest.raises(RuntimeError, match=r"no autograd formula|does not require grad"):
        differentiate_twice()
