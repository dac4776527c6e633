"""What a container resolves to, and what a model is built from: bound kernels."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelkit.containers.device_guard import on_its_device
from kernelkit.errors import UnknownNameError, listing
from kernelkit.frozen import FrozenDict
from kernelkit.registry import default_registry
from kernelkit.spec import Kernel, KernelSpec

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Need:
    """One kernel that a model asks for.

    Attributes:
        op: name of the op.
        variant: which mathematics the model needs.
        sizes: dimensions that a kernel may limit, such as ``{"head_dim": 128}``.
    """

    op: str
    variant: str = "standard"
    sizes: Mapping[str, int] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", FrozenDict(self.sizes))


@dataclass(frozen=True, eq=False)
class Binding:
    """One kernel, bound for one model instance.

    Equal by op, variant, impl and options. Pickles as those names and finds the kernel again where it is loaded; copies
    share the kernel.

    Attributes:
        op, variant, impl: its name.
        why: ``named``, ``preset <name>``, ``default``, ``auto: <reason>`` or ``override``.
        kernel: the callable.
        spec: the spec it was built from; None for an override.
        options_json: the options that were set, as canonical JSON.
    """

    op: str
    variant: str
    impl: str
    why: str
    kernel: Kernel = field(repr=False)
    spec: KernelSpec | None = field(default=None, repr=False)
    options_json: str = "{}"

    @classmethod
    def from_spec(cls, spec: KernelSpec, why: str, options_json: str = "{}") -> Binding:
        """Build the kernel of ``spec`` with the given options."""
        options = None if spec.options is None else spec.options.model_validate_json(options_json)
        kernel = on_its_device(spec.build(options), spec)
        return cls(spec.op, spec.variant, spec.name, why, kernel, spec, options_json)

    @classmethod
    def of_override(cls, op: str, variant: str, kernel: Kernel) -> Binding:
        """Bind ``kernel`` as it is."""
        return cls(op, variant, getattr(kernel, "__name__", type(kernel).__name__), "override", kernel)

    @property
    def named(self) -> bool:
        """Whether the user asked for this very implementation, by name, by preset or by an override."""
        return not self.why.startswith(("default", "auto"))

    @property
    def traits(self) -> Mapping[str, Any]:
        """What the kernel states about itself; empty for an override."""
        return self.spec.traits if self.spec else FrozenDict()

    def _identity(self) -> tuple[Any, ...]:
        return self.op, self.variant, self.impl, self.options_json, self.kernel if self.spec is None else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binding) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __copy__(self) -> Binding:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.spec is None:
            self._check_pickles(
                self.kernel, "the override", "Override it with a function at the top level of a module."
            )
            return Binding.of_override, (self.op, self.variant, self.kernel)
        if default_registry().list(*self.spec.key) == [self.spec]:
            return _rebuild_by_name, (self.spec.key, self.why, self.options_json, _home(self.kernel, self.spec))
        self._check_pickles(self.spec, "its spec", "Give its factory as 'module:attribute'.")
        return Binding.from_spec, (self.spec, self.why, self.options_json)

    def _check_pickles(self, thing: Any, what: str, hint: str) -> None:
        try:
            pickle.dumps(thing)
        except (
            Exception
        ) as error:  # pickle raises PicklingError, AttributeError, TypeError and what a __reduce__ raises
            raise pickle.PicklingError(
                f"{self.op}: {self.impl} ({self.variant}) cannot be pickled, because {what} cannot: {error}. {hint}"
            ) from error


class Bindings(Mapping[tuple[str, str], Binding]):
    """The kernels of one model instance by (op, variant); immutable, hashable, picklable, equal by value."""

    __slots__ = ("_bindings",)

    def __init__(self, bindings: Iterable[Binding]) -> None:
        self._bindings = FrozenDict({(binding.op, binding.variant): binding for binding in bindings})

    def __getitem__(self, key: tuple[str, str]) -> Binding:
        try:
            return self._bindings[key]
        except KeyError:
            having = listing(f"{op} ({variant})" for op, variant in self)
            raise UnknownNameError(f"no kernel is bound for {key!r}; bound are: {having}") from None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._bindings)

    def __len__(self) -> int:
        return len(self._bindings)

    def __hash__(self) -> int:
        return hash(self._bindings)

    def __reduce__(self) -> tuple[Any, ...]:
        return Bindings, (tuple(self._bindings.values()),)

    def __repr__(self) -> str:
        return f"Bindings({', '.join(f'{op}.{variant}: {self[op, variant].impl}' for op, variant in self)})"


def _rebuild_by_name(key: Key, why: str, options_json: str, home: str) -> Binding:
    registry = default_registry()
    try:
        if not registry.list(*key):
            importlib.import_module(home)  # what @register_kernel decorates there is registered by that
        return Binding.from_spec(registry.get(*key), why, options_json)
    except (ImportError, UnknownNameError) as error:
        raise pickle.UnpicklingError(
            f"{key[0]}: {key[2]} ({key[1]}) is not registered here: {error} Import what registers it before loading."
        ) from error


def _home(kernel: Kernel, spec: KernelSpec) -> str:
    """The module whose import may register the kernel."""
    return spec.factory.partition(":")[0] if isinstance(spec.factory, str) else kernel.__module__
