"""Containers: what they choose, and why; what they keep to themselves."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from dependency_injector import containers, providers

from kernelkit.containers import KernelContainer, Need, OpsConfig, as_container
from kernelkit.hardware import Hardware
from kernelkit.registry import KernelRegistry
from tests.containers import fakes
from tests.containers.fakes import ATTENTION, CPU, NORM, ONES, bound, mistakes, spec


def test_a_container_is_one_of_dependency_injectors(make):
    container = make()
    assert isinstance(container, KernelContainer) and isinstance(container, containers.DynamicContainer)
    provider = container.providers["rms_norm__standard"]
    assert isinstance(provider, providers.ThreadSafeSingleton) and container.rms_norm__standard is provider
    assert container.config() == OpsConfig() and container.hardware == CPU


def test_a_config_may_be_a_config_a_mapping_a_path_or_nothing(registry, write):
    for ops in (OpsConfig(rms_norm="torch"), {"rms_norm": "torch"}, write("rms_norm: torch")):
        container = KernelContainer.from_config(ops, registry=registry, hardware=CPU)
        assert bound(container)["rms_norm", "standard"].kernel is fakes.other_norm
    assert bound(KernelContainer.from_config(None, registry=registry, hardware=CPU))


def test_the_user_the_preset_and_the_default_choose_in_that_order(make):
    bindings = bound(make({"preset": "eager", "rms_norm": "torch"}), NORM, ATTENTION)
    norm, attention = bindings["rms_norm", "standard"], bindings["attention", "causal"]
    assert (norm.impl, norm.why, norm.named) == ("torch", "named", True)
    assert (attention.impl, attention.why, attention.named) == ("eager", "preset eager", True)
    default = bound(make(), ATTENTION)["attention", "causal"]
    assert (default.impl, default.why, default.named) == ("sdpa", "default", False)


def test_a_variant_may_have_a_default_of_its_own(make):
    bindings = bound(make(), ATTENTION, Need("attention", "softcap"))
    assert [binding.impl for binding in bindings.values()] == ["sdpa", "eager"]


def test_the_preset_eager_means_every_op_of_plugins_too(make, registry):
    registry.register_op(fakes.rms_norm.OP.__class__("add", {"standard": ""}, object, default="torch"))
    for name in ("eager", "torch"):
        registry.register(spec(name, "add"))
    assert bound(make(), Need("add"))["add", "standard"].impl == "torch"
    assert bound(make({"preset": "eager"}), Need("add"))["add", "standard"].why == "preset eager"


def test_an_op_that_a_preset_leaves_out_keeps_its_default(make):
    assert bound(make({"preset": "liger_npu"}), Need("moe_experts"))["moe_experts", "standard"].why == "default"


def test_auto_takes_the_first_that_runs_and_says_what_it_passed_over(make):
    binding = bound(make({"attention": "auto"}), ATTENTION)["attention", "causal"]
    assert binding.impl == "sdpa" and not binding.named
    assert binding.why == (
        "auto: first of the op's order of preference that runs here; passed over: flash_attention_3 runs on cuda, not "
        "on cpu"
    )


def test_auto_chooses_by_machine(make):
    hopper = make({"attention": "auto"}, hardware=Hardware.named("h100"))
    binding = bound(hopper, ATTENTION)["attention", "causal"]
    assert (binding.impl, binding.why) == (
        "flash_attention_3",
        "auto: first of the op's order of preference that runs here",
    )


def test_auto_does_not_choose_what_it_would_have_to_configure():
    registry = KernelRegistry()
    registry.register_op(fakes.rms_norm.OP)
    registry.register(spec("needy", factory="tests.containers.fakes:needy", options=fakes.NeedyOptions))
    container = KernelContainer.from_config({"rms_norm": "auto"}, registry=registry, hardware=CPU)
    assert mistakes(lambda: bound(container)) == {
        ("rms_norm",): (
            "unavailable_kernel",
            "rms_norm: auto finds no implementation of 'standard' that runs here: needy needs to be told width",
        )
    }


def test_the_options_reach_the_kernel(make):
    binding = bound(make({"rms_norm": {"impl": "tuned", "scale": 3, "block": {"rows": 2}}}))["rms_norm", "standard"]
    assert binding.kernel.options == fakes.TunedOptions(scale=3.0, block=fakes.Block(rows=2))
    assert binding.kernel(ONES, None, 0.0).tolist() == [3.0] * 4
    assert bound(make({"rms_norm": "tuned"}))["rms_norm", "standard"].kernel.options == fakes.TunedOptions()


def test_the_traits_of_a_kernel_are_complete(make):
    assert bound(make(), ATTENTION)["attention", "causal"].traits == {"mask": "bool", "weights": False}


def test_sixteen_threads_resolve_a_kernel_once(make):
    container = make({"rms_norm": "counted"})
    fakes.built.clear()
    barrier = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: (barrier.wait(), bound(container)["rms_norm", "standard"])[1], range(16)))
    assert len(fakes.built) == 1
    assert all(binding is found[0] for binding in found)


def test_two_containers_resolve_their_own(make):
    fakes.built.clear()
    for _ in range(2):
        bound(make({"rms_norm": "counted"}))
    assert len(fakes.built) == 2


def test_two_hundred_containers_leave_nothing_behind(make):
    def build():
        container = make({"rms_norm": "tuned"})
        container.override("moe_experts", lambda *args: None)
        binding = bound(container, NORM, Need("moe_experts"))["rms_norm", "standard"]
        return weakref.ref(container), weakref.ref(container.registry()), weakref.ref(binding.kernel)

    references = [reference for _ in range(200) for reference in build()]
    gc.collect()
    assert [reference for reference in references if reference() is not None] == []


@pytest.mark.parametrize("twin", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_container_is_neither_pickled_nor_copied_and_says_what_to_do(make, twin):
    with pytest.raises(TypeError, match=r"a KernelContainer (does not pickle|is not copied).* OpsConfig"):
        twin(make())


def test_a_container_shows_its_config_and_its_machine(make):
    assert repr(make({"rms_norm": "torch"})) == "<KernelContainer of OpsConfig(rms_norm='torch') on cpu>"


def test_as_container_makes_one_of_anything_and_leaves_one_as_it_is(registry):
    container = as_container({"rms_norm": "eager"}, device="cpu", dtype=None, training=True, compiled=False)
    assert as_container(container, device="cpu") is container
    with pytest.raises(ValueError, match="valid dictionary"):
        as_container(3)


def test_what_nobody_names_may_be_left_out(make):
    container = make({"rms_norm": "torch"})
    needs = (NORM, ATTENTION, Need("unheard_of"))
    assert list(container.bind(needs, model="any", named_only=True)) == [("rms_norm", "standard")]
    container.override("attention", fakes.other_norm, "causal")
    assert ("attention", "causal") in container.bind(needs, model="any", named_only=True)
    assert {
        binding.why for binding in make({"preset": "eager"}).bind(needs[:2], model="any", named_only=True).values()
    } == {"preset eager"}
