"""A model's kernels compared with eager before its first step: ``verify: bind``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kernelkit.containers.bindings import Binding
from kernelkit.containers.kernel_container import KernelContainer
from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.resolution import wish_for
from kernelkit.errors import Loc, Problem, validation_error
from kernelkit.frozen import FrozenDict
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.models.overrides import placements
from kernelkit.models.sizes import sizes_of
from kernelkit.ops.comparison import Call, deviations
from kernelkit.registry import KernelRegistry
from kernelkit.spec import Kernel, dtype_name


@dataclass(frozen=True)
class _Setting:
    """Where and how the kernels are called."""

    registry: KernelRegistry
    device: torch.device
    dtype: torch.dtype
    training: bool


def verify_kernels(model: nn.Module, container: KernelContainer) -> None:
    """Compare every kernel that ``model`` holds with eager, at the model's sizes, in its dtype and on its device.

    Each distinct kernel and size is called once, forward and, where the container is for training, backward, with 64
    tokens from a generator of its own: the global random state stays as it is. The measure is that of
    :mod:`kernelkit.ops.comparison`.

    Args:
        model: any module whose :class:`KernelModule` s are bound, with its weights in place.
        container: what it was bound from.

    Raises:
        ValidationError: for each kernel that is worse than eager or raises, one that has no eager to compare with, and
            a model without a device.
    """
    config: OpsConfig = container.config()
    parameter = next((each for each in model.parameters() if each.is_floating_point() and not each.is_meta), None)
    problems: list[Problem] = []
    if parameter is None:
        message = (
            "kernels are compared on the model's device, and this model is on meta: call verify_kernels when it has one"
        )
        problems.append(Problem(("verify",), "no_device", message, config.verify))
    else:
        training = container.conditions().training
        setting = _Setting(container.registry(), parameter.device, parameter.dtype, training)
        with _apart_from_the_world(setting.device):
            for (binding, sizes), loc in _distinct_kernels(model, container).items():
                reason = _difference(binding, sizes, setting)
                if reason is not None:
                    message = f"{binding.op}: {binding.impl} ({binding.why}) {reason}"
                    problems.append(Problem(loc, "kernel_mismatch", message, binding.impl))
    if problems:
        raise config.locate(validation_error(type(model).__name__, problems))


def _distinct_kernels(model: nn.Module, container: KernelContainer) -> dict[tuple[Binding, FrozenDict[str, int]], Loc]:
    """Each kernel and the sizes that it is called in, with the place of the choice that led to it."""
    config, registry = container.config(), container.registry()
    rules = {(each.path, each.rule.op): each.rule for each in placements(model, config)}
    hf_config: Any = getattr(model, "config", None)
    hf_config = hf_config.get_text_config() if hasattr(hf_config, "get_text_config") else hf_config
    found: dict[tuple[Binding, FrozenDict[str, int]], Loc] = {}
    for path, module in model.named_modules():
        for binding in module.bindings.values() if isinstance(module, KernelModule) else ():
            # What has neither a spec nor was put there by the user is no kernel of ours.
            if binding.spec is None and binding.why != "override":
                continue
            rule = rules.get((path, binding.op))
            wish = wish_for(binding.op, binding.variant, config, registry, container.conditions(), rule)
            found.setdefault((binding, sizes_of(module, binding.op, hf_config)), wish.loc)
    return found


def _difference(binding: Binding, sizes: FrozenDict[str, int], setting: _Setting) -> str | None:
    """How a kernel differs from eager, or why that cannot be told; None where it is as good."""
    op, references = setting.registry.op(binding.op), setting.registry.list(binding.op, binding.variant, "eager")
    if binding.spec is not None and binding.spec in references:
        return None
    if not references or (op.samples is None and op.sized_samples is None):
        return "cannot be compared: its op has no eager implementation, or no samples"
    kernel, eager = binding.kernel, references[0].build()
    if op.on_samples is not None:
        kernel, eager = op.on_samples(kernel, binding.traits), op.on_samples(eager, references[0].traits)
    for call in _calls(binding, sizes, setting):
        found = _first_deviation(kernel, eager, call, backward=setting.training)
        if found is not None:
            return f"is not as good as eager, called with {call.shapes()} in {dtype_name(setting.dtype)}: {found}"
    return None


def _calls(binding: Binding, sizes: FrozenDict[str, int], setting: _Setting) -> list[Call]:
    op = setting.registry.op(binding.op)
    generator = torch.Generator(setting.device).manual_seed(0)
    where = (setting.dtype, setting.device, generator)
    if op.sized_samples is not None and (sizes or op.samples is None):
        return Call.of_samples(op, op.sized_samples(binding.variant, sizes, *where))
    assert op.samples is not None
    return Call.of_samples(op, op.samples(binding.variant, *where))


def _first_deviation(kernel: Kernel, eager: Kernel, call: Call, *, backward: bool) -> str | None:
    try:
        found = next(deviations(kernel, eager, call, backward=backward), None)
    except Exception as error:  # whatever it raises, it cannot serve this model, and the others are to be compared too
        return f"raises {type(error).__name__}: {error}"
    return None if found is None else str(found)


@contextlib.contextmanager
def _apart_from_the_world(device: torch.device) -> Iterator[None]:
    """Gradients as in training, whatever the caller has switched off, and his random state as it was."""
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with (
        torch.random.fork_rng(devices, device_type=kind),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
