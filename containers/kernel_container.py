"""The dependency-injection container of one model instance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn, Self

import torch
from dependency_injector import containers, providers

from kernelkit.containers.bindings import Binding, Bindings, Need
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.resolution import Conditions, Refusal, early_problems, resolve, unused_problems
from kernelkit.errors import Problem, did_you_mean, listing, validation_error
from kernelkit.hardware import Hardware
from kernelkit.registry import KernelRegistry, default_registry
from kernelkit.spec import Kernel


class KernelContainer(containers.DynamicContainer):
    """Resolves an OpsConfig, against a registry and the hardware, into bound kernels.

    ``config``, ``registry`` and ``conditions`` are its dependencies; each (op, variant) that a model may need is a
    thread-safe singleton provider. A model takes what it needs with :meth:`bind` while it is built, and never sees the
    container again, so that overriding a kernel here changes models built from here afterwards and no other::

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

        Raises:
            ValidationError: for mistakes in ``ops``, and for named kernels that cannot run there.
        """
        catalogue = (registry if registry is not None else default_registry()).copy()
        config = OpsConfig.load(ops, registry=registry)
        conditions = Conditions(hardware or Hardware.detect(device), training, compiled, dtype_name(dtype))
        problems = list(early_problems(config, catalogue, conditions))
        if problems:
            raise config.locate(validation_error("KernelContainer", problems))
        container = cls()
        # A provider that is shared would keep every container alive that refers to it: each gets its own.
        container.config = providers.Object(config)
        container.registry = providers.Object(catalogue)
        container.conditions = providers.Object(conditions)
        for name, op in catalogue.ops.items():
            for variant in op.variants:
                provider = providers.ThreadSafeSingleton(
                    resolve, config=container.config, registry=container.registry
                )
                container.set_provider(_provider_name(name, variant), provider)
        return container

    @property
    def hardware(self) -> Hardware:
        """The device that kernels are resolved for."""
        return self.conditions().hardware

    def override(self, op: str, kernel: Kernel, variant: str | None = None) -> None:  # type: ignore[override]  # an op's kernel is what one overrides here
        """Bind ``kernel`` for ``op`` in models built from this container from now on.

        Args:
            op: name of the op.
            kernel: a callable with the signature of the op's protocol; it is used as it is, without any check.
            variant: the variant to replace; all of them unless given.

        Raises:
            KeyError: for an op or variant that the registry does not have.
        """
        variants = self.registry().op(op).variants
        if variant is not None and variant not in variants:
            raise KeyError(
                f"{op} has no variant {variant!r}.{did_you_mean(variant, variants)} It has: {listing(variants)}."
            )
        for name in variants if variant is None else (variant,):
            impl = getattr(kernel, "__name__", type(kernel).__name__)
            binding = Binding(op, name, impl, "override", kernel)
            getattr(self, _provider_name(op, name)).override(providers.Object(binding))

    def bind(self, needs: Iterable[Need], *, model: str, device: Any = None, dtype: Any = None) -> Bindings:
        """The kernels that ``model`` needs, each resolved once for this container.

        Args:
            needs: what the model asks for.
            model: its name, for errors.
            device: where it will live, if that is known better than when the container was made.
            dtype: its dtype, likewise.

        Raises:
            ValidationError: for a variant that a named implementation lacks, a kernel that cannot run or be loaded, and
                a named op that the model does not have.
        """
        needs = list(needs)
        conditions = self._conditions_at(device, dtype)
        bindings, problems = [], list(unused_problems(self.config(), needs, model))
        for need in needs:
            try:
                bindings.append(self._binding(need, conditions))
            except Refusal as refusal:
                problems.append(refusal.problem)
        if problems:
            raise self.config().locate(validation_error(model, problems))
        return Bindings(tuple(bindings))

    def _binding(self, need: Need, conditions: Conditions) -> Binding:
        provider = getattr(self, _provider_name(need.op, need.variant))
        if provider.overridden:
            return provider()
        binding = provider(need, conditions)
        # The provider may have served another model before, of other sizes or dtype.
        reason = conditions.problem(binding.spec, need)
        if reason is not None:
            message = f"{need.op}: {binding.impl} ({binding.why}) {reason}. Give this model a container of its own."
            raise Refusal(Problem((need.op,), "unavailable_kernel", message, binding.impl))
        return binding

    def _conditions_at(self, device: Any, dtype: Any) -> Conditions:
        known = self.conditions()
        if device is not None and torch.device(device).type not in (known.hardware.device_type, "meta"):
            known = replace(known, hardware=Hardware.detect(device))
        return replace(known, dtype=dtype_name(dtype) or known.dtype)

    def __reduce__(self) -> NoReturn:
        # A pickled container loads, and then hands out providers instead of kernels.
        raise TypeError("a KernelContainer does not pickle; pickle its OpsConfig, or the model that was built from it")


def as_container(kernels: Any, **settings: Any) -> KernelContainer:
    """``kernels`` itself if it is a container, else ``KernelContainer.from_config(kernels, **settings)``."""
    return kernels if isinstance(kernels, KernelContainer) else KernelContainer.from_config(kernels, **settings)


def dtype_name(dtype: Any) -> str | None:
    """``"bfloat16"`` for ``torch.bfloat16`` or itself; None for None."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _provider_name(op: str, variant: str) -> str:
    return f"{op}__{variant}"
