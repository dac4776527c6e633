"""The kernels that need Triton, on a CPU: the tests of this folder once more, in a process with Triton's interpreter.

The interpreter must be chosen before triton is imported, and the choice holds for the whole process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
AGREEMENT = ["test_rounding.py", "test_conformance.py", "test_quack.py", "../testing/test_liger_raw.py"]
LOSSES = ["test_triton_losses.py", "test_distillation_loss.py", "test_distillation_chunks.py"]
CONTRACTS = ["test_conformance.py", "test_operators.py", "test_cross_entropy.py", "test_load_balancing.py"]
REST = [*CONTRACTS, "test_liger.py", "test_triton.py"]


def run_interpreted(files, chosen):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", chosen]
    done = subprocess.run(
        [*command, *(str(HERE / name) for name in files)],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
    return done.stdout


@pytest.fixture(autouse=True)
def _only_where_it_is_needed():
    if torch.cuda.is_available():
        pytest.skip("the kernels run on the GPU that is there")
    pytest.importorskip("liger_kernel")


def test_kernels_agree_with_eager_and_raw_ones_are_caught_in_the_interpreter():
    run_interpreted(AGREEMENT, "(accuracy or as_good_as_eagers or rounds or raw) and not (moe and liger)")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kernels_keep_the_rest_of_their_contracts_in_the_interpreter():
    run_interpreted(REST, "not moe and not accuracy and not as_good_as_eagers")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_triton_losses_keep_theirs_in_the_interpreter():
    run_interpreted(LOSSES, "test")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_experts_keep_their_contracts_in_the_interpreter():
    run_interpreted([*REST, "test_experts.py", "test_quack.py"], "(moe or sentinel or experts) and not liger")
