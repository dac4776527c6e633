"""A decoder with a language-model head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from kernelkit.containers.bindings import Need
from kernelkit.kernels.cross_entropy_loss.eager import cross_entropy
from kernelkit.models.layers.decoder import DecoderModel
from kernelkit.models.layers.head import (
    LOSS_ARGUMENTS,
    allow_unfused,
    keep_positions,
    next_tokens,
    obstacle_to_fusing,
    z_loss,
)
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.models.layers.pretrained import DISTILLATION, KernelPreTrainedModel
from kernelkit.models.layers.teaching import FORWARD_KL, Distillation, DistilledOutput, Teaching
from kernelkit.ops.distillation_loss import DistillationOutput
from kernelkit.spec import Kernel

LOSSES = ("cross_entropy_loss", "load_balancing_loss", "distillation_loss")
"""Ops that a model with a head calls itself, where it needs them."""


class CausalLM(KernelPreTrainedModel, KernelModule, GenerationMixin):
    """A decoder and a linear head, trained by next-token cross-entropy, as ``LlamaForCausalLM``.

    A ``z_loss_coef`` in the config adds PaLM's z-loss to it.
    """

    model_class: ClassVar[type[DecoderModel]]
    cross_entropy_loss: Kernel
    distillation_loss: Kernel
    if TYPE_CHECKING:  # PreTrainedModel has no types, and nn.Module answers to every name
        config: PreTrainedConfig
        post_init: Any
        save_pretrained: Any
        gradient_checkpointing_enable: Any
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: PreTrainedConfig, kernels: Any = None) -> None:
        super().__init__(config, kernels)
        self.model = self.model_class(self.config, self.kernels)
        self.vocab_size = self.config.vocab_size
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        for op in LOSSES:
            if (op, "standard") in self.kernels:
                self.bind(self.kernels, op)
        self.post_init()

    @classmethod
    def kernel_needs(cls, config: PreTrainedConfig) -> list[Need]:
        """What the decoder needs, and the loss."""
        return [*cls.model_class.kernel_needs(config), Need("cross_entropy_loss")]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        teaching: Teaching | None = None,
        distillation: Distillation = FORWARD_KL,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model, and the loss where there are labels.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: as in the decoder.
            labels: [B, S], those at -100 do not count; shifted here, so that position i predicts label i + 1.
            logits_to_keep: compute logits of the last so many positions, or of the positions given; 0 means all.
            return_logits: with labels, the logits must be returned. By default they must outside training; in training
                a fused loss leaves them out.
            teaching: what a teacher predicts at the same positions. The loss is then the distillation loss, and the
                logits are left out.
            distillation: how the teacher is followed.
            **kwargs: ``num_items_in_batch``, ``ignore_index`` and ``shift_labels`` as in ``ForCausalLMLoss``, and
                ``z_loss_coef`` in place of the config's; the rest goes to the decoder.

        Raises:
            ValueError: as the decoder, for a loss kernel that was named although the head cannot be fused, and for
                ``teaching`` without labels, without a kernel for it, or beside a z-loss.
        """
        loss_arguments = {name: kwargs.pop(name) for name in LOSS_ARGUMENTS if name in kwargs}
        targets = next_tokens(labels, kwargs.pop("shift_labels", None), loss_arguments.get("ignore_index", -100))
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=use_cache, **kwargs
        )
        hidden_states = keep_positions(outputs.last_hidden_state, logits_to_keep)
        if teaching is not None:
            figures = self.follow(hidden_states, targets, teaching, distillation, **loss_arguments)
            output = self.output(outputs, figures.loss, None, attention_mask)
            return DistilledOutput(**output, distillation=figures)
        wants_logits = not self.training if return_logits is None else return_logits
        loss, logits = self.predict(hidden_states, targets, return_logits=wants_logits, **loss_arguments)
        return self.output(outputs, loss, logits, attention_mask)

    def predict(
        self, hidden_states: Tensor, targets: Tensor | None, *, return_logits: bool, **loss_arguments: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """The loss of ``targets`` [B, S] under ``hidden_states`` [B, S, H], and the logits; no loss without targets."""
        if targets is None:
            return None, self.lm_head(hidden_states)
        loss_arguments = {**loss_arguments, **z_loss(self.config, loss_arguments)}
        obstacle = obstacle_to_fusing(self.lm_head)
        if obstacle is None:
            weight, bias = self.lm_head.weight, self.lm_head.bias
            return self.cross_entropy_loss(
                hidden_states, weight, targets, bias=bias, return_logits=return_logits, **loss_arguments
            )
        allow_unfused(self.bindings["cross_entropy_loss"], obstacle)
        logits = self.lm_head(hidden_states)
        return cross_entropy(logits, targets, **loss_arguments), logits

    def teach(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Teaching:
        """What this model, as a teacher, predicts at each position of ``input_ids`` [B, S], without its logits.

        Raises:
            ValueError: for a head that cannot be used without calling it, such as one with a LoRA adapter.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, use_cache=False)
        return Teaching(outputs.last_hidden_state, *self._plain_head("a teacher hands its head to the student's loss"))

    def follow(
        self,
        hidden_states: Tensor,
        targets: Tensor | None,
        teaching: Teaching,
        distillation: Distillation,
        **loss_arguments: Any,
    ) -> DistillationOutput:
        """The distillation loss of ``hidden_states`` [B, S, H] at those ``targets`` [B, S] that count."""
        if targets is None:
            raise ValueError("teaching needs labels: they say which positions count")
        if DISTILLATION[0] not in self.bindings:
            raise ValueError("this model was built without distillation_loss: build it with distilled=True")
        if z_loss(self.config, loss_arguments):
            raise ValueError("distillation_loss has no z-loss: set z_loss_coef to 0 in the student's config")
        loss_arguments.pop("z_loss_coef", None)
        weight, bias = self._plain_head("distillation_loss projects to the vocabulary by itself")
        *how, truncate = distillation
        if truncate:
            vocabulary = min(weight.shape[0], teaching.weight.shape[0])
            weight, bias = weight[:vocabulary], bias if bias is None else bias[:vocabulary]
            teaching = teaching.cut(vocabulary)
        return self.distillation_loss(
            hidden_states,
            weight,
            teaching.hidden_states,
            teaching.weight,
            targets,
            student_bias=bias,
            teacher_bias=teaching.bias,
            **dict(zip(Distillation._fields, how, strict=False)),
            **loss_arguments,
        )

    def _plain_head(self, why: str) -> tuple[Tensor, Tensor | None]:
        obstacle = obstacle_to_fusing(self.lm_head)
        if obstacle is not None:
            raise ValueError(f"{why}, and {obstacle}")
        return self.lm_head.weight, self.lm_head.bias

    def output(
        self, outputs: Any, loss: Tensor | None, logits: Tensor | None, attention_mask: Tensor | None
    ) -> CausalLMOutputWithPast:
        """What ``forward`` returns, from the decoder's outputs."""
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MoeCausalLM(CausalLM):
    """A causal language model whose router losses are added to the loss, as ``Qwen3MoeForCausalLM``."""

    load_balancing_loss: Kernel

    @classmethod
    def kernel_needs(cls, config: PreTrainedConfig) -> list[Need]:
        """What the decoder needs, and both losses."""
        return [*super().kernel_needs(config), Need("load_balancing_loss")]

    def output(
        self, outputs: Any, loss: Tensor | None, logits: Tensor | None, attention_mask: Tensor | None
    ) -> MoeCausalLMOutputWithPast:
        """As in the base class, with the load balancing loss where router logits were asked for."""
        aux_loss = None
        if outputs.router_logits is not None:
            config = self.config
            aux_loss = self.load_balancing_loss(
                outputs.router_logits, config.num_experts, config.num_experts_per_tok, attention_mask
            )
            if loss is not None:
                loss = loss + config.router_aux_loss_coef * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )
