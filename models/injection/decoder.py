"""The models of transformers while kernels are injected: what concerns more than one layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache
from transformers.masking_utils import create_masks_for_generate

from kernelkit.containers.bindings import Need
from kernelkit.containers.kernel_container import KernelContainer
from kernelkit.models.injection.attention import MASKS, Attention
from kernelkit.models.injection.module import InjectedModule
from kernelkit.models.layers.attention_masks import attention_masks
from kernelkit.models.saved import save_kernels


class Model(InjectedModule):
    """Any ``PreTrainedModel`` of a family, such as ``LlamaForSequenceClassification``."""

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """Nothing of its own."""
        return []

    @classmethod
    def is_custom_code(cls) -> bool:
        """As of the HF class, for transformers' conversions of checkpoints."""
        return cls.stock.is_custom_code()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers reads the source of the file that the class is in.
        return cls.stock._can_set_attn_implementation()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return cls.stock._can_set_experts_implementation()

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, and the kernels beside the weights, for ``build_model(..., kernels="saved")``."""
        self.stock.save_pretrained(self, save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            save_kernels(self, save_directory)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        save_kernels(self, working_dir)  # transformers uploads before its save_pretrained returns
        return self.stock._upload_modified_files(self, working_dir, *args, **kwargs)

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Bind another attention kernel in each layer that has one; as in transformers where it was left stock.

        Raises:
            ValidationError: for an implementation that is unknown or cannot serve this model.
        """
        bound = [module for module in self.modules() if isinstance(module, Attention) and module.attention is not None]
        if not bound:
            return self.stock.set_attn_implementation(self, attn_implementation, allow_all_kernels)
        impl = attn_implementation.get("") if isinstance(attn_implementation, dict) else attn_implementation
        container = KernelContainer.from_config({"attention": impl}, device=self.device, dtype=self.dtype)
        needs = {module: need for module in bound for need in module.kernel_needs(module) if need.op == "attention"}
        kernels = container.bind(needs.values(), model=type(self).__name__)
        for module, need in needs.items():
            module.bind(kernels, need.op, need.variant)
        return None

    def create_masks_for_generate(self, *, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        """Hand the padding mask on where kernels attend: their masks are built in ``forward``."""
        if any(isinstance(module, Attention) and module.attention is not None for module in self.modules()):
            return attention_mask
        return create_masks_for_generate(attention_mask=attention_mask, **kwargs)


class Decoder(Model):
    """As ``LlamaModel``: builds the mask that each attention kernel reads, and hands them to the layers.

    transformers builds one mask, in the form of the name in the config. Neither is touched here.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in HF. Where ``position_ids`` start again, a new document starts, with a cache too.

        Raises:
            ValueError: for attention weights that a layer's kernel cannot give, a mask that was built for another
                attention, packing by ``cu_seq_lens_q`` without ``position_ids``, or ``is_causal=False``.
        """
        attentions = [layer.self_attn for layer in self.layers if _attends(layer)]
        if attentions and (input_ids is None) != (inputs_embeds is None):
            self._refuse(attentions, attention_mask, position_ids, kwargs)
            if inputs_embeds is None:
                input_ids, inputs_embeds = None, self.embed_tokens(input_ids)
            kwargs[MASKS] = attention_masks(
                attentions, inputs_embeds, attention_mask, _of_text(position_ids), past_key_values
            )
            if len(attentions) == len(self.layers):
                # transformers takes four dimensions for a finished mask, and builds none that nobody would read.
                attention_mask = inputs_embeds.new_zeros((1, 1, 1, 1))
        return self.stock.forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _refuse(
        self, attentions: list[Attention], attention_mask: Any, position_ids: Tensor | None, kwargs: dict[str, Any]
    ) -> None:
        """Raise for calls whose meaning would be lost."""
        without = [attention for attention in attentions if not attention.returns_weights]
        if kwargs.get("output_attentions", getattr(self.config, "output_attentions", False)) and without:
            impl = without[0].bindings["attention"].impl
            raise ValueError(f"attention: {impl} returns no weights; output_attentions=True needs attention: eager")
        if not isinstance(attention_mask, Tensor | None):
            raise ValueError(
                f"injected attention makes its masks of a tensor, not of a {type(attention_mask).__name__}"
            )
        if kwargs.get("cu_seq_lens_q") is not None and position_ids is None:
            raise ValueError("packed documents are told by position_ids that start again, not by cu_seq_lens_q alone")
        if kwargs.get("is_causal") is False:
            raise ValueError("is_causal=False is not supported: every attention kernel here is causal")


def _attends(layer: nn.Module) -> bool:
    attention = getattr(layer, "self_attn", None)
    return isinstance(attention, Attention) and attention.attention is not None


def _of_text(position_ids: Tensor | None) -> Tensor | None:
    """[B or 1, S] of what may be [4, B, S]: those of the text first, then those of an image's axes."""
    if position_ids is None or position_ids.ndim == 2:
        return position_ids
    return position_ids[0] if position_ids.shape[0] == 4 else None
