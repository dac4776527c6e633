"""Gemma 3, the text models."""

from __future__ import annotations

from transformers.models.gemma3 import modeling_gemma3 as hf

from kernelkit.models.injection.attention import NormedAttention
from kernelkit.models.injection.blocks import GatedMLP, ZeroCenteredRMSNorm
from kernelkit.models.injection.causal_lm import CausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (hf.Gemma3DecoderLayer, hf.Gemma3RotaryEmbedding, hf.Gemma3TextScaledWordEmbedding)


class Gemma3RMSNorm(ZeroCenteredRMSNorm, hf.Gemma3RMSNorm):
    """Zero-centred, four in each layer."""


class Gemma3MLP(GatedMLP, hf.Gemma3MLP):
    """Gated by a GELU."""


class Gemma3Attention(NormedAttention, hf.Gemma3Attention):
    """Queries and keys are normalised; sliding layers have angles of their own."""


class Gemma3TextModel(Decoder, hf.Gemma3TextModel):
    """The decoder."""


class Gemma3ForCausalLM(CausalLM, hf.Gemma3ForCausalLM):
    """With a head whose logits may be capped."""


class Gemma3TextForSequenceClassification(Model, hf.Gemma3TextForSequenceClassification):
    """With a classifier."""
