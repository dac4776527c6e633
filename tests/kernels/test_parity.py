"""The eager kernels give the bits of the transformers class that their variant names."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from transformers import Gemma3TextConfig, GptOssConfig, LlamaConfig, Qwen3MoeConfig
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm
from transformers.models.glm4 import modeling_glm4
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssRMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeExperts,
    Qwen3MoeTopKRouter,
    load_balancing_loss_func,
)
from transformers.models.qwen3_next import modeling_qwen3_next

from tests.kernels.judge import DEVICES, calls, eager, run


def norm(cls):
    def call(hidden_states, weight, eps):
        return functional_call(cls(weight.shape[0], eps=eps).to(weight), {"weight": weight}, (hidden_states,))

    return call


def mlp(cls, config):
    module = cls(config(hidden_size=8, intermediate_size=8, num_attention_heads=1, head_dim=8))
    return lambda gate, up: module.act_fn(gate) * up


def gpt_oss_gate(gate, up):
    experts = GptOssExperts(GptOssConfig(hidden_size=8, intermediate_size=8, num_local_experts=2))
    return experts._apply_gate(torch.stack((gate, up), dim=-1).flatten(-2))


def router(router_logits, top_k, norm_topk_prob):
    number = router_logits.shape[1]
    sizes = {"num_experts": number, "hidden_size": number, "num_experts_per_tok": top_k}
    module = Qwen3MoeTopKRouter(Qwen3MoeConfig(**sizes, norm_topk_prob=norm_topk_prob)).to(router_logits)
    _, weights, index = functional_call(module, {"weight": torch.eye(number).to(router_logits)}, (router_logits,))
    return weights, index


def experts(hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj):
    number, hidden, width = down_proj.shape
    config = Qwen3MoeConfig(num_experts=number, hidden_size=hidden, moe_intermediate_size=width)
    config._experts_implementation = "eager"
    module = Qwen3MoeExperts(config).to(hidden_states)
    weights = {"gate_up_proj": gate_up_proj, "down_proj": down_proj}
    return functional_call(module, weights, (hidden_states, top_k_index, top_k_weights))


def gpt_oss_experts(
    hidden_states, top_k_index, top_k_weights, gate_up_proj, down_proj, gate_up_bias, down_bias, alpha, limit
):
    number, width, hidden = down_proj.shape
    config = GptOssConfig(num_local_experts=number, hidden_size=hidden, intermediate_size=width)
    config._experts_implementation = "eager"
    module = GptOssExperts(config).to(hidden_states)
    module.alpha, module.limit = alpha, limit
    weights = {"gate_up_proj": gate_up_proj, "down_proj": down_proj}
    weights |= {"gate_up_proj_bias": gate_up_bias, "down_proj_bias": down_bias}
    return functional_call(module, weights, (hidden_states, top_k_index, top_k_weights))


def head_and_loss(
    hidden_states, weight, labels, *, bias=None, softcap=None, logit_scale=1.0, return_logits=False, **settings
):
    logits = F.linear(hidden_states, weight, bias)
    # As Cohere and Gemma 2 do it between the head and the loss.
    logits = logits * logit_scale if logit_scale != 1.0 else logits
    logits = torch.tanh(logits / softcap) * softcap if softcap is not None else logits
    return ForCausalLMLoss(logits, None, weight.shape[0], shift_labels=labels, **settings), logits


STOCK = {
    ("rms_norm", "standard"): norm(LlamaRMSNorm),
    ("rms_norm", "zero_centered"): norm(Gemma3RMSNorm),
    ("rms_norm", "fp32_weight"): norm(GptOssRMSNorm),
    ("rotary_pos_emb", "full"): modeling_llama.apply_rotary_pos_emb,
    ("rotary_pos_emb", "partial"): modeling_qwen3_next.apply_rotary_pos_emb,
    ("rotary_pos_emb", "interleaved"): modeling_glm4.apply_rotary_pos_emb,
    ("swiglu_mlp", "silu"): mlp(LlamaMLP, LlamaConfig),
    ("swiglu_mlp", "gelu_tanh"): mlp(Gemma3MLP, Gemma3TextConfig),
    ("swiglu_mlp", "clamped"): gpt_oss_gate,
    ("moe_router", "standard"): router,
    ("moe_experts", "standard"): experts,
    ("moe_experts", "gpt_oss"): gpt_oss_experts,
    ("cross_entropy_loss", "standard"): head_and_loss,
    ("load_balancing_loss", "standard"): load_balancing_loss_func,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "variant"), STOCK, ids=map("-".join, STOCK))
def test_outputs_and_gradients_have_the_bits_of_transformers(op, variant, dtype, device):
    compared = 0
    for call in calls(op, variant, dtype, device):
        if call.arguments.get("z_loss_coef") or (op == "moe_experts" and not stock_can(variant, call.arguments)):
            continue
        mine, stock = run(eager(op, variant), call), run(STOCK[op, variant], call)
        torch.testing.assert_close(mine.outputs, stock.outputs, rtol=0, atol=0, equal_nan=True)
        assert all(map(torch.equal, mine.gradients, stock.gradients))
        compared += 1
    assert compared >= 2


def stock_can(variant, arguments):
    """transformers makes no gradient where no expert is chosen, and older versions know no sentinel."""
    index, number = arguments["top_k_index"], len(arguments["down_proj"])
    chosen = index < number
    return bool(chosen.any()) and (bool(chosen.all()) or knows_sentinels(variant))


def knows_sentinels(variant):
    call = calls("moe_experts", variant, torch.float32, "cpu")[0]
    call.arguments["top_k_index"] = torch.full_like(call.arguments["top_k_index"], len(call.arguments["down_proj"]))
    try:
        call(STOCK["moe_experts", variant])
    except (RuntimeError, IndexError):
        return False
    return True
