"""The demo and the benchmark do what they say."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def demo(*arguments):
    """The demo, on one thread as `make demo` runs it."""
    command = [sys.executable, ROOT / "examples/teacher_student.py", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_demo_trains_the_student_and_leaves_the_teacher_alone():
    done = demo()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Kernels of Qwen3ForCausalLM") == 2
    assert float(re.search(r"([\d.]+) nats down", done.stdout)[1]) >= 1.0


@pytest.mark.slow
def test_the_demo_fails_where_nothing_is_learnt():
    done = demo("--steps", "0")
    assert done.returncode == 1
    assert "less than one nat" in done.stderr


def test_a_bound_kernel_is_called_almost_like_a_function_and_cheaper_than_a_provider():
    script = runpy.run_path(str(ROOT / "benchmarks/dispatch.py"))
    modules = {
        "direct": script["HardCoded"](),
        "bound": script["bound_to"]("any"),
        "provider": script["Provided"](),
    }
    found = script["measure"](modules, rounds=51, calls=500)
    # The benchmark holds the limit on a quiet machine; here other processes run.
    assert found["bound"][1] < min(1.3, found["provider"][1])
