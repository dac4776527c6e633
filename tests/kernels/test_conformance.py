"""Every kernel that is registered keeps its op's contract, on every device that it runs on here.

A new kernel is judged without a change of this file. What needs Triton is judged on a CPU by test_interpreted.py.
"""

from __future__ import annotations

import pytest
import torch

from kernelkit.testing import check_kernel
from kernelkit.testing.checks import CHECKS
from tests.kernels.judge import DEVICES, HALF, built, eager, first_served, judged_kernels, run

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("spec", judged_kernels())
def test_every_kernel_passes_every_check(spec, check, device):
    verdict = check_kernel(spec, device=device, checks=[check])
    if verdict.skipped:
        pytest.skip(str(verdict))
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize("spec", [*judged_kernels("moe_experts"), *judged_kernels("cross_entropy_loss")])
def test_autocast_changes_a_product_as_it_changes_eagers(spec, device):
    kernel = built(spec, device, HALF)
    with torch.autocast(device, HALF):
        call = first_served(kernel, spec, torch.float32, device)
        found = run(kernel, call)
        only = [output is not None for output in found.outputs]
        expected = run(eager(spec.op, spec.variant), call, only=only)
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=2e-2, atol=2e-2)
