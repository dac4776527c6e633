"""Small stock models of every family that kernels can be injected into."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.models.families import MOE, SMALL, tokens

SLIDING = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "final_logit_softcapping": 2.0,
    "query_pre_attn_scalar": 24,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "qwen2": ("Qwen2", SLIDING),
    "qwen3": ("Qwen3", SLIDING),
    "qwen3_moe": ("Qwen3Moe", {**MOE, "mlp_only_layers": [0]}),
    "gemma3": ("Gemma3", GEMMA),
    "qwen3_next": ("Qwen3Next", {**MOE, **LINEAR, "shared_expert_intermediate_size": 16}),
    "qwen3_5": ("Qwen3_5", LINEAR),
}
FAMILIES = tuple(CONFIGS)
TEXT = ("gemma3", "qwen3_5")
"""Families whose config and decoder are called after the text, since they can see as well."""


def config_of(family: str, **changes: Any) -> Any:
    name, extra = CONFIGS[family]
    config_class = getattr(transformers, f"{name}{'Text' if family in TEXT else ''}Config")
    config = config_class(**{**SMALL, "intermediate_size": 48, **extra, **changes})
    config._attn_implementation = "eager"
    if "num_experts" in extra:
        config._experts_implementation = "eager"
    return config


def stock(family: str, kind: str = "ForCausalLM", **changes: Any) -> Any:
    """A stock model with weights that matter, biases and norms too."""
    name = CONFIGS[family][0] + ("Text" if family in TEXT and kind != "ForCausalLM" else "")
    torch.manual_seed(0)
    model = getattr(importlib.import_module(f"transformers.models.{family}"), f"{name}{kind}")(
        config_of(family, **changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def pair(family: str, kind: str = "ForCausalLM", **changes: Any) -> tuple[Any, Any]:
    """Two of them with the same weights, the second to inject into."""
    model = stock(family, kind, **changes)
    return model, copy.deepcopy(model)


def batch(*shape: int) -> dict[str, Tensor]:
    shape = shape or (2, 11)
    return {"input_ids": tokens(*shape), "labels": tokens(*shape, seed=1)}


def step(model: Any, **inputs: Any) -> Any:
    model.train()
    output = model(**(inputs or batch()))
    output.loss.backward()
    return output
