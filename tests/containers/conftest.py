from __future__ import annotations

import pytest

from kernelkit.containers import KernelContainer
from tests.containers import fakes


@pytest.fixture
def registry():
    return fakes.make_registry()


@pytest.fixture
def write(tmp_path):
    """Write a config file, and give back its path."""

    def write_file(content: str | bytes, name: str = "ops.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def make(registry):
    """A container of the fakes, on a machine whose packages are known."""

    def from_config(ops=None, **settings):
        return KernelContainer.from_config(ops, **{"registry": registry, "hardware": fakes.CPU} | settings)

    return from_config
