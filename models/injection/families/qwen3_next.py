"""Qwen3-Next: the layers of linear attention stay transformers' own."""

from __future__ import annotations

from transformers.models.qwen3_next import modeling_qwen3_next as hf

from kernelkit.models.injection.attention import GatedAttention
from kernelkit.models.injection.blocks import Experts, GatedMLP, TopKRouter, ZeroCenteredRMSNorm
from kernelkit.models.injection.causal_lm import MoeCausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (
    hf.Qwen3NextDecoderLayer,
    hf.Qwen3NextRotaryEmbedding,
    hf.Qwen3NextSparseMoeBlock,
)


class Qwen3NextRMSNorm(ZeroCenteredRMSNorm, hf.Qwen3NextRMSNorm):
    """Zero-centred."""


class Qwen3NextMLP(GatedMLP, hf.Qwen3NextMLP):
    """Gated: the shared expert, and layers without experts."""


class Qwen3NextTopKRouter(TopKRouter, hf.Qwen3NextTopKRouter):
    """A softmax over all experts."""


class Qwen3NextExperts(Experts, hf.Qwen3NextExperts):
    """Gate and up projection in one tensor."""


class Qwen3NextAttention(GatedAttention, hf.Qwen3NextAttention):
    """Partly rotated, with a gated output."""


class Qwen3NextModel(Decoder, hf.Qwen3NextModel):
    """The decoder."""


class Qwen3NextForCausalLM(MoeCausalLM, hf.Qwen3NextForCausalLM):
    """With a head."""


class Qwen3NextForSequenceClassification(Model, hf.Qwen3NextForSequenceClassification):
    """With a classifier."""
