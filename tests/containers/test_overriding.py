"""A kernel of one's own, put in the place of another in one container."""

from __future__ import annotations

import pytest
from dependency_injector import providers

from kernelkit.containers import Need
from kernelkit.errors import UnknownNameError, UnusedOpWarning
from tests.containers import fakes
from tests.containers.fakes import NORM, bound, mistakes


def mine(hidden_states, weight, eps):
    return hidden_states


def test_overriding_one_container_changes_that_one_alone(make):
    one, other = make({"rms_norm": "torch"}), make({"rms_norm": "torch"})
    before = bound(one)
    one.override("rms_norm", mine)
    assert bound(one)["rms_norm", "standard"].kernel is mine
    assert bound(other)["rms_norm", "standard"].kernel is before["rms_norm", "standard"].kernel is fakes.other_norm


def test_an_override_is_reported_as_such(make):
    container = make()
    container.override("rms_norm", mine)
    binding = bound(container)["rms_norm", "standard"]
    assert (binding.impl, binding.why, binding.named, binding.traits) == ("mine", "override", True, {})


def test_an_override_replaces_all_variants_or_one(make):
    needs = [NORM, Need("rms_norm", "fp32_weight")]
    all_of_them, one_of_them = make(), make()
    all_of_them.override("rms_norm", mine)
    one_of_them.override("rms_norm", mine, variant="fp32_weight")
    assert [binding.impl for binding in bound(all_of_them, *needs).values()] == ["mine", "mine"]
    assert [binding.impl for binding in bound(one_of_them, *needs).values()] == ["eager", "mine"]


def test_a_provider_overridden_in_dependency_injectors_own_way_serves_as_well(make):
    container = make()
    with container.override_providers(rms_norm__standard=providers.Object(mine)):
        assert bound(container)["rms_norm", "standard"].kernel is mine
    assert bound(container)["rms_norm", "standard"].impl == "eager"


def test_an_override_that_would_serve_nothing_is_refused(make):
    container = make()
    container.override("moe_experts", mine)
    assert set(mistakes(lambda: bound(container))) == {("moe_experts",)}
    container = make()
    container.override("rms_norm", mine, variant="fp32_weight")
    assert set(mistakes(lambda: bound(container))) == {("rms_norm",)}
    shared = make({"allow_unused": True})
    shared.override("moe_experts", mine)
    with pytest.warns(UnusedOpWarning):
        bound(shared)


def test_what_cannot_be_overridden_is_refused(make):
    with pytest.raises(UnknownNameError, match=r"unknown op 'rms_nrom'\. Did you mean 'rms_norm'\?"):
        make().override("rms_nrom", mine)
    with pytest.raises(UnknownNameError, match=r"unknown variant 'std' of rms_norm\. Valid: standard, zero_centered"):
        make().override("rms_norm", mine, variant="std")
    with pytest.raises(TypeError, match="the override of rms_norm must be callable, and 'torch' is not"):
        make().override("rms_norm", "torch")
