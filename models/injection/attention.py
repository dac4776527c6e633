"""Attention of a stock model, with kernels for the rotation and for the attention itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kernelkit.containers.bindings import Binding, Need
from kernelkit.models.injection.module import InjectedModule, StockBinding
from kernelkit.models.layers.attention import attention_variant
from kernelkit.models.layers.attention_masks import mask_key
from kernelkit.spec import Kernel

MASKS = "kernel_masks"
"""The keyword with which the decoder hands its masks through HF's layers, which pass on what they do not know."""


class Attention(InjectedModule):
    """As ``LlamaAttention``.

    Attributes:
        rotation: the variant of the rotation.
        mask_kind, returns_weights: what the bound attention kernel states about itself.
        stock_rotation, stock_attention: the HF module's own functions, as they were when this class was made.
    """

    rotation: ClassVar[str] = "full"
    sliding_window: int | None = None
    mask_kind: str
    layer_idx: int
    returns_weights: bool
    rotary_pos_emb: Kernel | None = None
    qk_norm_rope: Kernel | None = None
    attention: Kernel | None = None
    stock_rotation: ClassVar[Kernel]
    stock_attention: ClassVar[Kernel]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "stock"):
            cls.stock_rotation = staticmethod(cls.function_of_stock("apply_rotary_pos_emb"))
            cls.stock_attention = staticmethod(cls.function_of_stock("eager_attention_forward"))

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """Rotation and attention. All kernels are causal; a module that is not asks for what the container refuses."""
        variant = attention_variant(cls.window_of(module)) if module.is_causal else "bidirectional"
        return [Need("rotary_pos_emb", cls.rotation), Need("attention", variant, {"head_dim": module.head_dim})]

    @classmethod
    def window_of(cls, module: Any) -> int | None:
        """Width of the sliding window of ``module``."""
        return getattr(module, "sliding_window", None)

    def rebind(self, binding: Binding) -> Binding:
        """As in the base class; an attention kernel also says which form of mask it reads."""
        if binding.op == "attention" and not isinstance(binding, StockBinding):
            # An override states nothing about itself: it is taken for one like eager.
            traits = binding.traits or {"mask": "additive", "weights": True}
            self.mask_kind, self.returns_weights = traits["mask"], traits.get("weights", False)
        return super().rebind(binding)

    def release(self) -> None:
        """As in the base class."""
        for name in ("mask_kind", "returns_weights"):
            self.__dict__.pop(name, None)
        super().release()

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As in HF: [B, S, H] to [B, S, H], and the attention weights or None.

        Raises:
            RuntimeError: where the masks did not arrive, because the decoder was passed by.
        """
        masks = kwargs.pop(MASKS, None)
        if self.rotary_pos_emb is None and self.qk_norm_rope is None and self.attention is None:
            return self.stock.forward(
                self, hidden_states, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs
            )
        query, key, value, gate = self.project(hidden_states)
        query, key, value = *self.place(query, key, *position_embeddings), value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if self.attention is None:
            output, weights = self._attend_as_stock(query, key, value, attention_mask, **kwargs)
        else:
            if masks is None:
                raise RuntimeError("an injected attention layer is called by its decoder, which builds its mask")
            output, weights = self.attention(query, key, value, masks[mask_key(self)], **self._how())
        output = output.reshape(*hidden_states.shape[:-1], -1)
        return self.o_proj(output if gate is None else output * torch.sigmoid(gate)), weights

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, key and value, each [B, S, heads, D], and what the output is gated by [B, S, heads * D], or None."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        return query.view(heads), key.view(heads), value.view(heads), None

    def place(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``query`` and ``key`` [B, S, heads, D] their positions: [B, heads, S, D]."""
        rotated: tuple[Tensor, Tensor] = self.rotate(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        return rotated

    @property
    def rotate(self) -> Kernel:
        """The bound rotation, or HF's."""
        return self.stock_rotation if self.rotary_pos_emb is None else self.rotary_pos_emb

    def _how(self) -> dict[str, Any]:
        dropout = self.attention_dropout if self.training else 0.0
        return {"scaling": self.scaling, "dropout": dropout, "sliding_window": self.sliding_window}

    def _attend_as_stock(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, self.stock_attention)
        return attend(self, query, key, value, mask, **self._how(), **kwargs)


class NormedAttention(Attention):
    """As ``Gemma3Attention``: each head's query and key are normalised. Where HF does it after turning is all one."""

    def place(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class, after the norms."""
        return super().place(self.q_norm(query), self.k_norm(key), cos, sin)


class FusableAttention(NormedAttention):
    """As ``Qwen3Attention``: norms and rotation are those that one op computes."""

    @classmethod
    def kernel_needs(cls, module: Any) -> list[Need]:
        """As in the base class, and both in one."""
        return [*super().kernel_needs(module), Need("qk_norm_rope")]

    def place(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class, by one kernel where it is bound."""
        if self.qk_norm_rope is None:
            return super().place(query, key, cos, sin)
        placed: tuple[Tensor, Tensor] = self.qk_norm_rope(query, key, self.q_norm, self.k_norm, self.rotate, cos, sin)
        return placed


class GatedAttention(NormedAttention):
    """As ``Qwen3NextAttention``: one projection gives the query and a gate for the output; a part is rotated."""

    rotation = "partial"

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """As in the base class."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, gate = self.q_proj(hidden_states).view(*heads[:-1], 2 * self.head_dim).chunk(2, dim=-1)
        key, value = self.k_proj(hidden_states).view(heads), self.v_proj(hidden_states).view(heads)
        return query, key, value, gate.flatten(-2)
