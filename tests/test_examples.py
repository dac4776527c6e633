"""The demo and the benchmark do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_distils_a_student_and_shows_how_it_did(tmp_path):
    command = [sys.executable, "-m", "kernelkit", "distill", ROOT / "configs/distill/tiny.yaml"]
    command += [f"output.dir={tmp_path / 'tiny'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Kernels of Qwen3ForCausalLM") == 2
    rows = {
        line.split()[0]: line.split() for line in done.stdout.splitlines() if re.match("teacher|student|control", line)
    }
    assert rows.keys() == {"teacher", "student", "control"}
    assert (tmp_path / "tiny/report.html").exists()


def test_the_benchmark_of_dispatch_times_each_way_of_calling():
    command = [sys.executable, ROOT / "benchmarks/dispatch.py", "--rounds", "3", "--calls", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    for way in ("hard-coded call", "bound kernel", "provider in forward"):
        assert re.search(rf"{way} +\d+ ns", done.stdout)
