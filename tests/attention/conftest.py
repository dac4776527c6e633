from __future__ import annotations

import sys

import pytest
import torch

from tests.attention import flash_stand_in


@pytest.fixture
def flash_attn(monkeypatch):
    module = flash_stand_in.flash_attn()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return module


@pytest.fixture
def flash_attn_interface(monkeypatch):
    module = flash_stand_in.flash_attn_interface()
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    return module


@pytest.fixture
def fresh_compiler():
    """No compiled code of other tests, whose number for one function torch limits."""
    torch.compiler.reset()
