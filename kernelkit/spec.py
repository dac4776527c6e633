"""The two kinds of entry in a registry: an op, which is mathematics, and a kernel spec, which is one way to compute it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kernelkit.hardware import Hardware, HardwareRequirement, package_problem

Kernel = Callable[..., Any]
"""What a module calls. Its signature is that of the op's protocol."""

Samples = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]
"""Calls to judge a kernel by: positional and keyword arguments."""


@dataclass(frozen=True)
class Op:
    """A named piece of mathematics: what every one of its kernels must compute.

    Attributes:
        name: the key that users write in a config.
        variants: the mathematically different members, each with its reference (an HF class or a paper).
        protocol: a ``typing.Protocol`` whose ``__call__`` is the signature; its docstring is the contract.
        default: the impl that a stock transformers model would use, taken where nobody names one.
        variant_defaults: the same for variants that stock transformers treats differently.
        preference: impls in the order in which ``auto`` tries them. Those not listed come last, by name.
        traits: a pydantic model of further facts that each kernel of this op must state about itself.
        samples: ``samples(variant, dtype, device, generator)`` yields calls to judge a kernel by.
    """

    name: str
    variants: Mapping[str, str]
    protocol: type
    default: str = "eager"
    variant_defaults: Mapping[str, str] = field(default_factory=dict)
    preference: tuple[str, ...] = ()
    traits: type[BaseModel] | None = None
    samples: Callable[..., Samples] | None = None

    @property
    def description(self) -> str:
        """The first line of the protocol's docstring."""
        return (self.protocol.__doc__ or "").strip().partition("\n")[0]

    def default_for(self, variant: str) -> str:
        """The impl that stock transformers would use for ``variant``."""
        return self.variant_defaults.get(variant, self.default)


class KernelSpec(BaseModel):
    """One implementation of one variant of an op, described without importing it.

    Attributes:
        op: name of the op.
        variant: name of the variant.
        name: name of the implementation, which users write in a config.
        factory: where the kernel comes from. A string ``"module:attribute"`` names the kernel itself, and is imported
            when a container first needs it; a callable takes no argument and returns the kernel. With ``options``,
            either is called with the options instance and returns the kernel.
        hardware: the devices it runs on.
        packages: requirements in the standard form, ``"liger-kernel>=0.8,<0.9"``.
        probe: ``"module:attribute"`` or a callable, taking the ``Hardware``: a reason why this machine cannot run the
            kernel although device and packages are right, or None. Asked only of a detected machine.
        dtypes: names of the input dtypes it accepts (``bfloat16``); None for any floating dtype.
        limits: largest size it accepts of a dimension that the op names (``{"head_dim": 256}``).
        inference_only: it has no backward.
        traceable: ``torch.compile(fullgraph=True)`` can trace a call to it.
        deterministic: the same inputs give the same bits, backward included.
        options: pydantic model of what a config may set for this kernel, or None.
        traits: what the op's contract asks each kernel to state, such as the kind of attention mask it reads.
        tested: False where it was written for hardware that nobody has run it on.
        description: one line for ``kernelkit explain``.
        location: file and line of the declaration; filled in by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    op: str
    variant: str
    name: str
    factory: str | Callable[..., Kernel]
    hardware: HardwareRequirement = HardwareRequirement()
    packages: tuple[str, ...] = ()
    probe: str | Callable[[Hardware], str | None] | None = None
    dtypes: tuple[str, ...] | None = None
    limits: dict[str, int] = Field(default_factory=dict)
    inference_only: bool = False
    traceable: bool = True
    deterministic: bool = True
    options: type[BaseModel] | None = None
    traits: dict[str, Any] = Field(default_factory=dict)
    tested: bool = True
    description: str = ""
    location: str = Field(default="", repr=False)

    def __init__(self, **fields: Any) -> None:
        fields.setdefault("location", caller_location())
        super().__init__(**fields)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name == "auto":
            raise ValueError(f"{name!r} cannot name an implementation: use letters, digits and _, and not 'auto'")
        return name

    @field_validator("factory", "probe")
    @classmethod
    def _names_an_attribute(cls, target: Any) -> Any:
        if isinstance(target, str) and not re.fullmatch(r"[\w.]+:[\w.]+", target):
            raise ValueError(f"{target!r} is not of the form 'module:attribute'")
        return target

    @property
    def key(self) -> tuple[str, str, str]:
        """(op, variant, name), which is unique in a registry."""
        return self.op, self.variant, self.name

    def problem(
        self, hardware: Hardware, *, training: bool = True, compiled: bool = False, dtype: str | None = None
    ) -> str | None:
        """Why this kernel cannot serve, in one sentence, or None where it can.

        Args:
            hardware: the device that the model will live on.
            training: whether gradients will be asked of it.
            compiled: whether the model will be traced by ``torch.compile``.
            dtype: name of the model's dtype, where it is known.
        """
        reason = self.hardware.problem(hardware)
        for requirement in self.packages:
            reason = reason or package_problem(requirement, hardware)
        if reason is None and self.probe is not None and hardware.packages is not None:
            reason = resolve_target(self.probe)(hardware)
        if reason is None and training and self.inference_only:
            reason = "is for inference only and has no backward; the container is built with training=True"
        if reason is None and compiled and not self.traceable:
            reason = "cannot be traced by torch.compile; the container is built with compiled=True"
        if reason is None and dtype is not None and self.dtypes is not None and dtype not in self.dtypes:
            reason = f"takes {' or '.join(self.dtypes)}, and the model is {dtype}"
        return reason

    def build(self, options: BaseModel | None = None) -> Kernel:
        """The kernel, imported or made now.

        Raises:
            ImportError, AttributeError: where the factory string leads nowhere.
        """
        target = resolve_target(self.factory)
        if self.options is not None:
            return target(options if options is not None else self.options())
        return target if isinstance(self.factory, str) else target()


def resolve_target(target: str | Callable[..., Any]) -> Callable[..., Any]:
    """The object that ``"module:attribute"`` names; a callable is returned as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def caller_location() -> str:
    """``file:line`` of the nearest caller outside kernelkit's own spec and registry modules and pydantic."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == "pydantic" or _is_ours(frame):
        frame = frame.f_back  # type: ignore[assignment]  # the outermost frame is never ours
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_ours(frame: Any) -> bool:
    return frame.f_globals.get("__name__") in {"kernelkit.spec", "kernelkit.registry"}
