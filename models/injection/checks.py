"""Which models kernels can be injected into."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kernelkit.errors import listing
from kernelkit.models.injection.places import FAMILIES, places, stand_in, stock_class


def model_to_inject(model: Any) -> PreTrainedModel:
    """The stock model that ``model`` is, or that PEFT or ``torch.compile`` has wrapped.

    Raises:
        TypeError: for anything else.
        ValueError: for a model without a family, on several devices, or patched by something else.
    """
    unwrapped: Any = getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model
    unwrapped = unwrapped.get_base_model() if hasattr(type(unwrapped), "get_base_model") else unwrapped
    if isinstance(unwrapped, type):
        raise TypeError(f"inject takes an instance, not the class {unwrapped.__name__}")
    if not isinstance(unwrapped, PreTrainedModel):
        hint = "; pass its .module" if hasattr(unwrapped, "module") else ""
        raise TypeError(f"inject takes a transformers PreTrainedModel, not a {type(unwrapped).__name__}{hint}")
    problem = next(_problems(unwrapped), None)
    if problem is not None:
        raise ValueError(f"{type(unwrapped).__name__} cannot be injected: {problem}")
    return unwrapped


def _problems(model: PreTrainedModel) -> Iterator[str]:
    kind = stock_class(model)
    if kind.__module__.startswith("kernelkit."):
        yield "it was built with kernels of its own; build it again with others"
    patched = _patched_names(kind)
    if patched:
        yield (
            f"{kind.__module__} was patched by Liger ({listing(patched)}), which changes every model of the process. "
            "Leave apply_liger_kernel_to_* out, and name liger in the config"
        )
    if stand_in(kind) is None:
        yield (
            f"its class is not among those known. Known are the decoder, ForCausalLM and ForSequenceClassification of "
            f"{listing(FAMILIES)}. Of a model that is built around one of these, inject that"
        )
    if getattr(model, "use_kernels", False):
        yield "transformers has put hub kernels into it (use_kernels=True), some of which other models share"
    for module, _ in places(model):
        if "forward" in vars(module):
            yield f"the forward of its {type(module).__name__} is replaced by {_origin(vars(module)['forward'])}"
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        yield f"it is spread over {listing(sorted(devices))}, and kernels are resolved for one device"


def _patched_names(kind: type[nn.Module]) -> list[str]:
    """What of the HF module of ``kind`` is Liger's."""
    module = sys.modules[kind.__module__]
    if not kind.__module__.startswith("transformers."):
        return []
    patched = [name for name, value in vars(module).items() if _is_ligers(value)]
    return patched + [name for name, value in vars(module).items() if _is_ligers(getattr(value, "forward", None))]


def _is_ligers(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("liger_kernel")


def _origin(forward: Any) -> str:
    """Who put a ``forward`` on an instance."""
    if _is_ligers(forward):
        return "Liger. Leave apply_liger_kernel_to_* out, and name liger in the config"
    return (
        f"{getattr(forward, '__module__', None) or type(forward).__module__}, and an injected one would not be called"
    )
