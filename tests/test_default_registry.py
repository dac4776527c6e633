"""The registry of what is installed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernelkit import discovery
from kernelkit import registry as registry_module
from kernelkit.errors import KernelRegistrationError
from kernelkit.registry import default_registry
from kernelkit.spec import KernelSpec, Op


def op():
    return Op("add", {"standard": ""}, object)


def spec():
    return KernelSpec(op="add", variant="standard", name="eager", factory="torch:add")


def test_the_default_registry_is_filled_once_whichever_thread_comes_first(monkeypatch):
    fillings = []

    def ops():
        fillings.append(threading.get_ident())
        yield op()

    monkeypatch.setattr(registry_module, "_default", [])
    monkeypatch.setattr(discovery, "builtin_ops", ops)
    monkeypatch.setattr(discovery, "builtin_specs", lambda name: [spec()])
    barrier = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(lambda _: (barrier.wait(), default_registry(), len(default_registry().list())), range(16)))
    assert len(fillings) == 1
    assert len({id(each) for _, each, _ in seen}) == 1 and {size for *_, size in seen} == {1}


def test_a_kernel_of_our_own_that_fails_to_register_is_no_secret(monkeypatch):
    monkeypatch.setattr(registry_module, "_default", [])
    monkeypatch.setattr(discovery, "builtin_ops", lambda: [op(), op()])
    for _ in range(2):
        with pytest.raises(KernelRegistrationError):
            default_registry()


def test_every_op_of_ours_has_its_reference_and_its_default():
    registry = default_registry()
    for each in registry.ops.values():
        for variant in each.variants:
            impls = registry.impls(each.name, variant)
            assert "eager" in impls and each.default_for(variant) in impls, (each.name, variant)
        assert set(each.preference) <= set(registry.impls(each.name)), each.name


READ_EVERY_SPEC = """
import sys
import kernelkit
heavy = {"transformers", "triton", "liger_kernel", "torch"} & set(sys.modules)
assert not heavy, heavy
for name in ("transformers", "triton", "liger_kernel"):
    sys.modules[name] = None  # an import of it raises ImportError
import kernelkit.containers, kernelkit.registry
registry = kernelkit.registry.default_registry()
hardware = kernelkit.hardware.Hardware.detect("cpu")
reasons = [spec.problem(hardware) for spec in registry.list()]
kernelkit.containers.OpsConfig(preset="eager").model_json_schema()
print(len(reasons) > 20, registry.broken_plugins)
"""


def test_every_spec_can_be_read_without_transformers_triton_and_liger(python):
    assert python(READ_EVERY_SPEC) == "True {}"
