"""Grouped-query attention with rotary positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from kernelkit.containers.bindings import Binding, Bindings
from kernelkit.models.layers.kernel_module import KernelModule
from kernelkit.models.layers.norm import RMSNorm
from kernelkit.spec import Kernel


def head_dim_of(config: PreTrainedConfig) -> int:
    """Channels of one head; HF leaves ``head_dim`` out where it follows from the hidden size."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def sliding_window_of(config: PreTrainedConfig, layer_idx: int) -> int | None:
    """Width of the window of one layer, None where it sees everything before it."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    return window if layer_types is None or layer_types[layer_idx] == "sliding_attention" else None


def attention_variant(sliding_window: int | None) -> str:
    """The variant of the attention op for a layer."""
    return "causal" if sliding_window is None else "sliding_window"


class Attention(KernelModule):
    """Multi-head attention over grouped keys and values, as ``LlamaAttention``.

    Args:
        config: HF config.
        layer_idx: which layer this is; the cache wants to know.
        kernels: the model's kernels.
        qkv_bias, out_bias: whether the projections have a bias.
    """

    rotary_pos_emb: Kernel
    attention: Kernel

    def __init__(
        self,
        config: PreTrainedConfig,
        layer_idx: int,
        kernels: Bindings,
        *,
        qkv_bias: bool,
        out_bias: bool,
    ) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = head_dim_of(config)
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.sliding_window = sliding_window_of(config, layer_idx)
        width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=out_bias)
        self.bind(kernels, "rotary_pos_emb", "full")
        self.bind(kernels, "attention", attention_variant(self.sliding_window))

    def rebind(self, binding: Binding) -> Binding:
        """As in the base class; an attention kernel also says which form of mask it reads."""
        if binding.op == "attention":
            # An override states nothing about itself: it is taken for one like eager.
            traits = binding.traits or {"mask": "additive", "weights": True}
            self.mask_kind: str = traits["mask"]
            self.returns_weights: bool = traits.get("weights", False)
        return super().rebind(binding)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any,
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within ``hidden_states`` [B, S, H] and to what ``past_key_values`` holds.

        Args:
            hidden_states: [B, S, H].
            position_embeddings: cos and sin, each [B or 1, S, head_dim].
            attention_mask: the mask in the form of this layer's kernel.
            past_key_values: cached keys and values, extended here.

        Returns:
            [B, S, H], and the attention weights [B, heads, S, K] or None.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key = self.q_proj(hidden_states).view(heads), self.k_proj(hidden_states).view(heads)
        query, key = self.place(query, key, *position_embeddings)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        output, weights = self.attention(
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=self.sliding_window,
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    def place(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``query`` and ``key`` [B, S, heads, head_dim] their positions: [B, heads, S, head_dim]."""
        rotated: tuple[Tensor, Tensor] = self.rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        return rotated


class NormedAttention(Attention):
    """Attention that normalises each head's query and key before the rotation, as ``Qwen3Attention``."""

    qk_norm_rope: Kernel

    def __init__(
        self, config: PreTrainedConfig, layer_idx: int, kernels: Bindings, *, qkv_bias: bool, out_bias: bool
    ) -> None:
        super().__init__(config, layer_idx, kernels, qkv_bias=qkv_bias, out_bias=out_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps, kernels)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps, kernels)
        self.bind(kernels, "qk_norm_rope")

    def place(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class, after the norms."""
        placed: tuple[Tensor, Tensor] = self.qk_norm_rope(
            query, key, self.q_norm, self.k_norm, self.rotary_pos_emb, cos, sin
        )
        return placed
