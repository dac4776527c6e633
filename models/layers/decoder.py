"""The decoder: a stack of attention and feed-forward layers between an embedding and a final norm."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as RotaryEmbedding
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from kernelkit.containers.bindings import Bindings, Need
from kernelkit.models.layers.attention import Attention, attention_variant, head_dim_of, sliding_window_of
from kernelkit.models.layers.attention_masks import attention_masks, mask_key
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.models.layers.mlp import activation_variant
from kernelkit.models.layers.norm import RMSNorm
from kernelkit.models.layers.pretrained import KernelPreTrainedModel
from kernelkit.spec import Kernel


class DecoderLayer(GradientCheckpointingLayer, KernelModule):
    """Attention and a feed-forward block, each behind a norm and added to its input."""

    add_rms_norm: Kernel

    def __init__(self, config: PreTrainedConfig, kernels: Bindings, self_attn: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, kernels)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, kernels)
        self.bind(kernels, "add_rms_norm")

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Map ``hidden_states`` [B, S, H].

        Returns:
            [B, S, H], the attention weights or None, and the router logits [B * S, E] or None.
        """
        attended, weights = self.self_attn(
            self.input_layernorm(hidden_states), position_embeddings, attention_mask, past_key_values
        )
        hidden_states, normed = self.add_rms_norm(attended, hidden_states, self.post_attention_layernorm)
        fed, router_logits = self.feed_forward(normed)
        return hidden_states + fed, weights, router_logits

    def feed_forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """The block's output, and router logits where it has a router."""
        return self.mlp(hidden_states), None


class SparseDecoderLayer(DecoderLayer):
    """A decoder layer whose feed-forward block routes tokens to experts."""

    def feed_forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """The experts' output and the router logits."""
        return self.mlp(hidden_states)


class DecoderModel(KernelPreTrainedModel):
    """Embedding, layers, final norm, as ``LlamaModel``. A family says in :meth:`make_layer` what a layer is."""

    def __init__(self, config: PreTrainedConfig, kernels: Any = None) -> None:
        super().__init__(config, kernels)
        config = self.config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(self.make_layer(layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, self.kernels)
        self.rotary_emb = RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def make_layer(self, layer_idx: int) -> DecoderLayer:
        """The layer at ``layer_idx``, with kernels of ``self.kernels``."""
        raise NotImplementedError

    @classmethod
    def kernel_needs(cls, config: PreTrainedConfig) -> list[Need]:
        """Attention in the variants of the layers, norm, rotation, and the dense feed-forward block."""
        windows = {sliding_window_of(config, layer_idx) for layer_idx in range(config.num_hidden_layers)}
        variants = sorted({attention_variant(window) for window in windows})
        return [
            *(Need("attention", variant, {"head_dim": head_dim_of(config)}) for variant in variants),
            Need("rms_norm"),
            Need("add_rms_norm"),
            Need("rotary_pos_emb", "full"),
            Need("swiglu_mlp", activation_variant(config.hidden_act)),
        ]

    @property
    def attentions(self) -> list[Attention]:
        """The attention module of each layer."""
        return [cast(Attention, layer.self_attn) for layer in self.layers]

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: [B, S].
            attention_mask: [B, tokens so far], 0 for padding; or a mask of one's own, [B, 1 or heads, S, K].
            position_ids: [B or 1, S]. Where they start again, a new document starts that sees nothing before it.
            past_key_values: cached keys and values.
            inputs_embeds: [B, S, H] in place of ``input_ids``.
            use_cache: make a cache and return it.
            output_hidden_states, output_attentions, output_router_logits: return these too, one for each layer.
            **kwargs: what transformers passes for other models; ignored.

        Raises:
            ValueError: for both or neither of ``input_ids`` and ``inputs_embeds``, attention weights that a layer's
                kernel cannot give, packing by ``cu_seq_lens_q`` without ``position_ids``, or ``is_causal=False``.
        """
        _refuse(input_ids, inputs_embeds, position_ids, kwargs)
        wants = self._wanted(
            hidden_states=output_hidden_states, attentions=output_attentions, router_logits=output_router_logits
        )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        masks = attention_masks(self.attentions, inputs_embeds, attention_mask, position_ids, past_key_values)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)

        hidden_states = inputs_embeds
        found: dict[str, list[Tensor]] = {name: [] for name in wants}
        for layer, attention in zip(self.layers, self.attentions, strict=True):
            entering = hidden_states
            hidden_states, weights, router_logits = layer(
                hidden_states,
                attention_mask=masks[mask_key(attention)],
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
            )
            of_layer = {"hidden_states": entering, "attentions": weights, "router_logits": router_logits}
            for name in wants:
                if of_layer[name] is not None:
                    found[name].append(of_layer[name])
        hidden_states = self.norm(hidden_states)
        if "hidden_states" in found:
            found["hidden_states"].append(hidden_states)

        return MoeModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
            **{name: tuple(states) for name, states in found.items()},
        )

    def _wanted(self, **flags: bool | None) -> list[str]:
        """Names of the outputs to collect: those asked for, else those that the config asks for."""
        defaults = {name: getattr(self.config, f"output_{name}", False) for name in flags}
        wanted = [name for name, flag in flags.items() if (defaults[name] if flag is None else flag)]
        without = [attention for attention in self.attentions if not attention.returns_weights]
        if "attentions" in wanted and without:
            impl = without[0].bindings["attention"].impl
            raise ValueError(f"attention: {impl} returns no weights; output_attentions=True needs attention: eager")
        return wanted


def _refuse(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None, extra: dict[str, Any]
) -> None:
    """Raise for calls whose meaning would be lost."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    if extra.get("cu_seq_lens_q") is not None and position_ids is None:
        raise ValueError("packed documents are told by position_ids that start again; cu_seq_lens_q alone is not read")
    if extra.get("is_causal") is False:
        raise ValueError("is_causal=False is not supported: every attention kernel here is causal")
