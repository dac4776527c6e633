"""From a config or a checkpoint to a model with kernels of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from kernelkit.containers.bindings import Need
from kernelkit.containers.kernel_container import as_container
from kernelkit.errors import listing
from kernelkit.models.layers.causal_lm import CausalLM
from kernelkit.models.layers.pretrained import HUB_ARGUMENTS, KernelSource
from kernelkit.models.saved import SAVED
from kernelkit.spec import dtype_name, resolve_target

FAMILIES = {
    "llama": "kernelkit.models.llama:LlamaForCausalLM",
    "qwen2": "kernelkit.models.qwen2:Qwen2ForCausalLM",
    "qwen3": "kernelkit.models.qwen3:Qwen3ForCausalLM",
    "qwen3_moe": "kernelkit.models.qwen3_moe:Qwen3MoeForCausalLM",
}
"""Our class by HF's ``model_type``. A new family is one file and one line here."""


def build_model(
    config: PreTrainedConfig | str | Path,
    kernels: Any = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: Any = None,
    training: bool = True,
    compiled: bool = False,
    distilled: bool = False,
) -> CausalLM:
    """A causal language model with kernels of its own.

    Args:
        config: an HF config, which gives new weights; or the path of a checkpoint, which is loaded.
        kernels: an OpsConfig, a mapping, the path of a YAML file, a KernelContainer, or None for what stock
            transformers would use. For a checkpoint also ``"saved"``: those that it was saved with.
        dtype: of the weights; by default, and with ``"auto"``, the config's, else torch's default.
        device: where the weights are made; torch's default device unless given.
        training: whether gradients will be asked for. A container that is given knows it already.
        compiled: whether ``torch.compile`` will trace the model; likewise.
        distilled: whether a teacher will teach the model, which then has a ``distillation_loss`` as well.

    Raises:
        ValidationError: where the kernels cannot serve this model.
        TypeError: for anything but a config or a path, such as a model that is built already.
        ValueError: for a family that kernelkit does not have, a dtype that torch does not have, and ``"saved"`` where
            nothing was.
    """
    if not isinstance(config, (PreTrainedConfig, str, Path)):
        raise TypeError(_no_source(config))
    if not isinstance(config, PreTrainedConfig):
        settings = {"training": training, "compiled": compiled, "distilled": distilled}
        return AutoModelForCausalLM.from_pretrained(config, kernels=kernels, dtype=dtype, device_map=device, **settings)
    if isinstance(kernels, str) and kernels == SAVED:
        raise ValueError("kernels='saved' are those of a checkpoint: give its path instead of a config")
    family = family_of(config)
    dtype = None if dtype == "auto" else dtype
    dtype = getattr(torch, dtype_name(dtype or config.dtype or torch.get_default_dtype()))
    container = as_container(kernels, device=device, dtype=dtype, training=training, compiled=compiled)
    source = KernelSource(container, device, dtype, distilled)
    with torch.device(device if device is not None else torch.get_default_device()):
        # Made of a copy: transformers writes the dtype into the config that it is given.
        model = family._from_config(copy.deepcopy(config), dtype=dtype, kernels=source)
    source.verify(model)
    return model


class AutoModelForCausalLM:
    """Picks the family by the checkpoint's ``model_type``, as transformers' class of that name."""

    @staticmethod
    def from_pretrained(path: Any, *args: Any, kernels: Any = None, **kwargs: Any) -> CausalLM:
        """Load a checkpoint into a model with kernels of its own.

        Args:
            path: folder or hub name.
            kernels: as in :func:`build_model`.
            *args, **kwargs: as in ``transformers.AutoModelForCausalLM.from_pretrained``; further ``training``,
                ``compiled`` and ``distilled`` as in :func:`build_model`.

        Raises:
            ValidationError: where the kernels cannot serve this model.
            ValueError: for a family that kernelkit does not have, or transformers' own switches of kernels.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config = kwargs.get("config") or AutoConfig.from_pretrained(path, **hub)
        return family_of(config).from_pretrained(path, *args, kernels=kernels, **kwargs)


def family_of(config: PreTrainedConfig) -> type[CausalLM]:
    """Our class for an HF config.

    Raises:
        ValueError: for a family that kernelkit does not have; the message lists those that it has.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"kernelkit has no model of type {config.model_type!r}; it has: {listing(FAMILIES)}")
    return resolve_target(FAMILIES[config.model_type])  # type: ignore[return-value]  # a class, found by name


def kernel_needs(config: PreTrainedConfig | str | Path) -> tuple[str, list[Need]]:
    """Class name and kernels of the model that a config or checkpoint describes, without building it."""
    read = _read(config)
    family = family_of(read)
    return family.__name__, family.kernel_needs(read)


def build_skeleton(config: PreTrainedConfig | str | Path) -> CausalLM:
    """The model that a config or checkpoint describes, on the meta device and with default kernels."""
    return build_model(_read(config), device="meta")


def _no_source(given: Any) -> str:
    what = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
    hint = "; give a stock model kernels of its own with inject" if isinstance(given, PreTrainedModel) else ""
    return f"build_model takes an HF config or the path of a checkpoint, not {what}{hint}"


def _read(config: PreTrainedConfig | str | Path) -> PreTrainedConfig:
    return config if isinstance(config, PreTrainedConfig) else AutoConfig.from_pretrained(config)
