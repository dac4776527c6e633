"""Give a stock transformers model kernels of its own, and take them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from kernelkit.containers.bindings import Binding, Need
from kernelkit.containers.kernel_container import as_container
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.models.injection.checks import model_to_inject
from kernelkit.models.injection.module import InjectedModule, become, plain_class, stock_binding
from kernelkit.models.injection.places import places, stock_class
from kernelkit.models.overrides import apply_overrides
from kernelkit.models.saved import SAVED, load_saved
from kernelkit.models.verification import verify_kernels

ModelT = TypeVar("ModelT", bound=nn.Module)

LOSSES = {"cross_entropy_loss", "load_balancing_loss", "distillation_loss"}
"""Ops that a model has no place for without the head or the routers, or beside no teacher."""


def inject(model: ModelT, kernels: Any = None, *, training: bool = True, compiled: bool = False) -> ModelT:
    """Give an instance of a stock transformers model kernels of its own.

    Its parameters, hooks, state_dict and wrappers stay what they are, and no other model changes. An op that is not
    named stays with transformers, and so does a module whose type is not known; the report lists both. Kernels that
    were injected before are replaced.

    Args:
        model: the model; one that PEFT or ``torch.compile`` has wrapped is injected inside of its wrapper.
        kernels: an OpsConfig, a mapping, the path of a YAML file, a KernelContainer, or ``"saved"``: those that the
            checkpoint was saved with from which the model was loaded.
        training: whether gradients will be asked for. A container that is given knows it already.
        compiled: whether ``torch.compile`` will trace the model; likewise.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: for anything but a transformers model.
        ValueError: for a model without a family, on several devices, or patched by something else, and for ``"saved"``
            where nothing was.
        ValidationError: where the kernels cannot serve this model, and for an op that is named and has no place in it.
            The model is then as it was.
    """
    inner: Any = model_to_inject(model)
    blocks: dict[Any, Any] = {module: (block, block.kernel_needs(module)) for module, block in places(inner)}
    device = None if inner.device.type == "meta" else inner.device
    needs = [need for _, of_module in blocks.values() for need in of_module]
    if isinstance(kernels, str) and kernels == SAVED:
        kernels = _saved(inner, device, needs)
    container = as_container(kernels, device=device, dtype=inner.dtype, training=training, compiled=compiled)
    name = stock_class(inner).__name__
    bindings = container.bind(needs, model=name, device=device, dtype=inner.dtype, named_only=True)
    before = _snapshot(inner)
    eject(inner)
    try:
        for module, (block, of_module) in blocks.items():
            become(module, block)
            for need in of_module:
                module.rebind(bindings.get((need.op, need.variant)) or stock_binding(need.op, need.variant))
        apply_overrides(inner, container, needs, device=device, dtype=inner.dtype)
        if container.config().verify is not None:
            verify_kernels(inner, container)
    except Exception:  # whatever it is, it must not leave a model half injected
        _restore(inner, before)
        raise
    return model


def eject(model: ModelT) -> ModelT:
    """Take the injected kernels out again: the model is what it was, and one without any stays as it is.

    Raises:
        TypeError: for anything but a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"eject takes a model, not a {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, InjectedModule):
            module.release()
    return model


@contextmanager
def injected(model: ModelT, kernels: Any = None, *, training: bool = True, compiled: bool = False) -> Iterator[ModelT]:
    """Kernels for the length of a ``with`` block; afterwards the model has those that it had before, or none.

    Arguments and errors are those of :func:`inject`.
    """
    before = _snapshot(model)
    inject(model, kernels, training=training, compiled=compiled)
    try:
        yield model
    finally:
        _restore(model, before)


def _saved(model: Any, device: Any, needs: list[Need]) -> OpsConfig:
    if not model.name_or_path:
        raise ValueError("kernels='saved' are those of a checkpoint, and this model was not loaded from one: name them")
    revision = getattr(model.config, "_commit_hash", None)
    # The checkpoint of a whole model names its losses; of a stock one that is loaded from it, not each computes them.
    omit = LOSSES - {need.op for need in needs}
    return load_saved(model.name_or_path, device=device, omit=omit, revision=revision)


Snapshot = dict[InjectedModule, tuple[type[nn.Module], list[Binding]]]
"""The block and the bindings of each module into which kernels are injected."""


def _snapshot(model: Any) -> Snapshot:
    modules = model.modules() if isinstance(model, nn.Module) else ()  # what else it may be, inject refuses
    return {
        module: (plain_class(module), list(module.bindings.values()))
        for module in modules
        if isinstance(module, InjectedModule)
    }


def _restore(model: nn.Module, before: Snapshot) -> None:
    eject(model)
    for module, (kind, bindings) in before.items():
        become(module, kind)
        for binding in bindings:
            module.rebind(binding)
