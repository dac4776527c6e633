"""The decorator that registers a kernel."""

from __future__ import annotations

import inspect
from typing import Protocol

import pytest
from pydantic import BaseModel, ConfigDict

from kernelkit import registry as registry_module
from kernelkit.errors import KernelRegistrationError
from kernelkit.registry import KernelRegistry, default_registry, register_kernel
from kernelkit.spec import Op


class Addition(Protocol):
    """Add."""


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scale: float = 2.0


@pytest.fixture
def registry():
    made = KernelRegistry()
    made.register_op(Op("add", {"standard": ""}, Addition))
    return made


def test_the_decorator_registers_a_function_where_it_stands_and_leaves_it_as_it_is(registry):
    line = inspect.currentframe().f_lineno

    @register_kernel("add", "mine", registry=registry, description="mine", dtypes=("float32",))
    def mine(left, right):
        return left + right

    kept = registry.get("add", "standard", "mine")
    assert kept.build() is mine
    assert kept.location == f"{__file__}:{line + 2}"
    assert (kept.description, kept.dtypes) == ("mine", ("float32",))


def test_the_decorator_registers_what_it_was_given_even_if_the_name_leads_elsewhere_later(registry):
    def doubled(function):
        return lambda *args: 2 * function(*args)

    @doubled
    @register_kernel("add", "inner", registry=registry)
    def mine(left, right):
        return left + right

    assert mine(1, 1) == 4
    assert registry.get("add", "standard", "inner").build()(1, 1) == 2


def test_the_decorator_takes_a_builtin_a_class_or_any_callable(registry):
    register_kernel("add", "builtin", registry=registry)(max)
    register_kernel("add", "type", registry=registry)(int)
    assert registry.get("add", "standard", "builtin").build() is max
    assert registry.get("add", "standard", "type").build() is int


def test_with_options_the_decorated_function_makes_the_kernel(registry):
    @register_kernel("add", "scaled", registry=registry, options=Options)
    def scaled(options):
        return lambda left, right: options.scale * (left + right)

    assert registry.get("add", "standard", "scaled").build(Options(scale=3.0))(1, 1) == 6.0


def test_the_decorator_refuses_a_duplicate_unless_it_replaces_it(registry):
    register_kernel("add", "mine", registry=registry)(max)
    with pytest.raises(KernelRegistrationError, match="is registered twice"):
        register_kernel("add", "mine", registry=registry)(min)
    register_kernel("add", "mine", registry=registry, replace=True)(min)
    assert registry.get("add", "standard", "mine").build() is min


def test_without_a_registry_the_decorator_writes_to_the_default_one(monkeypatch):
    monkeypatch.setattr(registry_module, "_default", [default_registry().copy()])
    register_kernel("rms_norm", "mine")(max)
    assert default_registry().get("rms_norm", "standard", "mine").build() is max


def test_the_decorator_refuses_what_cannot_be_called(registry):
    with pytest.raises(TypeError, match="must be callable, and 3 is not"):
        register_kernel("add", "mine", registry=registry)(3)
    assert registry.impls("add") == []
