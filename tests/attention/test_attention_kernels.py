"""Every attention kernel against the definition in float64. Flash-attention is stood in for by plain PyTorch here."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from kernelkit.ops.attention import on_visibility, samples
from kernelkit.ops.masks import Visibility, document_ids
from kernelkit.registry import default_registry
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

KERNELS = {
    "causal": ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"),
    "sliding_window": ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"),
    "softcap": ("eager", "flex_attention", "flash_attention_2", "flash_attention_3"),
}
EVERY_VARIANT = [(variant, name) for variant, names in KERNELS.items() for name in names]
TOLERANCES = {
    ("cpu", torch.float32): 2e-6,
    ("cuda", torch.float32): 1e-4,
    ("cpu", torch.bfloat16): 2e-2,
    ("cuda", torch.bfloat16): 2e-2,
    ("cpu", torch.float16): 3e-3,
    ("cuda", torch.float16): 3e-3,
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

pytestmark = pytest.mark.usefixtures("flash_attn", "flash_attn_interface")


def call(variant, name, case, device="cpu", dtype=torch.float32, tensors=None):
    """The kernel on a case: its output, and the inputs with their gradients for a loss over the real queries."""
    kernel = on_visibility(*attention(name, variant))
    inputs = with_grad(*(case.tensors(device, dtype) if tensors is None else tensors))
    output, _ = kernel(*inputs, case.visibility(device, dtype), scaling=SCALING, **ARGUMENTS[variant])
    return output, inputs


def expected(variant, case, device="cpu", dtype=torch.float32):
    arguments = ARGUMENTS[variant]
    inputs = with_grad(*(tensor.double() for tensor in case.tensors(device, dtype)))
    seen = seen_by_definition(case, arguments.get("sliding_window")).to(device)
    return reference(inputs, seen, arguments.get("softcap")), inputs


def assert_agrees(variant, name, case, device="cpu", dtype=torch.float32):
    output, inputs = call(variant, name, case, device, dtype)
    wanted, doubles = expected(variant, case, device, dtype)
    rows = real_queries(case).to(device)
    output_grad = torch.linspace(-1, 1, output.numel(), device=device).view(output.shape) * rows[..., None, None]
    output.backward(output_grad.to(dtype))
    wanted.backward(output_grad.to(dtype).double())

    assert output.dtype == dtype
    assert_close(output[rows], wanted[rows], TOLERANCES[device, dtype])
    for tensor, double in zip(inputs, doubles, strict=True):
        assert_close(tensor.grad, double.grad, TOLERANCES[device, dtype])


def assert_close(actual, wanted, tolerance):
    """Within a tolerance of the largest magnitude."""
    error = (actual.detach().double() - wanted.detach()).abs().max()
    assert error <= tolerance * max(1.0, float(wanted.detach().abs().max()))


def skip_what_compiles_too_long(name, device):
    if device == "cuda" and name == "flex_attention":
        pytest.skip("each case compiles anew: test_compiled_flex_attention.py has a few of them")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("variant", "name"), EVERY_VARIANT)
def test_output_and_gradients_follow_the_definition(variant, name, case, device):
    skip_what_compiles_too_long(name, device)
    assert_agrees(variant, name, CASES[case], device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("case", ["square", "left_padding", "packed"])
@pytest.mark.parametrize(("variant", "name"), EVERY_VARIANT)
def test_half_precision_follows_the_definition(variant, name, case, dtype, device):
    skip_what_compiles_too_long(name, device)
    assert_agrees(variant, name, CASES[case], device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["left_padding", "a_row_of_padding", "right_padding", "packed_and_padded"])
@pytest.mark.parametrize(("variant", "name"), EVERY_VARIANT)
def test_queries_that_are_padding_give_nothing_that_is_not_finite(variant, name, case, device):
    skip_what_compiles_too_long(name, device)
    output, inputs = call(variant, name, CASES[case], device)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.parametrize("name", KERNELS["causal"])
def test_a_batch_of_nothing_but_padding_is_finite(name):
    kernel = on_visibility(*attention(name))
    inputs = with_grad(*CASES["square"].tensors())
    visibility = Visibility(2, 9, 9, padding_mask=torch.zeros(2, 9, dtype=torch.bool))
    output, _ = kernel(*inputs, visibility, scaling=SCALING)
    output.sum().backward()
    assert output.isfinite().all()
    assert inputs[0].grad.isfinite().all()


@pytest.mark.parametrize(("variant", "name"), EVERY_VARIANT)
def test_packed_documents_do_not_see_each_other(variant, name):
    case = CASES["packed"]
    query, key, value = case.tensors()
    output, _ = call(variant, name, case)
    # Row 0 holds documents at 0-2, 3-6 and 7-8; the first becomes another one.
    key, value = key.clone(), value.clone()
    key[0, :, :3], value[0, :, :3] = 1e3, -1e3
    changed, _ = call(variant, name, case, tensors=(query, key, value))
    assert torch.equal(output[0, 3:], changed[0, 3:])
    assert not torch.allclose(output[0, :3], changed[0, :3])


@pytest.mark.parametrize(("variant", "name"), EVERY_VARIANT)
def test_a_packed_document_is_computed_as_if_alone(variant, name):
    case = CASES["packed"]
    output, _ = call(variant, name, case)
    kernel = on_visibility(*attention(name, variant))
    alone = [tensor[:1, :, 3:7] for tensor in case.tensors()]
    apart, _ = kernel(*alone, Visibility(1, 4, 4), scaling=SCALING, **ARGUMENTS[variant])
    assert_close(output[:1, 3:7], apart.double(), 1e-6)


@pytest.mark.parametrize("case", ["square", "left_padding", "decode_after_left_padding", "packed"])
@pytest.mark.parametrize("name", KERNELS["causal"])
def test_inputs_and_the_incoming_gradient_are_left_as_they_were(name, case):
    output, inputs = call("causal", name, CASES[case])
    output_grad = torch.randn_like(output)
    before = [tensor.detach().clone() for tensor in (*inputs, output_grad)]
    output.backward(output_grad)
    assert all(torch.equal(now, then) for now, then in zip((*inputs, output_grad), before, strict=True))


@pytest.mark.parametrize("name", KERNELS["causal"])
def test_a_second_backward_gives_the_same_gradients(name):
    output, inputs = call("causal", name, CASES["left_padding"])
    first = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(output.sum(), inputs)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize(("variant", "name"), EVERY_VARIANT)
def test_the_sample_calls_agree_with_eager(variant, name):
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    calls, same = (samples(variant, torch.float32, torch.device("cpu"), generator) for generator in generators)
    for (arguments, keywords), (again, _) in zip(calls, same, strict=True):
        wanted, _ = on_visibility(*attention("eager", variant))(*again, **keywords)
        output, _ = on_visibility(*attention(name, variant))(*arguments, **keywords)
        assert_close(output, wanted.double(), 2e-6)


@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_2", "flash_attention_3"])
def test_query_and_key_left_in_float32_by_autocast_take_the_dtype_of_value(name):
    kernel = on_visibility(*attention(name))
    query, key, value = CASES["left_padding"].tensors()
    output, _ = kernel(query, key, value.bfloat16(), CASES["left_padding"].visibility(), scaling=SCALING)
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["eager", "flex_attention"])
def test_a_kernel_that_is_given_no_mask_for_several_queries_refuses_to_look_ahead(name):
    kernel, kind = attention(name)
    with pytest.raises(ValueError, match=rf"attention: {name} needs the mask that build_mask\('{kind}'"):
        kernel(*CASES["square"].tensors(), None, scaling=SCALING)


def test_sdpa_refuses_a_softcap():
    kernel, _ = attention("sdpa")
    with pytest.raises(ValueError, match="sdpa has no softcap"):
        kernel(*CASES["square"].tensors(), None, scaling=SCALING, softcap=2.0)


@pytest.mark.parametrize("name", ["flex_attention", "flash_attention_3"])
def test_a_kernel_without_dropout_refuses_it(name):
    kernel = on_visibility(*attention(name))
    with pytest.raises(ValueError, match=f"{name} has no dropout"):
        kernel(*CASES["square"].tensors(), CASES["square"].visibility(), scaling=SCALING, dropout=0.1)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_dropout_drops_weights(name):
    kernel = on_visibility(*attention(name))
    torch.manual_seed(0)
    dropped, _ = kernel(*CASES["square"].tensors(), CASES["square"].visibility(), scaling=SCALING, dropout=0.5)
    whole, _ = kernel(*CASES["square"].tensors(), CASES["square"].visibility(), scaling=SCALING)
    assert not torch.allclose(dropped, whole)


def test_only_eager_says_that_it_returns_weights_and_it_does():
    specs = default_registry().list("attention")
    assert {spec.name for spec in specs if spec.traits.get("weights")} == {"eager"}
    kernel = on_visibility(*attention("eager"))
    _, weights = kernel(*CASES["square"].tensors(), CASES["square"].visibility(), scaling=SCALING)
    assert weights.shape == (2, 4, 9, 9)
    assert torch.allclose(weights.sum(-1), torch.ones(()))


def test_kernels_copy_and_pickle():
    for name in ("eager", "sdpa", "flex_attention"):
        kernel, kind = attention(name)
        for twin in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
            arguments = (*CASES["square"].tensors(), CASES["square"].visibility())
            ours, theirs = (on_visibility(one, kind)(*arguments, scaling=SCALING)[0] for one in (kernel, twin))
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention"])
def test_mask_and_kernel_trace_in_one_graph(name, padded, fresh_compiler):
    kernel = on_visibility(*attention(name))
    padding = CASES["left_padding"].facts["padding_mask"] if padded else None

    def forward(inputs, padding_mask):
        query, key, value = inputs
        visibility = Visibility(2, query.shape[2], key.shape[2], padding_mask=padding_mask, device=query.device)
        return kernel(query, key, value, visibility, scaling=SCALING)[0]

    inputs = with_grad(*CASES["left_padding"].tensors())
    traced = torch.compile(forward, fullgraph=True, backend="aot_eager")(inputs, padding)
    eagerly = forward(inputs, padding)
    assert_close(traced, eagerly.double(), 1e-6)
    grads = [torch.autograd.grad(output.sum(), inputs) for output in (traced, eagerly)]
    for traced_grad, grad in zip(*grads, strict=True):
        assert_close(traced_grad, grad.double(), 1e-6)


def test_packed_documents_and_a_static_cache_trace_in_one_graph(fresh_compiler):
    kernel = on_visibility(*attention("sdpa"))

    def forward(inputs, position_ids, q_offset):
        query, key, value = inputs
        documents = None if position_ids is None else document_ids(position_ids)
        visibility = Visibility(2, query.shape[2], key.shape[2], q_offset=q_offset, document_ids=documents)
        return kernel(query, key, value, visibility, scaling=SCALING)[0]

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1]] * 2)
    packed = (CASES["square"].tensors(), positions, 0)
    static = (CASES["decode_in_a_static_buffer"].tensors(), None, torch.tensor(7))
    for arguments in (packed, static):
        assert_close(compiled(*arguments), forward(*arguments).double(), 1e-6)
