"""Scaled dot-product attention."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from kernelkit.spec import Op


class Attention(Protocol):
    """softmax(scaling * q k^T) v over the keys that each query may see (Vaswani et al., arXiv:1706.03762).

    The kernel owns its mask: its trait ``mask`` names the form in which it wants to be told who sees whom, and the model
    builds that form from a :class:`kernelkit.ops.masks.Visibility`, once for each form and forward pass. Every variant
    is causal and keeps packed documents apart.

    - ``causal``: each query sees itself and all earlier keys
    - ``sliding_window``: of those, only the last ``sliding_window``
    - ``softcap``: scores become softcap * tanh(scores / softcap) before the mask; a window is allowed
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        *,
        scaling: float,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: [B, Hq, Q, D], any strides.
            key: [B, Hkv, K, D], Hq a multiple of Hkv; K counts cached keys.
            value: [B, Hkv, K, Dv].
            mask: what ``build_mask`` made for this kernel's trait ``mask``. None: plainly causal, and Q = K or Q = 1.
            scaling: factor of the scores, usually D ** -0.5.
            dropout: probability of dropping an attention weight; 0 outside training.
            sliding_window: width of the window, for kernels that apply it themselves; the mask holds it already.
            softcap: as above, or None.

        Returns:
            The output [B, Q, Hq, Dv], and the attention weights [B, Hq, Q, K] where the trait ``weights`` says so, else
            None. Rows of queries that see no key hold no nan and give no gradient that is not finite.
        """


class AttentionTraits(BaseModel):
    """What an attention kernel states about itself.

    Attributes:
        mask: the form of mask it reads; see :mod:`kernelkit.ops.masks`.
        weights: it returns the attention weights, so that ``output_attentions=True`` works.
    """

    model_config = ConfigDict(extra="forbid")

    mask: Literal["none", "bool", "additive", "block", "varlen"]
    weights: bool = False


OP = Op(
    name="attention",
    variants={
        "causal": "transformers LlamaAttention",
        "sliding_window": "transformers Qwen2Attention with layer_types 'sliding_attention'",
        "softcap": "transformers Gemma2Attention",
    },
    protocol=Attention,
    default="sdpa",
    variant_defaults={"softcap": "eager"},
    preference=("flash_attention_3", "flash_attention_2", "sdpa", "flex_attention", "eager"),
    traits=AttentionTraits,
)
