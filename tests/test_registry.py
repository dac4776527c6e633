"""The registry of ops and kernels."""

from __future__ import annotations

import inspect
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest
from pydantic import BaseModel, ConfigDict

from kernelkit import caller
from kernelkit.containers import OpsConfig
from kernelkit.errors import KernelRegistrationError, UnknownNameError
from kernelkit.registry import RESERVED, KernelRegistry
from kernelkit.spec import KernelSpec, Op


class Addition(Protocol):
    """Add."""


class Traits(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mask: str
    weights: bool = False


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")


def op(name="add", variants=("standard", "other"), **fields):
    return Op(name, dict.fromkeys(variants, ""), Addition, **fields)


def spec(name="eager", variant="standard", **fields):
    return KernelSpec(**{"op": "add", "variant": variant, "name": name, "factory": "torch:add"} | fields)


@pytest.fixture
def registry():
    made = KernelRegistry()
    made.register_op(op())
    return made


def test_what_is_registered_is_found_in_that_order(registry):
    kernels = [registry.register(each) for each in (spec("b"), spec("a"), spec("b", "other"))]
    assert registry.list() == registry.list("add") == kernels
    assert registry.list("add", "standard") == kernels[:2]
    assert registry.list(name="b") == [kernels[0], kernels[2]]
    assert registry.get("add", "standard", "a") is kernels[1]
    assert registry.impls("add") == ["b", "a"] and registry.impls("add", "other") == ["b"]
    assert repr(registry) == "<KernelRegistry: 1 ops, 3 kernels>"


def test_a_second_kernel_of_the_same_name_is_refused_naming_both_files_and_lines(registry):
    line = inspect.currentframe().f_lineno
    first = spec(location="here.py:1")
    second = KernelSpec(op="add", variant="standard", name="eager", factory="torch:sub")
    registry.register(first)
    with pytest.raises(KernelRegistrationError) as refusal:
        registry.register(second)
    assert str(refusal.value) == (
        f"add.standard.eager is registered twice: at here.py:1 and at {__file__}:{line + 2}. "
        "To take its place on purpose, pass replace=True."
    )
    assert registry.get("add", "standard", "eager") is first


def test_a_deliberate_replacement_takes_the_place_of_the_first(registry):
    registry.register(spec())
    second = registry.register(spec(factory="torch:sub"), replace=True)
    assert registry.list() == [second]


def test_a_second_op_of_the_same_name_is_refused_naming_both_files_and_lines(registry):
    line = inspect.currentframe().f_lineno
    with pytest.raises(KernelRegistrationError, match=rf"op 'add' is registered twice: at .* and at .*:{line + 2}\."):
        registry.register_op(Op("add", {"standard": ""}, Addition))
    assert registry.register_op(op(default="torch"), replace=True).default == registry.op("add").default


def test_an_op_that_does_not_fit_the_kernels_that_are_there_cannot_replace_theirs(registry):
    registry.register(spec(variant="other"))
    with pytest.raises(KernelRegistrationError, match="unknown variant 'other' of add"):
        registry.register_op(op(variants=("standard",)), replace=True)
    assert list(registry.op("add").variants) == ["standard", "other"]


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (spec(op="ad", location="x.py:1"), r"at x.py:1: unknown op 'ad'. Did you mean 'add'\? Valid: add\."),
        (spec(variant="othr"), r"unknown variant 'othr' of add. Did you mean 'other'\? Valid: standard, other\."),
        (spec(traits={"mask": "none"}), "op 'add' asks for no traits"),
    ],
)
def test_a_kernel_that_no_op_asks_for_is_refused(registry, faulty, reason):
    with pytest.raises(KernelRegistrationError, match=reason):
        registry.register(faulty)
    assert registry.list() == []


def test_traits_are_checked_against_what_the_op_asks_for_and_completed(registry):
    registry.register_op(op("attend", traits=Traits))
    with pytest.raises(KernelRegistrationError, match="traits: mask: Field required; wieghts: Extra inputs"):
        registry.register(spec(op="attend", traits={"wieghts": True}))
    kept = registry.register(spec(op="attend", traits={"mask": "bool"}))
    assert kept.traits == registry.get(*kept.key).traits == {"mask": "bool", "weights": False}


def test_the_variants_of_one_implementation_share_their_options(registry):
    registry.register(spec(options=Options, location="x.py:7"))
    with pytest.raises(KernelRegistrationError, match=r"differs from that of add.standard.eager at x.py:7"):
        registry.register(spec(variant="other"))
    registry.register(spec(variant="other", options=Options))


@pytest.mark.parametrize(
    "name",
    ["preset", "overrides", "load", "copy", "model_dump", "_add", "a b", "class", "a__b", "x_implementation", ""],
)
def test_a_name_that_a_config_could_not_have_as_a_key_is_no_op(registry, name):
    with pytest.raises(KernelRegistrationError, match="cannot name an op"):
        registry.register_op(op(name))


def test_whatever_an_ops_config_has_beside_its_ops_is_reserved():
    public = {name for name in [*vars(OpsConfig), *OpsConfig.model_fields] if not name.startswith("_")}
    assert {name for name in public if name not in RESERVED and not hasattr(BaseModel, name)} == set()


@pytest.mark.parametrize("fields", [{"variants": ()}, {"variant_defaults": {"third": "eager"}}])
def test_an_op_has_variants_and_defaults_for_those_alone(registry, fields):
    with pytest.raises(KernelRegistrationError, match="at least one variant"):
        registry.register_op(op("subtract", **fields))


def test_an_unknown_name_is_answered_with_the_nearest_and_the_valid_ones(registry):
    registry.register(spec())
    for ask, reason in (
        (lambda: registry.op("ad"), "unknown op 'ad'. Did you mean 'add'? Valid: add."),
        (lambda: registry.get("ad", "standard", "eager"), "unknown op 'ad'. Did you mean 'add'? Valid: add."),
        (lambda: registry.get("add", "std", "eager"), "unknown variant 'std' of add. Valid: standard, other."),
        (
            lambda: registry.get("add", "standard", "Eager"),
            "unknown implementation 'Eager' of add (standard). Did you mean 'eager'? Valid: eager.",
        ),
        (lambda: registry.get("add", "other", "eager"), "unknown implementation 'eager' of add (other). Valid: none."),
    ):
        with pytest.raises(UnknownNameError) as refusal:
            ask()
        assert str(refusal.value) == reason and isinstance(refusal.value, KeyError)


def test_a_copy_and_its_original_go_their_own_ways(registry):
    registry.register(spec())
    twin = registry.copy()
    twin.register(spec("mine"))
    registry.register(spec("theirs"))
    twin.register_op(op("subtract"))
    assert (registry.impls("add"), twin.impls("add")) == (["eager", "theirs"], ["eager", "mine"])
    assert list(registry.ops) == ["add"]


def test_what_a_registry_gives_out_does_not_lead_back_into_it(registry):
    registry.register(spec())
    registry.ops.clear()
    registry.list().clear()
    registry.broken_plugins["x"] = "y"
    assert list(registry.ops) == ["add"] and len(registry.list()) == 1 and registry.broken_plugins == {}


def test_threads_that_register_the_same_kernel_see_one_succeed(registry):
    barrier = threading.Barrier(16)

    def attempt(number):
        barrier.wait()
        registry.register(spec(f"own_{number}"))
        try:
            return bool(registry.register(spec("shared")))
        except KernelRegistrationError:
            return False

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(attempt, range(16)))
    assert outcomes.count(True) == 1
    assert len(registry.list()) == 17


def test_a_warning_is_about_the_line_outside_of_kernelkit(monkeypatch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1
        caller.warn_user("look", UserWarning)
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
