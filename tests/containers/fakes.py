"""A registry of the real ops with small kernels of its own, which the tests of configs and containers choose from."""

from __future__ import annotations

import threading
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kernelkit.containers import Need
from kernelkit.hardware import Hardware, HardwareRequirement
from kernelkit.ops import attention, moe_experts, rms_norm
from kernelkit.registry import KernelRegistry
from kernelkit.spec import KernelSpec

CPU = Hardware(device_type="cpu", name="cpu", packages={"torch": "2.13.0", "old": "0.9"})
CUDA = HardwareRequirement(device_type="cuda")
NPU = HardwareRequirement(device_type="npu")
HOPPER = HardwareRequirement(device_type="cuda", min_capability=(9, 0), max_capability=(9, 9))


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rows: int = Field(default=1, ge=1)


class TunedOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scale: float = 1.0
    mode: Literal["fast", "exact"] = "fast"
    block: Block = Block()
    sizes: tuple[int, ...] = ()
    note: Any = None

    @field_validator("scale")
    @classmethod
    def _is_not_zero(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("a scale of zero gives nothing")
        return scale


class NeedyOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int


built: list[tuple[str, int]] = []
"""Name and thread of every kernel that :func:`counted` has made."""


def norm(hidden_states, weight, eps):
    return hidden_states * weight


def other_norm(hidden_states, weight, eps):
    return hidden_states + weight


def unchanged(hidden_states, weight, eps):
    return hidden_states


def attend(query, key, value, mask, **settings):
    return value, None


def counted():
    built.append(("counted", threading.get_ident()))
    return norm


def tuned(options: TunedOptions):
    def kernel(hidden_states, weight, eps):
        return options.scale * hidden_states

    kernel.options = options
    return kernel


def needy(options: NeedyOptions):
    return norm


def fails_to_build():
    raise OSError("the shared library is missing")


def spec(name: str, op: str = "rms_norm", variant: str = "standard", **fields: Any) -> KernelSpec:
    return KernelSpec(**{"op": op, "variant": variant, "name": name, "factory": "tests.containers.fakes:norm"} | fields)


def attention_spec(name: str, variant: str = "causal", **fields: Any) -> KernelSpec:
    settings = {"factory": "tests.containers.fakes:attend", "traits": {"mask": "bool"}} | fields
    return spec(name, "attention", variant, **settings)


def make_registry() -> KernelRegistry:
    """Kernels that fail in every way there is, and some that work."""
    registry = KernelRegistry()
    for module in (rms_norm, attention, moe_experts):
        registry.register_op(module.OP)
    for variant in rms_norm.OP.variants:
        registry.register(spec("eager", variant=variant))
    for variant in attention.OP.variants:
        registry.register(attention_spec("eager", variant, traits={"mask": "additive", "weights": True}))
    for each in (
        spec("torch", factory="tests.containers.fakes:other_norm"),
        spec("liger", hardware=CUDA, packages=("liger-kernel>=0.8",)),
        spec("liger_npu", hardware=NPU, tested=False),
        spec("hopper", hardware=HOPPER),
        spec("missing_package", packages=("quack-kernels[cu13]>=0.5",)),
        spec("old_package", packages=("old>=1.0",)),
        spec("inference", inference_only=True),
        spec("untraceable", traceable=False),
        spec("half", dtypes=("float16", "bfloat16")),
        spec("unbuildable", factory=fails_to_build),
        spec("counted", factory=counted),
        spec("tuned", factory="tests.containers.fakes:tuned", options=TunedOptions),
        spec("needy", factory="tests.containers.fakes:needy", options=NeedyOptions),
        spec("picky", refuses="rows of an odd length"),
        attention_spec("sdpa"),
        attention_spec("sdpa", "sliding_window"),
        attention_spec("narrow", limits={"head_dim": 128}),
        attention_spec("flash_attention_3", hardware=HOPPER),
        spec("eager", "moe_experts"),
        spec("torch", "moe_experts"),
    ):
        registry.register(each)
    return registry


def mistakes(call) -> dict[tuple[Any, ...], tuple[str, str]]:
    """Type and message by loc of what ``call`` complains about; it must raise a ValidationError."""
    with pytest.raises(ValidationError) as refusal:
        call()
    lines = refusal.value.errors(include_url=False)
    found = {line["loc"]: (line["type"], line["msg"]) for line in lines}
    assert str(refusal.value) and len(found) == len(lines)
    return found


def bound(container, *needs):
    """What the container binds for these needs, by default one norm's."""
    return container.bind(needs or [NORM], model="M")


NORM = Need("rms_norm")
ATTENTION = Need("attention", "causal")
ONES = torch.ones(4)
