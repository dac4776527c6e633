"""A transformers ``PreTrainedModel`` that is built with kernels of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from kernelkit.caller import warn_user
from kernelkit.containers.bindings import Bindings, Need
from kernelkit.containers.kernel_container import KernelContainer, as_container
from kernelkit.errors import UnverifiedWarning
from kernelkit.models.layers.attention import Attention, attention_variant
from kernelkit.models.layers.moe import Experts, TopKRouter
from kernelkit.models.overrides import apply_overrides
from kernelkit.models.saved import SAVED, load_saved, save_kernels
from kernelkit.models.verification import verify_kernels

logger = logging.get_logger(__name__)

GLOBAL_SWITCHES = ("attn_implementation", "experts_implementation", "use_kernels", "kernel_config")
"""Arguments with which transformers chooses kernels; here ``kernels`` does."""

HUB_ARGUMENTS = ("cache_dir", "revision", "subfolder", "token", "local_files_only")
"""Arguments of ``from_pretrained`` that say where a file of a checkpoint is."""

DISTILLATION = ("distillation_loss", "standard")
"""The kernel that a model needs only if a teacher will teach it."""


@dataclass(frozen=True)
class KernelSource:
    """A container, with what is known of the model that will be built from it.

    transformers copies the arguments on their way to a model's constructor; a copy of this is itself.

    Attributes:
        container: the kernels.
        device, dtype: of the model, where they are known.
        distilled: whether a teacher will teach it.
        whole: whether it is complete once it is constructed, and then verified. Otherwise its maker calls ``verify``.
    """

    container: KernelContainer
    device: Any = None
    dtype: Any = None
    distilled: bool = False
    whole: bool = False

    def bind(self, needs: list[Need], model: str) -> Bindings:
        """The kernels for ``needs`` of the class named ``model``."""
        needs = [*needs, Need(*DISTILLATION)] if self.distilled else needs
        return self.container.bind(needs, model=model, device=self.device, dtype=self.dtype)

    def apply_overrides(self, model: KernelPreTrainedModel) -> None:
        """Rebind the modules of ``model`` that the config names by their path."""
        needs = model.kernel_needs(model.config)
        apply_overrides(model, self.container, needs, device=self.device, dtype=self.dtype)

    def verify(self, model: KernelPreTrainedModel) -> None:
        """Compare the kernels of ``model``, whose weights are in place, if the config asks for it.

        On the meta device nothing can be compared: that is a warning, since whoever builds there loads later.
        """
        if self.container.config().verify is None:
            return
        if all(parameter.is_meta for parameter in model.parameters()):
            place = self.container.config().place("verify")
            message = "verify: bind was left out on the meta device; call verify_kernels when the weights are in place"
            warn_user(place + message, UnverifiedWarning)
        else:
            verify_kernels(model, self.container)

    def __deepcopy__(self, memo: dict[int, Any]) -> KernelSource:
        return self


class KernelPreTrainedModel(PreTrainedModel):
    """Base of the models: binds the kernels, owns its config, and loads and saves as transformers does.

    Args:
        config: HF config. The model keeps a copy, so that two models never share one.
        kernels: an OpsConfig, a mapping, the path of a YAML file, a KernelContainer, or None for what stock
            transformers would use. Bindings come from an enclosing model.

    Raises:
        ValidationError: where the kernels cannot serve this model.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True

    def __init__(self, config: PreTrainedConfig, kernels: Any = None) -> None:
        source = None
        if not isinstance(kernels, Bindings):
            config = copy.deepcopy(config)
            source = kernels if isinstance(kernels, KernelSource) else KernelSource(as_container(kernels), whole=True)
            kernels = source.bind(self.kernel_needs(config), type(self).__name__)
            # A stock model may have left its own choices in the config that it was built from.
            config._experts_implementation = None
            config._attn_implementation = _attention_impl(kernels)
        super().__init__(config)
        self.kernels: Bindings = kernels
        # Until the modules are there, and no longer: a container is no part of a model.
        self._source = source

    def post_init(self) -> None:
        """As in transformers, and the overrides of the outermost model: its modules are bound by now."""
        super().post_init()
        source, self._source = self._source, None
        if source is not None:
            source.apply_overrides(self)
            if source.whole:
                source.verify(self)

    @classmethod
    def kernel_needs(cls, config: PreTrainedConfig) -> list[Need]:
        """The kernels that a model of this class with ``config`` asks for."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        path: Any,
        *args: Any,
        kernels: Any = None,
        training: bool = True,
        compiled: bool = False,
        distilled: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint, as ``PreTrainedModel.from_pretrained``, into a model with its own kernels.

        Args:
            path: folder or hub name.
            kernels: as in the constructor; or ``"saved"``, the kernels that the checkpoint was saved with.
            training, compiled: as in :meth:`KernelContainer.from_config`; a container that is given knows them already.
            distilled: whether a teacher will teach the model, as in :func:`kernelkit.build_model`.
            *args, **kwargs: as in transformers.

        Raises:
            ValueError: for transformers' own switches of kernels, and a checkpoint without saved ones.
            ValidationError: where the kernels cannot serve this model.
        """
        given = [name for name in GLOBAL_SWITCHES if kwargs.get(name)]
        if given:
            raise ValueError(f"{given[0]} is not taken here: say which kernels to use with kernels=OpsConfig(...)")
        device, dtype = _single_device(kwargs.get("device_map")), _known_dtype(kwargs)
        if isinstance(kernels, str) and kernels == SAVED:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            kernels = load_saved(path, device=device, omit=() if distilled else DISTILLATION[:1], **hub)
        container = as_container(kernels, device=device, dtype=dtype, training=training, compiled=compiled)
        source = KernelSource(container, device, dtype, distilled)
        loaded = super().from_pretrained(path, *args, kernels=source, **kwargs)
        source.verify(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, and the kernels beside the weights, for ``kernels="saved"``."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            save_kernels(self, save_directory)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        save_kernels(self, working_dir)  # transformers uploads before its save_pretrained returns
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Experts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
        elif isinstance(module, TopKRouter):
            init.normal_(module.weight, mean=0.0, std=std)

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, for transformers' conversions of checkpoints (stacked experts): parameters have the same names."""
        return False

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Bind another attention kernel in every layer.

        Raises:
            ValidationError: for an implementation that is unknown or cannot serve this model.
        """
        impl = attn_implementation.get("") if isinstance(attn_implementation, dict) else attn_implementation
        container = KernelContainer.from_config({"attention": impl}, device=self.device, dtype=self.dtype)
        needs = [need for need in self.kernel_needs(self.config) if need.op == "attention"]
        kernels = container.bind(needs, model=type(self).__name__)
        for module in self.modules():
            if isinstance(module, Attention):
                module.bind(kernels, "attention", attention_variant(module.sliding_window))
        self.config._attn_implementation = _attention_impl(kernels)
        logger.info("%s: attention is now %s", type(self).__name__, self.config._attn_implementation)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *_: Any, **__: Any) -> str | None:
        # The container has checked it; transformers would look it up in its global table.
        return attn_implementation

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None, **_: Any) -> Tensor | None:
        """Hand the padding mask on: each attention kernel's mask is built in ``forward``."""
        return attention_mask


def _attention_impl(kernels: Bindings) -> str:
    return next(binding.impl for (op, _), binding in kernels.items() if op == "attention")


def _single_device(device_map: Any) -> Any:
    if isinstance(device_map, dict):
        return next(iter(device_map.values())) if len(set(device_map.values())) == 1 else None
    return None if device_map in ("auto", "balanced", "balanced_low_0", "sequential") else device_map


def _known_dtype(kwargs: dict[str, Any]) -> Any:
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    return None if dtype == "auto" else dtype
