"""The dependency-injection container of one model instance."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NoReturn, Self

import torch
from dependency_injector import containers, providers

from kernelkit.containers.bindings import Binding, Bindings, Need
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.override_rules import OverrideRule, rules_in
from kernelkit.containers.resolution import (
    Conditions,
    Refusal,
    bypass_problem,
    early_problems,
    resolve,
    unregistered_problem,
    unused_problems,
    wish_for,
)
from kernelkit.errors import Problem, UnknownNameError, unknown, validation_error
from kernelkit.hardware import Hardware
from kernelkit.kernels.measurements import MeasuredGpu, shipped
from kernelkit.registry import KernelRegistry, default_registry
from kernelkit.spec import Kernel, dtype_name


class KernelContainer(containers.DynamicContainer):
    """Resolves an OpsConfig, against a registry and the hardware, into bound kernels.

    ``config``, ``registry`` and ``conditions`` are its dependencies; each (op, variant) that a model may need is a
    thread-safe singleton provider, and one more for each of the config's overrides. A model takes what it needs with
    :meth:`bind` while it is built, and never sees the container again, so that overriding a kernel here changes models
    built from here afterwards and no other::

        container = KernelContainer.from_config(OpsConfig(rms_norm="liger"), device="cuda")
        container.override("swiglu_mlp", my_function)
        model = build_model(config, kernels=container)
    """

    @classmethod
    def from_config(
        cls,
        ops: Any = None,
        *,
        registry: KernelRegistry | None = None,
        device: Any = None,
        hardware: Hardware | None = None,
        training: bool = True,
        compiled: bool = False,
        dtype: Any = None,
        measurements: Iterable[MeasuredGpu] | None = None,
    ) -> Self:
        """The container of one model.

        Args:
            ops: an OpsConfig, a mapping, the path of a YAML file, or None for the defaults.
            registry: the ops and kernels to choose from; a copy is taken. The default registry unless given.
            device: the torch device that the model will live on; the accelerator of this machine unless given.
            hardware: the same as a value, for a machine that is not this one. It has precedence over ``device``.
            training: whether gradients will be asked for.
            compiled: whether ``torch.compile`` will trace the model.
            dtype: the model's dtype, where it is known.
            measurements: which implementations were fastest where, for the presets ``fastest-*``; those that are
                installed with kernelkit unless given.

        Raises:
            ValidationError: for mistakes in ``ops``, and for named kernels that cannot run there.
            RuntimeError: for a device that this machine does not have.
            ValueError: for a dtype that torch does not have.
        """
        catalogue = (registry if registry is not None else default_registry()).copy()
        config = OpsConfig.load(ops, registry=catalogue)
        dtype = None if dtype is None else dtype_name(dtype)
        measured = shipped() if measurements is None else tuple(measurements)
        conditions = Conditions(hardware or Hardware.detect(device), training, compiled, dtype, measured)
        problems = list(early_problems(config, catalogue, conditions))
        if problems:
            raise config.locate(validation_error(cls.__name__, problems))
        container = cls()
        # A provider that is shared would keep every container alive that refers to it: each gets its own.
        container.config = providers.Object(config)
        container.registry = providers.Object(catalogue)
        container.conditions = providers.Object(conditions)
        rules = [*rules_in(config.overrides)]
        for op in catalogue.ops.values():
            for variant, rule in itertools.product(
                op.variants, [None, *(rule for rule in rules if rule.op == op.name)]
            ):
                provider = providers.ThreadSafeSingleton(
                    resolve, config=container.config, registry=container.registry, rule=rule
                )
                container.set_provider(container._provider_name(op.name, variant, rule), provider)
        return container

    @property
    def hardware(self) -> Hardware:
        """The device that kernels are resolved for."""
        conditions: Conditions = self.conditions()
        return conditions.hardware

    def override(self, op: str, kernel: Kernel, variant: str | None = None) -> None:  # type: ignore[override]  # an op's kernel is what one overrides here
        """Bind ``kernel`` for ``op`` in models built from this container from now on, in whatever module.

        Args:
            op: name of the op.
            kernel: a callable with the signature of the op's protocol; it is used as it is, without any check.
            variant: the variant to replace; all of them unless given.

        Raises:
            UnknownNameError: for an op or variant that the registry does not have.
            TypeError: for a kernel that cannot be called.
        """
        if not callable(kernel):
            raise TypeError(f"the override of {op} must be callable, and {kernel!r} is not")
        variants = self.registry().op(op).variants
        if variant is not None and variant not in variants:
            raise UnknownNameError(unknown("variant", variant, variants, of=op))
        rules = [rule for rule in rules_in(self.config().overrides) if rule.op == op]
        for name, rule in itertools.product(variants if variant is None else (variant,), [None, *rules]):
            self._provider(op, name, rule).override(providers.Object(kernel))

    def bind(
        self, needs: Iterable[Need], *, model: str, device: Any = None, dtype: Any = None, named_only: bool = False
    ) -> Bindings:
        """The kernels that ``model`` needs, each resolved once for this container.

        Args:
            needs: what the model asks for; of one kernel several times, in the largest of its sizes.
            model: its name, for errors.
            device: where it will live, if that is known better than when the container was made.
            dtype: its dtype, likewise.
            named_only: leave out what neither the config names nor an override replaces.

        Raises:
            ValidationError: for a variant that a named implementation lacks, a kernel that cannot run or be loaded, a
                named or overridden op that the model does not have, and a named one that a preset's fused kernel
                would pass by.
        """
        needs = merged_needs(needs)
        conditions = self._conditions_at(device, dtype)
        bindings: list[Binding] = []
        problems = list(unused_problems(self.config(), self._idle_overrides(needs), needs, model))
        for need in needs:
            if named_only and not self._is_named(need):
                continue
            try:
                bindings.append(self._binding(need, conditions))
            except Refusal as refusal:
                problems.append(refusal.problem)
        bypassed = (bypass_problem(binding, self.config(), self.registry()) for binding in bindings)
        problems += [problem for problem in bypassed if problem is not None]
        if problems:
            raise self.config().locate(validation_error(model, problems))
        return Bindings(bindings)

    def bind_rule(self, rule: OverrideRule, need: Need, *, device: Any = None, dtype: Any = None) -> Binding:
        """The kernel for ``need`` in the modules that ``rule`` is about.

        Raises:
            Refusal: where it cannot be had.
        """
        return self._binding(need, self._conditions_at(device, dtype), rule)

    def _is_named(self, need: Need) -> bool:
        """Whether an override or the config says which kernel serves ``need``; a default is nobody's word."""
        provider = self.providers.get(self._provider_name(need.op, need.variant))
        if provider is not None and _is_overridden(provider):
            return True
        if need.op not in self.registry().ops:
            return False
        wish = wish_for(need.op, need.variant, self.config(), self.registry(), self.conditions())
        return wish.why != "default"

    def _binding(self, need: Need, conditions: Conditions, rule: OverrideRule | None = None) -> Binding:
        problem = unregistered_problem(need, self.registry())
        if problem is not None:
            raise Refusal(problem)
        provider = self._provider(need.op, need.variant, rule)
        if _is_overridden(provider):
            return Binding.of_override(need.op, need.variant, provider())
        binding: Binding = provider(need, conditions)
        # The provider may have served another model before, of other sizes or dtype.
        reason = conditions.problem(binding.spec, need) if binding.spec else None
        if reason is not None:
            message = f"{need.op}: {binding.impl} ({binding.why}) {reason}. Give this model a container of its own."
            loc = wish_for(need.op, need.variant, self.config(), self.registry(), conditions, rule).loc
            raise Refusal(Problem(loc, "unavailable_kernel", message, binding.impl))
        return binding

    def _idle_overrides(self, needs: list[Need]) -> Iterator[str]:
        """Ops of which variants are overridden, but none that is needed."""
        needed = {(need.op, need.variant) for need in needs}
        for op in self.registry().ops.values():
            keys = [(op.name, variant) for variant in op.variants]
            overridden = {key for key in keys if _is_overridden(self._provider(*key))}
            if overridden and not overridden & needed:
                yield op.name

    def _conditions_at(self, device: Any, dtype: Any) -> Conditions:
        known: Conditions = self.conditions()
        if device is not None and torch.device(device).type not in (known.hardware.device_type, "meta"):
            known = replace(known, hardware=Hardware.detect(device))
        return known if dtype is None else replace(known, dtype=dtype_name(dtype))

    def _provider(self, op: str, variant: str, rule: OverrideRule | None = None) -> providers.Provider[Any]:
        return self.providers[self._provider_name(op, variant, rule)]

    def _provider_name(self, op: str, variant: str, rule: OverrideRule | None = None) -> str:
        # A pattern is no name: its place among the rules stands for it.
        index = "" if rule is None else f"__{[*self.config().overrides].index(rule.pattern)}"
        return f"{op}__{variant}{index}"

    def __repr__(self) -> str:
        return f"<KernelContainer of {self.config()!r} on {self.hardware}>"

    def __reduce__(self) -> NoReturn:
        # A pickled container loads, and then hands out providers instead of kernels.
        raise TypeError("a KernelContainer does not pickle; pickle its OpsConfig, or the model that was built from it")

    def __deepcopy__(self, memo: Any = None) -> NoReturn:
        raise TypeError("a KernelContainer is not copied; make another with from_config, from the same OpsConfig")

    __copy__ = __deepcopy__


def as_container(kernels: Any, **settings: Any) -> KernelContainer:
    """``kernels`` itself if it is a container, else ``KernelContainer.from_config(kernels, **settings)``."""
    return kernels if isinstance(kernels, KernelContainer) else KernelContainer.from_config(kernels, **settings)


def merged_needs(needs: Iterable[Need]) -> list[Need]:
    """One need for each (op, variant), of the largest sizes asked for."""
    sizes: dict[tuple[str, str], Counter[str]] = {}
    for need in needs:
        key = need.op, need.variant
        sizes[key] = sizes.get(key, Counter()) | Counter(need.sizes)
    return [Need(op, variant, largest) for (op, variant), largest in sizes.items()]


def _is_overridden(provider: providers.Provider[Any]) -> bool:
    return provider.last_overriding is not None
