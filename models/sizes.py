"""In which sizes the modules of a model call their kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kernelkit.frozen import FrozenDict

Sizes = dict[str, int]


def sizes_of(module: nn.Module, op: str, config: Any) -> FrozenDict[str, int]:
    """The sizes of the calls that ``module`` makes, by the names of the op's ``sized_samples``.

    Args:
        module: one of ours, or of transformers, which has the same attributes.
        op: an op that it calls.
        config: the model's HF config, or None.

    Returns:
        Nothing for an op that is not known here, or a module that lacks what its sizes are read from.
    """
    try:
        return FrozenDict(_SIZES[op](module, config)) if op in _SIZES else FrozenDict()
    except AttributeError:
        return FrozenDict()


def _norm(module: Any, config: Any) -> Sizes:
    return {"hidden_size": module.weight.shape[-1]}


def _norm_within(module: Any, config: Any) -> Sizes:
    return _norm(module.post_attention_layernorm, config)


def _heads(module: Any, config: Any) -> Sizes:
    heads = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads}
    return {**heads, "head_dim": module.head_dim}


def _mlp(module: Any, config: Any) -> Sizes:
    return {"intermediate_size": module.gate_proj.out_features}


def _experts(module: Any, config: Any) -> Sizes:
    experts, hidden, width = module.down_proj.shape
    return {
        "experts": experts,
        "hidden_size": hidden,
        "intermediate_size": width,
        "top_k": config.num_experts_per_tok,
    }


def _head(module: Any, config: Any) -> Sizes:
    return {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size}


def _router(module: Any, config: Any) -> Sizes:
    return {"experts": config.num_experts, "top_k": config.num_experts_per_tok}


_SIZES: dict[str, Callable[[Any, Any], Sizes]] = {
    "rms_norm": _norm,
    "add_rms_norm": _norm_within,
    "attention": _heads,
    "qk_norm_rope": _heads,
    "rotary_pos_emb": _heads,
    "swiglu_mlp": _mlp,
    "moe_router": _router,
    "moe_experts": _experts,
    "cross_entropy_loss": _head,
    "distillation_loss": _head,
    "load_balancing_loss": _router,
}
