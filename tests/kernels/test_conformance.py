"""Every kernel that is registered keeps its op's contract, on every device that it runs on here.

A new kernel is judged without a change of this file. What needs Triton is judged on a CPU by test_interpreted.py.
"""

from __future__ import annotations

import pytest

from kernelkit.testing import check_kernel
from kernelkit.testing.checks import CHECKS
from tests.kernels.judge import DEVICES, judged_kernels

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("spec", judged_kernels())
def test_every_kernel_passes_every_check(spec, check, device):
    verdict = check_kernel(spec, device=device, checks=[check])
    if not verdict.checked:
        pytest.skip(verdict.skipped or verdict.not_checked[check])
    assert verdict.passed, str(verdict)
