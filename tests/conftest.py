"""What every test may rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Liger's experts would measure their variants anew in each process and for each shape, for minutes at a time.
os.environ.setdefault("LIGER_FUSED_MOE_AUTOTUNE", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def python():
    """Run a piece of Python in a process of its own, and give back what it prints."""

    def run(code: str, *path: Path) -> str:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
