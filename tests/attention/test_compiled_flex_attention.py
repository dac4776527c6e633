"""flex_attention where it is compiled: by any backend for how often it compiles, by Triton for what it computes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from kernelkit.kernels.attention.flex_attention import FlexAttention, FlexAttentionOptions
from kernelkit.ops.attention import on_visibility
from kernelkit.ops.masks import Visibility, build_mask
from tests.attention.attention_cases import (
    ARGUMENTS,
    CASES,
    SCALING,
    attention,
    real_queries,
    reference,
    seen_by_definition,
    with_grad,
)


@pytest.fixture
def as_on_a_gpu(monkeypatch, fresh_compiler):
    """The way that tensors on a GPU take, for tensors on a CPU that need no gradient."""
    attend_on = FlexAttention._attend_on
    monkeypatch.setattr(FlexAttention, "_attend_on", lambda self, device: attend_on(self, torch.device("cuda")))


@pytest.fixture
def counter(monkeypatch, as_on_a_gpu):
    """Compile with a backend that counts its graphs and runs them as they are."""
    counting = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    return counting


def decode(kernel, length, sliding_window=4):
    visibility = Visibility(1, 1, length + 1, q_offset=length, padding_mask=torch.arange(length + 1)[None] > 1)
    query, key, value = torch.randn(1, 4, 1, 16), torch.randn(1, 2, length + 1, 16), torch.randn(1, 2, length + 1, 16)
    mask = build_mask("block", visibility, sliding_window)
    output, _ = kernel(query, key, value, mask, scaling=SCALING)
    wanted = reference(
        (query, key, value), torch.arange(length + 1)[None, None, None] > max(1, length - sliding_window)
    )
    assert torch.allclose(output.double(), wanted, atol=2e-6)


def test_decoding_steps_do_not_each_compile_anew(counter):
    kernel = FlexAttention(FlexAttentionOptions())
    for length in range(6, 12):
        decode(kernel, length)
    assert counter.frame_count <= 2


def test_layers_with_different_windows_share_one_kernel(counter):
    kernel = FlexAttention(FlexAttentionOptions())
    for sliding_window in (3, 4, 5):
        decode(kernel, 9, sliding_window)
    assert counter.frame_count == 1


def test_two_kernels_share_no_compiled_code(counter):
    one, other = FlexAttention(FlexAttentionOptions()), FlexAttention(FlexAttentionOptions())
    decode(one, 6)
    decode(one, 6)
    assert counter.frame_count == 1
    decode(other, 6)
    assert counter.frame_count == 2


@pytest.mark.parametrize("case", ["left_padding", "packed", "decode_in_a_static_buffer"])
@pytest.mark.parametrize("variant", ARGUMENTS)
def test_mask_and_flex_attention_are_one_graph_within_an_outer_compile(variant, case, as_on_a_gpu):
    kernel = on_visibility(*attention("flex_attention", variant))
    facts, inputs = CASES[case].facts, CASES[case].tensors()
    graphs = []

    def forward(inputs, facts):
        visibility = Visibility(2, CASES[case].q_length, CASES[case].kv_length, **facts)
        return kernel(*inputs, visibility, scaling=SCALING, **ARGUMENTS[variant])[0]

    def remember(graph, example_inputs):
        graphs.append(graph)
        return graph

    output = torch.compile(forward, fullgraph=True, backend=remember)(inputs, facts)
    seen = seen_by_definition(CASES[case], ARGUMENTS[variant].get("sliding_window"))
    wanted = reference(inputs, seen, ARGUMENTS[variant].get("softcap"))
    rows = real_queries(CASES[case])
    assert torch.allclose(output.double()[rows], wanted[rows], atol=2e-6)
    assert [str(node.target) for graph in graphs for node in graph.graph.nodes].count("flex_attention") == 1


def test_options_reach_torch_by_its_names():
    options = FlexAttentionOptions(block_m=64, block_n=32, num_stages=1)
    assert options.kernel_options(1) == {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "num_stages": 1}
    assert FlexAttentionOptions().kernel_options(1) is None


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", ARGUMENTS)
def test_compiled_by_triton_it_follows_the_definition(variant, dtype, fresh_compiler):
    kernel = on_visibility(*attention("flex_attention", variant))
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for name in ("square", "padding_across_blocks", "left_padding", "packed", "chunk_after_left_padding"):
        case, arguments = CASES[name], ARGUMENTS[variant]
        inputs = with_grad(*case.tensors("cuda", dtype))
        doubles = with_grad(*(tensor.double() for tensor in inputs))
        output, _ = kernel(*inputs, case.visibility("cuda", dtype), scaling=SCALING, **arguments)
        seen = seen_by_definition(case, arguments.get("sliding_window")).cuda()
        wanted = reference(doubles, seen, arguments.get("softcap"))
        rows = real_queries(case).cuda()
        (output * rows[..., None, None]).sum().backward()
        (wanted * rows[..., None, None]).sum().backward()
        assert output.isfinite().all()
        assert (output[rows].double() - wanted[rows]).abs().max() <= tolerance
        for tensor, double in zip(inputs, doubles, strict=True):
            assert (tensor.grad.double() - double.grad).abs().max() <= tolerance * max(
                1.0, float(double.grad.abs().max())
            )


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("case", ["left_padding", "packed"])
def test_within_an_outer_compile_it_becomes_part_of_the_graph(case, fresh_compiler):
    kernel = on_visibility(*attention("flex_attention"))
    facts = {name: fact.cuda() for name, fact in CASES[case].facts.items()}

    def forward(inputs, facts):
        query, key, value = inputs
        visibility = Visibility(2, query.shape[2], key.shape[2], **facts, device=query.device)
        return kernel(query, key, value, visibility, scaling=SCALING)[0]

    inputs = with_grad(*CASES[case].tensors("cuda"))
    compiled, eagerly = torch.compile(forward, fullgraph=True)(inputs, facts), forward(inputs, facts)
    grads = [torch.autograd.grad(output.sum(), inputs) for output in (compiled, eagerly)]
    assert torch.allclose(compiled, eagerly, atol=1e-4)
    assert all(torch.allclose(one, two, atol=1e-4) for one, two in zip(*grads, strict=True))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2, 7])
def test_any_number_of_heads_may_share_a_key(kv_heads, fresh_compiler):
    kernels = [on_visibility(*attention(name)) for name in ("flex_attention", "sdpa")]
    shapes = ((2, 14, 70, 32), (2, kv_heads, 70, 32), (2, kv_heads, 70, 32))
    inputs = [torch.randn(shape, device="cuda") for shape in shapes]
    ours, theirs = (
        kernel(*inputs, Visibility(2, 70, 70, device=torch.device("cuda")), scaling=0.2)[0] for kernel in kernels
    )
    assert torch.allclose(ours, theirs, atol=1e-4)
