"""Where ops and kernel specs are kept: built-in ones, those of plug-ins, and the user's own."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, TypeVar

from kernelkit.errors import KernelRegistrationError, did_you_mean, listing
from kernelkit.spec import Kernel, KernelSpec, Op, caller_location

ENTRY_POINTS = "kernelkit.kernels"
"""Entry-point group of plug-ins. Each names a callable that takes the registry and registers into it."""

RESERVED = frozenset({"preset", "allow_unused", "overrides", "verify", "ops"})
"""Keys of a config that are not ops, now or in a planned version."""

F = TypeVar("F", bound=Kernel)


class KernelRegistry:
    """Ops by name, and specs by (op, variant, name). Thread-safe.

    An empty registry knows no op. To add to what kernelkit ships without touching the default registry, start from
    ``default_registry().copy()``.
    """

    def __init__(self) -> None:
        self._ops: dict[str, tuple[Op, str]] = {}
        self._specs: dict[tuple[str, str, str], KernelSpec] = {}
        self._broken_plugins: dict[str, str] = {}
        self._lock = threading.RLock()

    # --- writing ---------------------------------------------------------------------------------------------------

    def register_op(self, op: Op, *, replace: bool = False) -> Op:
        """Add an op.

        Raises:
            KernelRegistrationError: for a reserved name, or a name that is taken unless ``replace=True``.
        """
        location = caller_location()
        with self._lock:
            if op.name in RESERVED or not op.name.isidentifier():
                raise KernelRegistrationError(f"{op.name!r} cannot name an op: it is reserved or not an identifier")
            if op.name in self._ops and not replace:
                raise KernelRegistrationError(
                    f"op {op.name!r} is registered twice: at {self._ops[op.name][1]} and at {location}. "
                    "To take its place on purpose, pass replace=True."
                )
            self._ops[op.name] = (op, location)
        return op

    def register(self, spec: KernelSpec, *, replace: bool = False) -> KernelSpec:
        """Add a kernel.

        Raises:
            KernelRegistrationError: for an op or variant that is not registered, traits that the op's contract does not
                accept, or a (op, variant, name) that is taken unless ``replace=True``.
        """
        with self._lock:
            self._check(spec)
            known = self._specs.get(spec.key)
            if known is not None and not replace:
                raise KernelRegistrationError(
                    f"{_path(spec)} is registered twice: at {known.location} and at {spec.location}. "
                    "To take its place on purpose, pass replace=True."
                )
            self._specs[spec.key] = spec
        return spec

    def _check(self, spec: KernelSpec) -> None:
        if spec.op not in self._ops:
            raise KernelRegistrationError(
                f"{_path(spec)} at {spec.location}: unknown op {spec.op!r}.{did_you_mean(spec.op, self._ops)} "
                f"Known ops: {listing(self._ops)}."
            )
        op = self.op(spec.op)
        if spec.variant not in op.variants:
            raise KernelRegistrationError(
                f"{_path(spec)} at {spec.location}: op {op.name!r} has no variant {spec.variant!r}."
                f"{did_you_mean(spec.variant, op.variants)} Its variants: {listing(op.variants)}."
            )
        if op.traits is not None:
            try:
                op.traits.model_validate(dict(spec.traits))
            except ValueError as error:
                raise KernelRegistrationError(f"{_path(spec)} at {spec.location}: traits: {error}") from None
        siblings = [other for other in self.list(spec.op, name=spec.name) if other.variant != spec.variant]
        if any(other.options is not spec.options for other in siblings):
            raise KernelRegistrationError(
                f"{_path(spec)} at {spec.location}: its options model differs from that of {_path(siblings[0])} at "
                f"{siblings[0].location}. One impl has one options model for all variants of an op."
            )

    # --- reading ---------------------------------------------------------------------------------------------------

    @property
    def ops(self) -> dict[str, Op]:
        """The ops by name, in order of registration."""
        with self._lock:
            return {name: op for name, (op, _) in self._ops.items()}

    @property
    def broken_plugins(self) -> dict[str, str]:
        """Plug-ins that failed to load, by entry point, each with the reason."""
        return dict(self._broken_plugins)

    def op(self, name: str) -> Op:
        """The op of that name.

        Raises:
            KeyError: with the nearest and all known names.
        """
        try:
            return self._ops[name][0]
        except KeyError:
            raise KeyError(
                f"unknown op {name!r}.{did_you_mean(name, self._ops)} Known ops: {listing(self._ops)}."
            ) from None

    def get(self, op: str, variant: str, name: str) -> KernelSpec:
        """The spec of one kernel.

        Raises:
            KeyError: with the impls that this variant has.
        """
        spec = self._specs.get((op, variant, name))
        if spec is None:
            impls = [known.name for known in self.list(op, variant)]
            raise KeyError(
                f"{op} ({variant}) has no implementation {name!r}.{did_you_mean(name, impls)} It has: {listing(impls)}."
            )
        return spec

    def list(self, op: str | None = None, variant: str | None = None, name: str | None = None) -> list[KernelSpec]:
        """The specs that match every argument given, in order of registration."""
        with self._lock:
            wanted = (op, variant, name)
            return [
                spec
                for key, spec in self._specs.items()
                if all(want in (None, part) for want, part in zip(wanted, key, strict=True))
            ]

    def impls(self, op: str, variant: str | None = None) -> list[str]:
        """Names of the implementations of an op, or of one variant of it, each once."""
        return list(dict.fromkeys(spec.name for spec in self.list(op, variant)))

    def copy(self) -> KernelRegistry:
        """A registry with the same entries, independent from now on."""
        twin = KernelRegistry()
        with self._lock:
            twin._ops, twin._specs = dict(self._ops), dict(self._specs)
            twin._broken_plugins = dict(self._broken_plugins)
        return twin

    def __repr__(self) -> str:
        return f"<KernelRegistry: {len(self._ops)} ops, {len(self._specs)} kernels>"

    # --- filling ---------------------------------------------------------------------------------------------------

    def load_builtins(self) -> None:
        """Add kernelkit's own ops and kernels, found by looking through its folders."""
        for module in _modules("kernelkit.ops"):
            if hasattr(module, "OP"):
                self.register_op(module.OP)
        for op in self.ops:
            for module in _modules(f"kernelkit.kernels.{op}"):
                for spec in module.SPECS:
                    self.register(spec)

    def load_plugins(self) -> None:
        """Call every plug-in's entry point. One that fails is noted with its reason, and adds nothing."""
        for entry in metadata.entry_points(group=ENTRY_POINTS):
            draft = self.copy()
            try:
                entry.load()(draft)
            except Exception as error:  # whatever a stranger's import raises, the other kernels must keep working
                self._broken_plugins[f"{entry.name} ({entry.value})"] = f"{type(error).__name__}: {error}"
            else:
                self._ops, self._specs = draft._ops, draft._specs


@functools.cache
def _default_registry() -> KernelRegistry:
    registry = KernelRegistry()
    registry.load_builtins()
    registry.load_plugins()
    return registry


_filling = threading.Lock()


def default_registry() -> KernelRegistry:
    """The registry that is used where none is given: built-ins, plug-ins, and what ``@register_kernel`` added."""
    with _filling:
        return _default_registry()


def register_kernel(
    op: str,
    name: str,
    *,
    variant: str = "standard",
    registry: KernelRegistry | None = None,
    replace: bool = False,
    **fields: Any,
) -> Callable[[F], F]:
    """Register the decorated function as a kernel, in the default registry unless another is given.

    Args:
        op, name, variant: as in :class:`KernelSpec`.
        registry: where to register it.
        replace: take the place of a kernel of the same op, variant and name.
        **fields: further fields of the spec.

    Returns:
        A decorator that returns the function unchanged.
    """

    def decorate(kernel: F) -> F:
        code = kernel.__code__  # type: ignore[attr-defined]  # a decorated function has code
        fields.setdefault("location", f"{code.co_filename}:{code.co_firstlineno}")
        # A name that can be imported lets bindings pickle; a closure is held as it is.
        importable = "<" not in kernel.__qualname__ and kernel.__module__ != "__main__"
        factory = f"{kernel.__module__}:{kernel.__qualname__}" if importable else lambda: kernel
        spec = KernelSpec(op=op, variant=variant, name=name, factory=factory, **fields)
        (registry if registry is not None else default_registry()).register(spec, replace=replace)
        return kernel

    return decorate


def _modules(package: str) -> Iterator[Any]:
    """The modules of a package but its jit bodies (``x_kernels``), which need triton to be imported."""
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not found.name.endswith("_kernels"):
            yield importlib.import_module(f"{package}.{found.name}")


def _path(spec: KernelSpec) -> str:
    return f"{spec.op}.{spec.variant}.{spec.name}"
