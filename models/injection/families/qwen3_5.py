"""Qwen3.5, the dense text models: the layers of linear attention stay transformers' own."""

from __future__ import annotations

from transformers.models.qwen3_5 import modeling_qwen3_5 as hf

from kernelkit.models.injection.attention import GatedAttention
from kernelkit.models.injection.blocks import GatedMLP, ZeroCenteredRMSNorm
from kernelkit.models.injection.causal_lm import CausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (hf.Qwen3_5DecoderLayer, hf.Qwen3_5TextRotaryEmbedding)


class Qwen3_5RMSNorm(ZeroCenteredRMSNorm, hf.Qwen3_5RMSNorm):  # noqa: N801  # HF's name
    """Zero-centred."""


class Qwen3_5MLP(GatedMLP, hf.Qwen3_5MLP):  # noqa: N801  # HF's name
    """Gated."""


class Qwen3_5Attention(GatedAttention, hf.Qwen3_5Attention):  # noqa: N801  # HF's name
    """Partly rotated, with a gated output."""


class Qwen3_5TextModel(Decoder, hf.Qwen3_5TextModel):  # noqa: N801  # HF's name
    """The decoder."""


class Qwen3_5ForCausalLM(CausalLM, hf.Qwen3_5ForCausalLM):  # noqa: N801  # HF's name
    """With a head."""


class Qwen3_5TextForSequenceClassification(Model, hf.Qwen3_5TextForSequenceClassification):  # noqa: N801  # HF's name
    """With a classifier."""
