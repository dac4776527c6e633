"""Qwen3 with a mixture of experts."""

from __future__ import annotations

from transformers.models.qwen3_moe import modeling_qwen3_moe as hf

from kernelkit.models.injection.attention import FusableAttention
from kernelkit.models.injection.blocks import DecoderLayer, Experts, GatedMLP, RMSNorm, TopKRouter
from kernelkit.models.injection.causal_lm import MoeCausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (
    hf.Qwen3MoeRotaryEmbedding,
    hf.Qwen3MoeSparseMoeBlock,
)


class Qwen3MoeRMSNorm(RMSNorm, hf.Qwen3MoeRMSNorm):
    """Standard."""


class Qwen3MoeMLP(GatedMLP, hf.Qwen3MoeMLP):
    """Gated, in the layers without experts."""


class Qwen3MoeTopKRouter(TopKRouter, hf.Qwen3MoeTopKRouter):
    """A softmax over all experts."""


class Qwen3MoeExperts(Experts, hf.Qwen3MoeExperts):
    """Gate and up projection in one tensor."""


class Qwen3MoeAttention(FusableAttention, hf.Qwen3MoeAttention):
    """Queries and keys are normalised."""


class Qwen3MoeDecoderLayer(DecoderLayer, hf.Qwen3MoeDecoderLayer):
    """Two norms, two sums."""


class Qwen3MoeModel(Decoder, hf.Qwen3MoeModel):
    """The decoder."""


class Qwen3MoeForCausalLM(MoeCausalLM, hf.Qwen3MoeForCausalLM):
    """With a head."""


class Qwen3MoeForSequenceClassification(Model, hf.Qwen3MoeForSequenceClassification):
    """With a classifier."""
