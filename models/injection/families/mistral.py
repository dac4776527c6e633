"""Mistral."""

from __future__ import annotations

from typing import Any

from transformers.models.mistral import modeling_mistral as hf

from kernelkit.models.injection.attention import Attention
from kernelkit.models.injection.blocks import DecoderLayer, GatedMLP, RMSNorm
from kernelkit.models.injection.causal_lm import CausalLM
from kernelkit.models.injection.decoder import Decoder, Model

STRUCTURE = (hf.MistralRotaryEmbedding,)


class MistralRMSNorm(RMSNorm, hf.MistralRMSNorm):
    """Standard."""


class MistralMLP(GatedMLP, hf.MistralMLP):
    """Gated."""


class MistralAttention(Attention, hf.MistralAttention):
    """Fully rotated; HF reads the window in its forward, from the config."""

    @classmethod
    def window_of(cls, module: Any) -> int | None:
        """The same for every layer."""
        return module.config.sliding_window

    @property
    def sliding_window(self) -> int | None:  # type: ignore[override]  # a value in the other families
        """For the mask."""
        return self.window_of(self)


class MistralDecoderLayer(DecoderLayer, hf.MistralDecoderLayer):
    """Two norms, two sums."""


class MistralModel(Decoder, hf.MistralModel):
    """The decoder."""


class MistralForCausalLM(CausalLM, hf.MistralForCausalLM):
    """With a head."""


class MistralForSequenceClassification(Model, hf.MistralForSequenceClassification):
    """With a classifier."""
