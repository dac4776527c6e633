"""Eager and SDPA attention against the functions that transformers' models call, to the bit.

Older versions of transformers copy the keys for each head of a group while decoding with SDPA, as newer ones and we do
not. There the bits may differ.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations import sdpa_attention
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.llama import modeling_llama

from kernelkit.ops.masks import build_mask
from tests.attention.attention_cases import CASES, SCALING, attention, with_grad

NAMES = ["square", "ungrouped", "left_padding", "packed", "decode_after_left_padding", "prefill_of_a_static_buffer"]
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def assert_same_bits(kernel, theirs, case, mask, dtype, *, up_to=0.0, **arguments):
    """Outputs, weights and gradients of both; ``theirs`` takes a module first, as transformers' functions do."""
    module = SimpleNamespace(num_key_value_groups=4 // case.kv_heads, training=True, is_causal=True)
    results = []
    for attend in (kernel, lambda *inputs, **keywords: theirs(module, *inputs, **keywords)):
        inputs = with_grad(*case.tensors(dtype=dtype))
        output, weights = attend(*inputs, mask, scaling=SCALING, **arguments)
        output.backward(torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype))
        results.append((output, weights, *(tensor.grad for tensor in inputs)))
    for ours, stock in zip(*results, strict=True):
        assert (ours is None and stock is None) or (ours - stock).abs().max() <= up_to


def rounding_while_decoding(case, dtype):
    return 0.0 if hasattr(sdpa_attention, "pack_gqa") or case.q_length > 1 else ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_eager_has_the_bits_of_llama(name, dtype):
    mask = build_mask("additive", CASES[name].visibility(dtype=dtype))
    assert_same_bits(attention("eager")[0], modeling_llama.eager_attention_forward, CASES[name], mask, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_eager_with_a_softcap_has_the_bits_of_gemma2(name, dtype):
    mask = build_mask("additive", CASES[name].visibility(dtype=dtype), sliding_window=4)
    kernel, theirs = attention("eager", "softcap")[0], modeling_gemma2.eager_attention_forward
    assert_same_bits(kernel, theirs, CASES[name], mask, dtype, softcap=2.0, sliding_window=4)


def test_dropout_draws_the_numbers_that_llama_draws():
    mask = build_mask("additive", CASES["square"].visibility())

    def seeded(attend):
        def call(*inputs, **keywords):
            torch.manual_seed(0)
            return attend(*inputs, **keywords)

        return call

    kernel, theirs = seeded(attention("eager")[0]), seeded(modeling_llama.eager_attention_forward)
    assert_same_bits(kernel, theirs, CASES["square"], mask, torch.float32, dropout=0.3)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_sdpa_has_the_bits_of_stock_sdpa(name, dtype):
    mask = build_mask("bool", CASES[name].visibility())
    up_to = rounding_while_decoding(CASES[name], dtype)
    assert_same_bits(attention("sdpa")[0], sdpa_attention.sdpa_attention_forward, CASES[name], mask, dtype, up_to=up_to)


def test_sdpa_takes_a_mask_for_each_head_while_decoding():
    custom = torch.rand(2, 4, 1, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    custom[..., 0] = True
    kernel, theirs = attention("sdpa")[0], sdpa_attention.sdpa_attention_forward
    up_to = rounding_while_decoding(CASES["decode"], torch.float32)
    assert_same_bits(kernel, theirs, CASES["decode"], custom, torch.float32, up_to=up_to)
