"""Qwen3, dense."""

from __future__ import annotations

from transformers.models.qwen3 import modeling_qwen3 as hf

from kernelkit.models.injection.attention import FusableAttention
from kernelkit.models.injection.blocks import DecoderLayer, GatedMLP, RMSNorm
from kernelkit.models.injection.causal_lm import CausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (hf.Qwen3RotaryEmbedding,)


class Qwen3RMSNorm(RMSNorm, hf.Qwen3RMSNorm):
    """Standard."""


class Qwen3MLP(GatedMLP, hf.Qwen3MLP):
    """Gated."""


class Qwen3Attention(FusableAttention, hf.Qwen3Attention):
    """Queries and keys are normalised."""


class Qwen3DecoderLayer(DecoderLayer, hf.Qwen3DecoderLayer):
    """Two norms, two sums."""


class Qwen3Model(Decoder, hf.Qwen3Model):
    """The decoder."""


class Qwen3ForCausalLM(CausalLM, hf.Qwen3ForCausalLM):
    """With a head."""


class Qwen3ForSequenceClassification(Model, hf.Qwen3ForSequenceClassification):
    """With a classifier."""
