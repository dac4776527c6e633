"""Routings and sizes that tell the experts' implementations apart, and what they must not do on a GPU."""

from __future__ import annotations

import pytest
import torch

from kernelkit.ops.comparison import Call
from kernelkit.registry import default_registry
from tests.kernels.judge import (
    DEVICES,
    HALF,
    INTERPRETED,
    assert_as_good_as_eager,
    built,
    judged_kernels,
    run,
    tensors,
)

OURS = [each for each in judged_kernels("moe_experts") if each.values[0].name in ("torch", "triton", "quack")]
each_of_ours = pytest.mark.parametrize("spec", OURS)
each_of_triton = pytest.mark.parametrize("spec", [each for each in OURS if each.values[0].name == "triton"])
each_device = pytest.mark.parametrize("device", DEVICES)


def zipf(device, tokens, top_k=2, experts=8):
    """Expert n is chosen in proportion to 1 / n."""
    odds = 1 / torch.arange(1, experts + 1, device=device, dtype=torch.float32)
    return torch.multinomial(odds.expand(tokens, -1), top_k, generator=torch.Generator(device).manual_seed(1))


def call_with(variant, index, hidden=48, width=40, experts=8):
    """A call of ``experts`` with one token for each row of ``index``."""
    op, device = default_registry().op("moe_experts"), index.device
    generator = torch.Generator(device).manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": width, "experts": experts, "top_k": 1}
    (call,) = Call.of_samples(op, op.sized_samples(variant, sizes, HALF, device, generator))
    states = torch.randn(len(index), hidden, generator=generator, device=device).to(HALF)
    weights = torch.rand(index.shape, generator=generator, device=device).to(HALF)
    call.arguments |= {"hidden_states": states, "top_k_index": index, "top_k_weights": weights}
    return call


@each_device
@each_of_ours
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_a_skewed_batch_with_any_number_of_choices(spec, top_k, device):
    assert_as_good_as_eager(built(spec, device, HALF), spec, call_with(spec.variant, zipf(device, 37, top_k)))


@each_device
@each_of_ours
def test_all_tokens_on_the_last_expert(spec, device):
    index = torch.full((150, 1), 7, device=device)
    assert_as_good_as_eager(built(spec, device, HALF), spec, call_with(spec.variant, index))


@each_device
@each_of_ours
def test_five_hundred_and_twelve_experts(spec, device):
    index = 14 * torch.arange(36, device=device).view(9, 4)
    call = call_with(spec.variant, index, hidden=16, width=16, experts=512)
    assert_as_good_as_eager(built(spec, device, HALF), spec, call)


@each_device
@each_of_ours
def test_a_sentinel_gives_the_weight_of_its_choice_no_gradient(spec, device):
    index = zipf(device, 12)
    index = torch.where(index > 0, 8, index)
    of_weights = run(built(spec, device, HALF), call_with(spec.variant, index)).gradients[1]
    assert of_weights[index == 8].count_nonzero() == 0
    assert of_weights[index < 8].count_nonzero() > 0


@each_device
@each_of_ours
@pytest.mark.parametrize("frozen", ["gate_up_proj", "down_proj"])
def test_what_is_frozen_changes_no_other_gradient(spec, frozen, device):
    kernel, call = built(spec, device, HALF), call_with(spec.variant, zipf(device, 12))
    trained = dict(zip(dict(call.named_leaves()), run(kernel, call).gradients, strict=True))
    leaves = {name: leaf.requires_grad_(not name.startswith(frozen)) for name, leaf in call.named_leaves()}
    outputs = call(kernel)
    torch.autograd.backward(outputs, call.cotangents_of(outputs))
    for name, leaf in leaves.items():
        assert leaf.grad is None if name.startswith(frozen) else torch.equal(leaf.grad, trained[name])


@each_device
@each_of_ours
def test_what_is_no_number_stays_with_its_expert(spec, device):
    index = torch.arange(48, device=device).view(24, 2) % 6
    call = call_with(spec.variant, index)
    call.arguments["hidden_states"][0] = torch.nan  # its experts are the first two
    for of_weight in run(built(spec, device, HALF), call).gradients[2:4]:
        assert of_weight[:2].isnan().any()
        assert of_weight[2:].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["standard", "gpt_oss"])
def test_inductor_may_fuse_what_it_likes_around_the_products(variant):
    spec = default_registry().get("moe_experts", variant, "torch")
    kernel = torch.compile(built(spec, "cpu", HALF), fullgraph=True)
    # In other strides than eager's, an odd number of rows would be refused.
    assert_as_good_as_eager(kernel, spec, call_with(variant, zipf("cpu", 37, 1)))


@each_device
@each_of_triton
@pytest.mark.parametrize("width", [40, 37])
def test_pointers_do_where_the_device_copies_no_tensors(spec, width, device, monkeypatch):
    kernel = built(spec, device, HALF)
    monkeypatch.setattr("kernelkit.kernels.moe_experts.triton_grouped_kernels.takes_tma", lambda _: False)
    assert_as_good_as_eager(kernel, spec, call_with(spec.variant, zipf(device, 21), width=width))


@each_device
@each_of_triton
@pytest.mark.parametrize(
    "change", [{"rows": 16, "columns": 32, "depth": 16, "group": 3}, {"rows": 32, "warps": 4}], ids=str
)
def test_blocks_change_no_result(spec, change, device, monkeypatch):
    kernel = built(spec, device, HALF)
    from kernelkit.kernels.moe_experts import triton_blocks_kernels as module

    monkeypatch.setattr(module, "BLOCKS", module.BLOCKS._replace(**change))
    assert_as_good_as_eager(kernel, spec, call_with(spec.variant, zipf(device, 45)))


@each_of_ours
def test_no_more_than_gate_and_up_is_kept_for_the_backward(spec):
    device = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
    kernel, call = built(spec, device, HALF), call_with(spec.variant, zipf(device, 64, 4))
    given = call.map(lambda tensor: tensor.requires_grad_(tensor.is_floating_point()))
    inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors(given.arguments)}
    kept = {}

    def keep(tensor):
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in inputs:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        given(kernel)
    assert sum(kept.values()) <= 64 * 4 * 2 * 40


@pytest.mark.gpu
@each_of_ours
def test_nothing_waits_for_the_device(spec):
    kernel, call = built(spec, "cuda", HALF), call_with(spec.variant, zipf("cuda", 200))
    run(kernel, call)  # what is compiled at the first call may wait
    call.cotangents[0] = call.cotangents[0].cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(kernel, call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@each_of_ours
def test_a_cuda_graph_follows_a_new_routing(spec):
    kernel, call = built(spec, "cuda", HALF), call_with(spec.variant, zipf("cuda", 200))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(kernel, call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    call.cotangents_of(list(call(kernel)))
    call.cotangents[0] = call.cotangents[0].cuda()
    with torch.cuda.graph(graph):
        captured = run(kernel, call)
    call.arguments["top_k_index"].copy_(call.arguments["top_k_index"].flip(0))
    graph.replay()
    expected = run(kernel, call)
    for found, right in zip(
        [*captured.outputs, *captured.gradients], [*expected.outputs, *expected.gradients], strict=True
    ):
        assert torch.equal(found, right)


@pytest.mark.gpu
@each_of_ours
@pytest.mark.parametrize("tokens", [512, 3001])
def test_real_sizes_in_bfloat16(spec, tokens):
    call = call_with(spec.variant, zipf("cuda", tokens, 8, 64), 1024, 512, 64)
    assert_as_good_as_eager(built(spec, "cuda", HALF), spec, call)
