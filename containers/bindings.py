"""What a container resolves to, and what a model is built from: bound kernels."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelkit.registry import default_registry
from kernelkit.spec import Kernel, KernelSpec, resolve_target


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
    sizes: Mapping[str, int] = field(default_factory=dict)


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
        from kernelkit.containers.device_guard import on_its_device

        options = None if spec.options is None else spec.options.model_validate_json(options_json)
        kernel = on_its_device(spec.build(options), spec)
        return cls(spec.op, spec.variant, spec.name, why, kernel, spec, options_json)

    @property
    def named(self) -> bool:
        """Whether the user asked for this very implementation, by name, by preset or by an override."""
        return not self.why.startswith(("default", "auto"))

    @property
    def traits(self) -> Mapping[str, Any]:
        """What the kernel states about itself; empty for an override."""
        return self.spec.traits if self.spec else {}

    def _identity(self) -> tuple[Any, ...]:
        return self.op, self.variant, self.impl, self.options_json, self.kernel if self.spec is None else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binding) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.spec is None:
            return _rebuild_override, (self.op, self.variant, self.impl, _importable(self.kernel, self))
        if default_registry().list(*self.spec.key) == [self.spec]:
            return _rebuild_by_name, (self.spec.key, self.why, self.options_json)
        if isinstance(self.spec.factory, str):
            return Binding.from_spec, (self.spec, self.why, self.options_json)
        raise pickle.PicklingError(
            f"{self.op}: {self.impl} ({self.variant}) cannot be pickled: its spec is not in the default registry and its "
            "factory is an object. Give the factory as 'module:attribute'."
        )


class Bindings(Mapping[tuple[str, str], Binding]):
    """The kernels of one model instance by (op, variant); immutable, picklable, equal by value."""

    __slots__ = ("_bindings",)

    def __init__(self, bindings: tuple[Binding, ...]) -> None:
        self._bindings = {(binding.op, binding.variant): binding for binding in bindings}

    def __getitem__(self, key: tuple[str, str]) -> Binding:
        return self._bindings[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._bindings)

    def __len__(self) -> int:
        return len(self._bindings)

    def __reduce__(self) -> tuple[Any, ...]:
        return Bindings, (tuple(self._bindings.values()),)

    def __repr__(self) -> str:
        return f"Bindings({', '.join(f'{op}.{variant}: {self[op, variant].impl}' for op, variant in self)})"


def _rebuild_by_name(key: tuple[str, str, str], why: str, options_json: str) -> Binding:
    return Binding.from_spec(default_registry().get(*key), why, options_json)


def _rebuild_override(op: str, variant: str, impl: str, target: str) -> Binding:
    return Binding(op, variant, impl, "override", resolve_target(target))


def _importable(kernel: Kernel, binding: Binding) -> str:
    """``"module:attribute"`` of ``kernel``; a PicklingError where that name does not lead back to it."""
    target = f"{kernel.__module__}:{getattr(kernel, '__qualname__', '')}"
    try:
        if resolve_target(target) is kernel:
            return target
    except (ImportError, AttributeError, ValueError):
        pass
    raise pickle.PicklingError(
        f"the override of {binding.op} ({binding.variant}) cannot be pickled: {kernel!r} is not a function at the top "
        "level of a module."
    )
