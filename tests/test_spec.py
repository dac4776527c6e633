"""Ops and kernel specs."""

from __future__ import annotations

import inspect
import pickle
from typing import Protocol

import pytest
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from kernelkit.hardware import Hardware, HardwareRequirement
from kernelkit.spec import KernelSpec, Op, dtype_name, resolve_target

CPU = Hardware(device_type="cpu", name="cpu", packages={"torch": "2.13.0"})


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scale: float = 2.0


class Addition(Protocol):
    """Add two tensors.

    Both of one shape.
    """


def spec(**fields):
    return KernelSpec(**{"op": "add", "variant": "standard", "name": "eager", "factory": "torch:add"} | fields)


def unavailable(hardware: Hardware) -> str | None:
    return f"{hardware.name} is busy"


def test_an_op_is_described_by_the_first_line_of_its_contract():
    assert Op("add", {"standard": ""}, Addition).description == "Add two tensors."


def test_an_op_has_a_default_for_each_variant():
    op = Op("add", {"a": "", "b": ""}, Addition, default="torch", variant_defaults={"b": "eager"})
    assert (op.default_for("a"), op.default_for("b")) == ("torch", "eager")


def test_an_op_and_a_spec_know_where_they_are_declared():
    line = inspect.currentframe().f_lineno
    op = Op("add", {"standard": ""}, Addition)
    assert op.location == f"{__file__}:{line + 1}"
    assert KernelSpec(op="add", variant="a", name="b", factory="torch:add").location == f"{__file__}:{line + 3}"
    fields = {"op": "add", "variant": "a", "name": "b", "factory": "torch:add"}
    assert KernelSpec.model_validate(fields).location == f"{__file__}:{line + 5}"


def test_ops_and_specs_are_values_that_do_not_change():
    one, other = spec(limits={"head_dim": 8}), spec(limits={"head_dim": 8})
    assert hash(one) == hash(one.model_copy(update={"location": one.location}))
    assert one.model_copy(update={"location": ""}) == other.model_copy(update={"location": ""})
    assert pickle.loads(pickle.dumps(one)) == one
    op = Op("add", {"standard": ""}, Addition)
    assert op == Op("add", {"standard": ""}, Addition) and hash(op) == hash(Op("add", {"standard": ""}, Addition))
    for change in (
        lambda: setattr(one, "name", "x"),
        lambda: one.limits.update(head_dim=9),
        lambda: one.traits.setdefault("mask", "none"),
        lambda: op.variants.pop("standard"),
        lambda: setattr(op, "name", "x"),
    ):
        with pytest.raises((ValidationError, TypeError, AttributeError)):
            change()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "auto"}, "'auto' cannot name an implementation"),
        ({"name": "flash attention"}, "use letters, digits and _"),
        ({"factory": "torch.add"}, "is not of the form 'module:attribute'"),
        ({"factory": 3}, "factory"),
        ({"probe": "torch"}, "is not of the form 'module:attribute'"),
        ({"packages": ("liger kernel",)}, "'liger kernel' is not a requirement such as 'triton>=3.6'"),
        ({"dtypes": ("bf16",)}, "'bf16' is not a torch dtype"),
        ({"limits": {"head_dim": 0}}, "greater than 0"),
        ({"options": BaseModel}, r"must set model_config = ConfigDict\(extra='forbid'\)"),
        ({"hardwear": None}, "Extra inputs are not permitted"),
    ],
)
def test_a_faulty_spec_is_refused_with_the_reason(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        spec(**fields)


def test_options_cannot_take_the_place_of_the_implementation():
    class Named(Options):
        impl: str = ""

    with pytest.raises(ValidationError, match="cannot have a field 'impl'"):
        spec(options=Named)


@pytest.mark.parametrize(
    ("fields", "conditions", "problem"),
    [
        ({}, {}, None),
        ({"hardware": HardwareRequirement(device_type="npu")}, {}, "runs on npu, not on cpu"),
        (
            {"packages": ("quack", "torch>=3")},
            {},
            "needs the package quack, which is not installed: pip install 'quack' "
            "and needs torch>=3, and torch 2.13.0 is installed: pip install 'torch>=3'",
        ),
        (
            {"inference_only": True},
            {},
            "is for inference only: it has no backward, and the container is built with training=True",
        ),
        ({"inference_only": True}, {"training": False}, None),
        ({"traceable": False}, {}, None),
        (
            {"traceable": False},
            {"compiled": True},
            "cannot be traced by torch.compile, and the container is built with compiled=True",
        ),
        ({"dtypes": ("float16", "bfloat16")}, {}, None),
        ({"dtypes": ("float16", "bfloat16")}, {"dtype": "bfloat16"}, None),
        (
            {"dtypes": ("float16", "bfloat16")},
            {"dtype": "float32"},
            "takes float16 or bfloat16, and the model is float32",
        ),
        ({"probe": unavailable}, {}, "cpu is busy"),
        ({"probe": "tests.test_spec:unavailable"}, {}, "cpu is busy"),
        (
            {"probe": "no_such_module:probe"},
            {},
            "cannot be probed: ModuleNotFoundError: No module named 'no_such_module'",
        ),
    ],
)
def test_a_spec_says_why_it_cannot_serve(fields, conditions, problem):
    assert spec(**fields).problem(CPU, **conditions) == problem


def test_a_machine_that_is_only_named_is_not_probed():
    assert spec(probe=unavailable).problem(Hardware.named("cpu")) is None


def test_a_factory_string_names_the_kernel_itself():
    assert spec().build() is torch.add


def test_a_factory_that_is_a_callable_returns_the_kernel():
    assert spec(factory=lambda: torch.add).build() is torch.add


def scaled(options: Options):
    return lambda tensor: options.scale * tensor


@pytest.mark.parametrize("factory", [scaled, "tests.test_spec:scaled"])
def test_with_options_either_factory_is_called_with_them(factory):
    made = spec(factory=factory, options=Options)
    assert made.build()(1.0) == 2.0
    assert made.build(Options(scale=3.0))(1.0) == 3.0


def test_a_factory_that_leads_nowhere_says_so_when_it_is_built():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        spec(factory="no_such_module:kernel").build()
    with pytest.raises(AttributeError, match="no_such_kernel"):
        spec(factory="torch:no_such_kernel").build()
    with pytest.raises(TypeError, match="the factory gives float, which cannot be called"):
        spec(factory="math:pi").build()


def test_a_target_may_lie_deeper_in_its_module():
    assert resolve_target("torch:nn.functional.relu") is torch.nn.functional.relu


def test_a_dtype_has_one_name():
    assert dtype_name(torch.bfloat16) == dtype_name("bfloat16") == dtype_name("torch.bfloat16") == "bfloat16"
    with pytest.raises(ValueError, match="'auto' is not a torch dtype, such as 'bfloat16'"):
        dtype_name("auto")
