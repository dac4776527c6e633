"""What the two flash-attention packages have in common: packing, the window, and the order of dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kernelkit.ops.varlen import Varlen


@dataclass(frozen=True)
class FlashAttention:
    """The functions of one flash-attention package as a kernel; see :class:`kernelkit.ops.attention.Attention`.

    Queries that are padding come out as zeros.

    Attributes:
        dense: ``flash_attn_func``, for rows that are whole.
        varlen: ``flash_attn_varlen_func``, for packed tokens.
        deterministic: pass on to the backward.
        has_dropout: the functions take ``dropout_p``.
    """

    dense: Callable[..., Any]
    varlen: Callable[..., Any]
    deterministic: bool
    has_dropout: bool

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Varlen | None,
        *,
        scaling: float,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Raises:
            ValueError: for dropout, where the package has none.
        """
        keywords: dict[str, Any] = {"softmax_scale": scaling, "causal": True, "deterministic": self.deterministic}
        keywords["softcap"] = 0.0 if softcap is None else softcap
        # flash-attention counts the keys before the query's own.
        keywords["window_size"] = (-1, -1) if sliding_window is None else (sliding_window - 1, 0)
        if self.has_dropout:
            keywords["dropout_p"] = dropout
        elif dropout > 0.0:
            raise ValueError("attention: flash_attention_3 has no dropout; set attention_dropout to 0 or use sdpa")

        # Under autocast, rotary embeddings and norms leave query and key in float32.
        query, key, value = (tensor.to(value.dtype).transpose(1, 2) for tensor in (query, key, value))
        if mask is None:
            return _output(self.dense(query, key, value, **keywords)), None

        packed = _pack(query, mask.q_indices)
        if len(packed) > 0:  # a batch of nothing but padding has no query, and the packages launch no empty grid
            key, value = _pack(key, mask.k_indices), _pack(value, mask.k_indices)
            lengths = (mask.cu_seqlens_q, mask.cu_seqlens_k, mask.max_q, mask.max_k)
            packed = _output(self.varlen(packed, key, value, *lengths, **keywords))
        return _unpack(packed, mask.q_indices, query), None


def _pack(tensor: Tensor, indices: Tensor | None) -> Tensor:
    tokens = tensor.flatten(0, 1)
    return tokens if indices is None else tokens[indices]


def _unpack(packed: Tensor, indices: Tensor | None, query: Tensor) -> Tensor:
    batch, length = query.shape[:2]
    if indices is not None:
        packed = packed.new_zeros(batch * length, *packed.shape[1:]).index_copy(0, indices, packed)
    return packed.view(batch, length, *packed.shape[1:])


def _output(result: Any) -> Tensor:
    # flash-attention 3's betas return the log-sum-exp too.
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output
