"""Head and loss of a stock model, with kernels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from kernelkit.containers.bindings import Need
from kernelkit.kernels.cross_entropy_loss.eager import cross_entropy
from kernelkit.models.injection.decoder import Model
from kernelkit.models.layers.head import (
    LOSS_ARGUMENTS,
    allow_unfused,
    keep_positions,
    next_tokens,
    obstacle_to_fusing,
    z_loss,
)
from kernelkit.spec import Kernel


class CausalLM(Model):
    """As ``LlamaForCausalLM``. Without labels, and without a loss that was named, its forward is HF's."""

    cross_entropy_loss: Kernel | None = None
    load_balancing_loss: Kernel | None = None

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """The loss; one that somebody put in the place of HF's asks for what the container refuses."""
        return [Need("cross_entropy_loss", "custom" if _has_loss_of_its_own(module) else "standard")]

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
        **kwargs: Any,
    ) -> Any:
        """As in HF.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: as in HF.
            labels: [B, S], those at -100 do not count; shifted here, so that position i predicts label i + 1.
            return_logits: with labels, the logits must be returned. By default they must outside training; in training
                a fused loss leaves them out.
            logits_to_keep, **kwargs: as in HF.

        Raises:
            ValueError: as the decoder, for a loss kernel that was named although the head cannot be fused, and for a
                ``z_loss_coef`` where the loss is HF's, which knows none.
        """
        stock_loss = labels is not None and self.cross_entropy_loss is None and not _has_loss_of_its_own(self)
        if stock_loss and (asked := z_loss(self.config, kwargs)):
            raise ValueError(
                f"z_loss_coef={asked['z_loss_coef']} is for cross_entropy_loss, which stays with transformers here. "
                "Name cross_entropy_loss, or set z_loss_coef to 0."
            )
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }
        if not self._takes_part(labels, kwargs):
            return self.stock.forward(self, **inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
        outputs = self.model(**inputs, **kwargs)
        hidden_states = keep_positions(outputs.last_hidden_state, logits_to_keep)
        loss, logits = self.predict(hidden_states, labels, return_logits, **kwargs)
        return self.output(outputs, loss, logits, attention_mask)

    def _takes_part(self, labels: Tensor | None, kwargs: dict[str, Any]) -> bool:
        return labels is not None and self.cross_entropy_loss is not None

    def predict(
        self, hidden_states: Tensor, labels: Tensor | None, return_logits: bool | None, **kwargs: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """The loss of ``labels`` [B, S] under ``hidden_states`` [B, S, H], and the logits; no loss without labels."""
        if labels is None or self.cross_entropy_loss is None:
            logits = self.logits(hidden_states)
            loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
            return loss, logits
        arguments = {name: kwargs[name] for name in LOSS_ARGUMENTS if name in kwargs}
        arguments |= z_loss(self.config, arguments)
        obstacle = obstacle_to_fusing(self.lm_head)
        targets: Any = next_tokens(labels, kwargs.get("shift_labels"), arguments.get("ignore_index", -100))
        if obstacle is not None:
            allow_unfused(self.bindings["cross_entropy_loss"], obstacle)
            logits = self.logits(hidden_states)
            return cross_entropy(logits, targets, **arguments), logits
        return self.cross_entropy_loss(
            hidden_states,
            self.lm_head.weight,
            targets,
            bias=self.lm_head.bias,
            softcap=self.softcap,
            return_logits=not self.training if return_logits is None else return_logits,
            **arguments,
        )

    @property
    def softcap(self) -> float | None:
        """Gemma's cap of the logits."""
        return getattr(self.config, "final_logit_softcapping", None)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """What the head gives, as HF's forward returns it."""
        logits = self.lm_head(hidden_states)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def output(self, outputs: Any, loss: Tensor | None, logits: Tensor | None, attention_mask: Tensor | None) -> Any:
        """What ``forward`` returns, from the decoder's outputs."""
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _has_loss_of_its_own(module: Any) -> bool:
    return "_loss_function" in vars(module) or module.loss_type != "ForCausalLM"


class MoeCausalLM(CausalLM):
    """As ``Qwen3MoeForCausalLM``: the loss of the routers is added."""

    stock_balancing: ClassVar[Kernel]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.stock_balancing = staticmethod(cls.function_of_stock("load_balancing_loss_func"))

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """Both losses."""
        return [*super().kernel_needs(module), Need("load_balancing_loss")]

    def _takes_part(self, labels: Tensor | None, kwargs: dict[str, Any]) -> bool:
        routes = kwargs.get("output_router_logits")
        if routes is None:
            # A None that is passed on would be taken for a no; without it, the decoder asks the config.
            kwargs.pop("output_router_logits", None)
            routes = self.config.output_router_logits
        balances = self.load_balancing_loss is not None and routes
        return balances or super()._takes_part(labels, kwargs)

    def output(self, outputs: Any, loss: Tensor | None, logits: Tensor | None, attention_mask: Tensor | None) -> Any:
        """As in the base class, with the load balancing loss where router logits were asked for."""
        aux_loss = None
        if outputs.router_logits is not None:
            balance = self.stock_balancing if self.load_balancing_loss is None else self.load_balancing_loss
            aux_loss = balance(outputs.router_logits, self.num_experts, self.num_experts_per_tok, attention_mask)
            if loss is not None:
                loss = loss + self.router_aux_loss_coef * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            **super().output(outputs, loss, logits, attention_mask),
            aux_loss=aux_loss,
            router_logits=outputs.router_logits,
        )
