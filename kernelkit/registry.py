"""Where ops and kernel specs are kept: built-in ones, those of plug-ins, and the user's own."""

from __future__ import annotations

import functools
import keyword
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kernelkit import discovery
from kernelkit.caller import caller_location
from kernelkit.errors import KernelRegistrationError, UnknownNameError, problems_in, shown, unknown
from kernelkit.frozen import FrozenDict
from kernelkit.spec import Kernel, KernelSpec, Op

RESERVED = frozenset(
    {"preset", "allow_unused", "overrides", "verify", "ops"}
    | {"load", "from_yaml", "from_file", "to_yaml", "choices", "locate", "place"}
)
"""Names that no op can have: keys of a config, now or in a planned version, and what else an OpsConfig has."""

F = TypeVar("F", bound=Kernel)
Specs = list[KernelSpec]


class KernelRegistry:
    """Ops by name, and specs by (op, variant, name). Thread-safe.

    An empty registry knows no op. To add to what kernelkit ships without touching the default registry, start from
    ``default_registry().copy()``.
    """

    def __init__(self) -> None:
        self._ops: dict[str, Op] = {}
        self._specs: dict[tuple[str, str, str], KernelSpec] = {}
        self._broken_plugins: dict[str, str] = {}
        self._lock = threading.RLock()

    def register_op(self, op: Op, *, replace: bool = False) -> Op:
        """Add an op.

        Raises:
            KernelRegistrationError: for a name that cannot be an op's or is taken, unless ``replace=True``; and where
                kernels that are registered do not fit the op that takes the old one's place.
        """
        _check_op(op)
        with self._lock:
            if op.name in self._ops and not replace:
                raise _twice(f"op {op.name!r}", self._ops[op.name].location, op.location)
            for spec in self.list(op.name):
                self._fitted(spec, op)
            self._ops[op.name] = op
        return op

    def register(self, spec: KernelSpec, *, replace: bool = False) -> KernelSpec:
        """Add a kernel.

        Returns:
            The spec as it is kept: with the defaults of the op's traits filled in.

        Raises:
            KernelRegistrationError: for an op or variant that is not registered, traits that the op's contract does not
                accept, or a (op, variant, name) that is taken unless ``replace=True``.
        """
        with self._lock:
            if spec.op not in self._ops:
                raise _faulty(spec, unknown("op", spec.op, self._ops))
            spec = self._fitted(spec, self._ops[spec.op])
            if spec.key in self._specs and not replace:
                raise _twice(_path(spec), self._specs[spec.key].location, spec.location)
            for other in self.list(spec.op, name=spec.name):
                if other.variant != spec.variant and other.options is not spec.options:
                    theirs = f"{_path(other)} at {other.location}"
                    raise _faulty(spec, f"its options model differs from that of {theirs}; variants share one")
            self._specs[spec.key] = spec
        return spec

    def _fitted(self, spec: KernelSpec, op: Op) -> KernelSpec:
        if spec.variant not in op.variants:
            raise _faulty(spec, unknown("variant", spec.variant, op.variants, of=op.name))
        if op.traits is None:
            if spec.traits:
                raise _faulty(spec, f"op {op.name!r} asks for no traits")
            return spec
        try:
            traits = op.traits.model_validate(dict(spec.traits))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, each.loc))}: {each.message}" for each in problems_in(error))
            raise _faulty(spec, f"traits: {faults}") from None
        return spec.model_copy(update={"traits": FrozenDict(traits.model_dump())})

    @property
    def ops(self) -> dict[str, Op]:
        """The ops by name, in order of registration."""
        with self._lock:
            return dict(self._ops)

    @property
    def broken_plugins(self) -> dict[str, str]:
        """Plug-ins that failed to load, by entry point, each with the reason."""
        with self._lock:
            return dict(self._broken_plugins)

    def op(self, name: str) -> Op:
        """The op of that name.

        Raises:
            UnknownNameError: with the nearest and all known names.
        """
        try:
            return self._ops[name]
        except KeyError:
            raise UnknownNameError(unknown("op", name, self.ops)) from None

    def get(self, op: str, variant: str, name: str) -> KernelSpec:
        """The spec of one kernel.

        Raises:
            UnknownNameError: with the ops, the op's variants, or the implementations that this variant has.
        """
        variants = self.op(op).variants
        if variant not in variants:
            raise UnknownNameError(unknown("variant", variant, variants, of=op))
        try:
            return self._specs[op, variant, name]
        except KeyError:
            valid = self.impls(op, variant)
            raise UnknownNameError(unknown("implementation", name, valid, of=f"{op} ({variant})")) from None

    def impls(self, op: str, variant: str | None = None) -> list[str]:
        """Names of the implementations of an op, or of one variant of it, each once."""
        return [*dict.fromkeys(spec.name for spec in self.list(op, variant))]

    def list(self, op: str | None = None, variant: str | None = None, name: str | None = None) -> Specs:
        """The specs that match every argument given, in order of registration."""
        wanted = (op, variant, name)
        with self._lock:
            specs = [*self._specs.values()]
        return [s for s in specs if all(want in (None, have) for want, have in zip(wanted, s.key, strict=True))]

    def copy(self) -> KernelRegistry:
        """A registry with the same entries, independent from now on."""
        twin = KernelRegistry()
        with self._lock:
            twin._take_over(self)
        return twin

    def without_factories(self) -> KernelRegistry:
        """A copy whose kernels can be chosen and not called: those of another machine may not import on this one."""
        twin = self.copy()
        for spec in twin.list():
            twin.register(spec.model_copy(update={"factory": _chosen_elsewhere}), replace=True)
        return twin

    def _take_over(self, other: KernelRegistry) -> None:
        self._ops, self._specs = dict(other._ops), dict(other._specs)
        self._broken_plugins = dict(other._broken_plugins)

    def attempt(self, name: str, fill: Callable[[KernelRegistry], Any]) -> None:
        """Let the plug-in ``name`` register with ``fill``. If that fails, nothing of it stays but the reason.

        The reason is kept in :attr:`broken_plugins`.
        """
        with self._lock:
            before = self.copy()
            try:
                fill(self)
            except (Exception, SystemExit) as error:  # whatever a stranger's import raises, all others must go on
                self._take_over(before)
                self._broken_plugins[name] = f"{type(error).__name__}: {error}"

    def __repr__(self) -> str:
        return f"<KernelRegistry: {len(self._ops)} ops, {len(self._specs)} kernels>"


_default: list[KernelRegistry] = []
_filling = threading.RLock()


def default_registry() -> KernelRegistry:
    """The registry that is used where none is given: built-ins, plug-ins, and what ``@register_kernel`` added."""
    with _filling:
        if not _default:
            registry = KernelRegistry()
            for op in discovery.builtin_ops():
                registry.register_op(op)
            for name in registry.ops:
                for spec in discovery.builtin_specs(name):
                    registry.register(spec)
            # Before the plug-ins: they may use @register_kernel while they are imported, which comes back here.
            _default.append(registry)
            for plugin, fill in discovery.plugins():
                registry.attempt(plugin, fill)
        return _default[0]


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
        **fields: further fields of the spec. With ``options``, the decorated function takes an instance of them and
            returns the kernel.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        TypeError: for a kernel that cannot be called.
    """
    fields.setdefault("location", caller_location(__name__))

    def decorate(kernel: F) -> F:
        if not callable(kernel):
            raise TypeError(f"{op}.{variant}.{name} must be callable, and {shown(kernel)} is not")
        # Held itself and not by name: what the name leads to once the module is imported may be something else.
        factory = kernel if fields.get("options") is not None else functools.partial(_itself, kernel)
        spec = KernelSpec(op=op, variant=variant, name=name, factory=factory, **fields)
        (registry if registry is not None else default_registry()).register(spec, replace=replace)
        return kernel

    return decorate


def _chosen_elsewhere(*_: Any) -> Callable[..., Any]:
    def kernel(*_: Any, **__: Any) -> Any:
        raise RuntimeError("this kernel was chosen for another machine, and not imported")

    return kernel


def _itself(kernel: F) -> F:
    return kernel


def _check_op(op: Op) -> None:
    taken = op.name in RESERVED or hasattr(BaseModel, op.name) or op.name.endswith("_implementation")
    if taken or not op.name.isidentifier() or keyword.iskeyword(op.name) or "__" in op.name or op.name[0] == "_":
        raise KernelRegistrationError(
            f"{op.name!r} at {op.location} cannot name an op: it is reserved, or not a plain identifier"
        )
    if not op.variants or not op.variants.keys() >= op.variant_defaults.keys():
        raise KernelRegistrationError(
            f"op {op.name!r} at {op.location} needs at least one variant, and variant_defaults for those alone"
        )


def _path(spec: KernelSpec) -> str:
    return f"{spec.op}.{spec.variant}.{spec.name}"


def _faulty(spec: KernelSpec, reason: str) -> KernelRegistrationError:
    return KernelRegistrationError(f"{_path(spec)} at {spec.location}: {reason}")


def _twice(what: str, first: str, second: str) -> KernelRegistrationError:
    return KernelRegistrationError(
        f"{what} is registered twice: at {first} and at {second}. To take its place on purpose, pass replace=True."
    )
