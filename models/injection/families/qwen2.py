"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from transformers.models.qwen2 import modeling_qwen2 as hf

from kernelkit.models.injection.attention import Attention
from kernelkit.models.injection.blocks import DecoderLayer, GatedMLP, RMSNorm
from kernelkit.models.injection.causal_lm import CausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (hf.Qwen2RotaryEmbedding,)


class Qwen2RMSNorm(RMSNorm, hf.Qwen2RMSNorm):
    """Standard."""


class Qwen2MLP(GatedMLP, hf.Qwen2MLP):
    """Gated."""


class Qwen2Attention(Attention, hf.Qwen2Attention):
    """Fully rotated."""


class Qwen2DecoderLayer(DecoderLayer, hf.Qwen2DecoderLayer):
    """Two norms, two sums."""


class Qwen2Model(Decoder, hf.Qwen2Model):
    """The decoder."""


class Qwen2ForCausalLM(CausalLM, hf.Qwen2ForCausalLM):
    """With a head."""


class Qwen2ForSequenceClassification(Model, hf.Qwen2ForSequenceClassification):
    """With a classifier."""
