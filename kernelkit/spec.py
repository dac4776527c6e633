"""The two kinds of entry in a registry: an op, which is mathematics; a kernel spec, which is one way to compute it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, field_validator

from kernelkit.caller import caller_location
from kernelkit.frozen import FrozenDict
from kernelkit.hardware import Hardware, HardwareRequirement
from kernelkit.packages import package_problem

Kernel = Callable[..., Any]
"""What a module calls. Its signature is that of the op's protocol."""

Samples = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]
"""Calls to judge a kernel by: positional and keyword arguments."""


class Cost(NamedTuple):
    """The least that a call takes, whatever computes it: the floor under a benchmark.

    Attributes:
        bytes: read from and written to memory, each tensor once in each direction.
        flops: of the products of matrices.
    """

    bytes: int
    flops: int = 0


def _declared_at() -> str:
    return caller_location(__name__)


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
        parts: ops that its eager kernel is composed of, and calls as the model has bound them; the others compute them.
        traits: a pydantic model of further facts that each kernel of this op must state about itself.
        samples: ``samples(variant, dtype, device, generator)`` yields calls to judge a kernel by.
        sized_samples: ``sized_samples(variant, sizes, dtype, device, generator)`` yields calls in a model's own sizes,
            of few rows for ``verify: bind``. Without it ``samples`` serves there too.
        on_samples: ``on_samples(kernel, traits)`` is the kernel as samples call it, where models call it otherwise.
        terms: ``terms(arguments)`` is, by number of output, the size of what this output is a small difference of: to
            round that is no fault of a kernel.
        counts: numbers of the outputs that may count equal values one way or another.
        long_rows: sizes for ``sized_samples`` with rows longer than the blocks of kernels, for the conformance kit.
        cost: ``cost(arguments, backward)`` is the :class:`Cost` of a call with these arguments, by name; with
            ``backward``, of the call and its gradients together.
        benchmarks: the sizes that a benchmark gives to ``sized_samples``, together with ``batch`` and ``length`` for
            the rows of each.
        location: file and line of the declaration; filled in by itself.
    """

    name: str
    variants: Mapping[str, str]
    protocol: type
    default: str = "eager"
    variant_defaults: Mapping[str, str] = field(default_factory=FrozenDict)
    preference: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    traits: type[BaseModel] | None = None
    samples: Callable[..., Samples] | None = None
    sized_samples: Callable[..., Samples] | None = None
    on_samples: Callable[[Kernel, Mapping[str, Any]], Kernel] | None = None
    terms: Callable[[Mapping[str, Any]], Mapping[int, Any]] | None = None
    counts: tuple[int, ...] = ()
    long_rows: Mapping[str, Any] = field(default_factory=FrozenDict)
    cost: Callable[[Mapping[str, Any], bool], Cost] | None = None
    benchmarks: tuple[Mapping[str, Any], ...] = ()
    location: str = field(default_factory=_declared_at, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("variants", "variant_defaults", "long_rows"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))
        object.__setattr__(self, "benchmarks", tuple(map(FrozenDict, self.benchmarks)))

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
        refuses: in words, what a call may ask of the op and this kernel raises for. It is then used where it is named;
            neither ``auto`` nor a preset that goes by measurements takes it.
        inference_only: it has no backward.
        traceable: ``torch.compile(fullgraph=True)`` can trace a call to it.
        deterministic: the same inputs give the same bits, backward included.
        options: pydantic model of what a config may set for this kernel, or None. It forbids extra keys.
        traits: what the op's contract asks each kernel to state, such as the kind of attention mask it reads.
        tested: False where it was written for hardware that nobody has run it on.
        description: one line for ``kernelkit explain``.
        location: file and line of the declaration; filled in by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    op: str
    variant: str
    name: str
    factory: str | Callable[..., Any]
    hardware: HardwareRequirement = HardwareRequirement()
    packages: tuple[str, ...] = ()
    probe: str | Callable[[Hardware], str | None] | None = None
    dtypes: tuple[str, ...] | None = None
    limits: Annotated[dict[str, PositiveInt], AfterValidator(FrozenDict)] = FrozenDict()
    refuses: str = ""
    inference_only: bool = False
    traceable: bool = True
    deterministic: bool = True
    options: type[BaseModel] | None = None
    traits: Annotated[dict[str, Any], AfterValidator(FrozenDict)] = FrozenDict()
    tested: bool = True
    description: str = ""
    location: str = Field(default_factory=_declared_at, repr=False)

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

    @field_validator("packages")
    @classmethod
    def _are_requirements(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        for package in packages:
            try:
                Requirement(package)
            except InvalidRequirement as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(f"{package!r} is not a requirement such as 'triton>=3.6': {reason}") from None
        return packages

    @field_validator("dtypes")
    @classmethod
    def _are_dtypes(cls, dtypes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if dtypes is None else tuple(dtype_name(dtype) for dtype in dtypes)

    @field_validator("options")
    @classmethod
    def _forbids_unknown_options(cls, options: type[BaseModel] | None) -> type[BaseModel] | None:
        if options is not None and options.model_config.get("extra") != "forbid":
            raise ValueError(f"{options.__name__} must set model_config = ConfigDict(extra='forbid')")
        if options is not None and "impl" in options.model_fields:
            raise ValueError(f"{options.__name__} cannot have a field 'impl': a config writes the implementation there")
        return options

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
            training: whether gradients will be asked for.
            compiled: whether ``torch.compile`` will trace the model.
            dtype: name of the model's dtype, where it is known.
        """
        if reason := self.hardware.problem(hardware):
            return reason
        if reason := self.missing_packages(hardware):
            return reason
        if training and self.inference_only:
            return "is for inference only: it has no backward, and the container is built with training=True"
        if compiled and not self.traceable:
            return "cannot be traced by torch.compile, and the container is built with compiled=True"
        if dtype is not None and self.dtypes is not None and dtype not in self.dtypes:
            return f"takes {' or '.join(self.dtypes)}, and the model is {dtype}"
        return self._probed(hardware)

    def missing_packages(self, hardware: Hardware) -> str | None:
        """Which packages have to be installed and how, or None where nothing is missing."""
        missing = [why for package in self.packages if (why := package_problem(package, hardware.packages))]
        return " and ".join(missing) or None

    def _probed(self, hardware: Hardware) -> str | None:
        if self.probe is None or hardware.packages is None:
            return None
        try:
            reason: str | None = resolve_target(self.probe)(hardware)
        except Exception as error:  # a probe may import anything, and a kernel that cannot be probed cannot be used
            reason = f"cannot be probed: {type(error).__name__}: {error}"
        return reason

    def build(self, options: BaseModel | None = None) -> Kernel:
        """The kernel, imported or made now.

        Raises:
            ImportError, AttributeError: where the factory string leads nowhere.
            TypeError: where it leads to something that cannot be called.
        """
        kernel: Any = resolve_target(self.factory)
        if self.options is not None:
            kernel = kernel(self.options() if options is None else options)
        elif not isinstance(self.factory, str):
            kernel = kernel()
        if not callable(kernel):
            raise TypeError(f"the factory gives {type(kernel).__name__}, which cannot be called")
        return kernel  # type: ignore[no-any-return]  # callable() leaves Any


def resolve_target(target: str | Callable[..., Any]) -> Callable[..., Any]:
    """The object that ``"module:attribute"`` names; a callable is returned as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # whatever the string names


def dtype_name(dtype: Any) -> str:
    """``"bfloat16"`` for ``torch.bfloat16``, or for itself.

    Raises:
        ValueError: for a name that torch does not have.
    """
    import torch

    name = str(dtype).removeprefix("torch.")
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"{dtype!r} is not a torch dtype, such as 'bfloat16'")
    return name
