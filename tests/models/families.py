"""Small models of each family, ours beside stock transformers' with the same weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import kernelkit
from kernelkit.models import build_model

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
CONFIGS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {}),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, MOE),
}
FAMILIES = tuple(CONFIGS)
EAGER = {"preset": "eager"}


def small_config(family: str, **changes: Any) -> transformers.PreTrainedConfig:
    """A config of two layers, 32 wide, with ``changes``."""
    config_class, _, extra = CONFIGS[family]
    return config_class(**{**SMALL, **extra, **changes})


def stock_model(family: str, **changes: Any) -> Any:
    """Stock transformers' model with eager attention and experts, and weights that matter (biases and norms too)."""
    config = small_config(family, **changes)
    config._attn_implementation = "eager"
    if family == "qwen3_moe":
        config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = CONFIGS[family][1](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def our_model(family: str, kernels: Any = None, *, like: nn.Module | None = None, **changes: Any) -> Any:
    """Our model with the weights of ``like``, or those of a seed."""
    torch.manual_seed(0)
    model = build_model(small_config(family, **changes), kernels=EAGER if kernels is None else kernels, device="cpu")
    if like is not None:
        model.load_state_dict(like.state_dict())
    return model.eval()


def pair(family: str, kernels: Any = None, **changes: Any) -> tuple[Any, Any]:
    """Stock and ours with the same weights."""
    stock = stock_model(family, **changes)
    return stock, our_model(family, kernels, like=stock, **changes)


def tokens(*shape: int, seed: int = 0, vocab: int = 96) -> Tensor:
    """Random token ids, none of them special."""
    return torch.randint(3, vocab, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, stock: Tensor, tolerance: float = 1e-6) -> None:
    """Within ``tolerance`` of the largest magnitude in ``stock``."""
    assert ours.shape == stock.shape
    assert ours.dtype == stock.dtype
    scale = stock.abs().max().clamp(min=1e-30)
    worst = ((ours - stock).abs().max() / scale).item()
    assert worst <= tolerance, f"off by {worst:.2e} of the largest magnitude"


def assert_same_gradients(ours: nn.Module, stock: nn.Module, tolerance: float = 1e-6) -> None:
    """Every parameter's gradient agrees."""
    for (name, mine), (other_name, theirs) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        assert name == other_name
        assert (mine.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None:
            assert_close(mine.grad, theirs.grad, tolerance)


def recording(op: str, calls: list[str], label: str) -> Any:
    """The eager kernel of ``op``, noting ``label`` in ``calls`` each time it is called."""
    registry = kernelkit.registry.default_registry()
    op_variant = {"attention": "causal", "rotary_pos_emb": "full", "swiglu_mlp": "silu"}.get(op, "standard")
    eager = registry.get(op, op_variant, "eager").build()

    def kernel(*args: Any, **kwargs: Any) -> Any:
        calls.append(label)
        return eager(*args, **kwargs)

    return kernel
