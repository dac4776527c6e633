"""What an op is called with in a model's own sizes."""

from __future__ import annotations

import pytest
import torch

from kernelkit.ops.comparison import Call, deviations, run, tensors
from kernelkit.registry import default_registry

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "experts": 4,
    "top_k": 2,
    "vocab_size": 33,
}
ROWS_AND_HALVES = (1, 2, 8, 32, 64, 80)

VARIANTS = [
    pytest.param(op, variant, id=f"{op.name}-{variant}")
    for op in default_registry().ops.values()
    if op.sized_samples is not None
    for variant in op.variants
]


def sized(op, variant, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return Call.of_samples(op, op.sized_samples(variant, SIZES, dtype, torch.device("cpu"), generator))


def reference(op, variant):
    spec = default_registry().get(op.name, variant, "eager")
    return spec.build() if op.on_samples is None else op.on_samples(spec.build(), spec.traits)


def test_every_shipped_op_has_them():
    assert {op.name for op in default_registry().ops.values()} == {param.values[0].name for param in VARIANTS}


@pytest.mark.parametrize(("op", "variant"), VARIANTS)
def test_they_are_few_rows_of_these_sizes_and_the_same_again(op, variant):
    (call,), (again,) = sized(op, variant), sized(op, variant)
    assert all(map(torch.equal, tensors(call.arguments), tensors(again.arguments)))
    assert run(reference(op, variant), call).gradients
    assert {size for tensor in tensors(call.arguments) for size in tensor.shape} <= {*SIZES.values(), *ROWS_AND_HALVES}


@pytest.mark.parametrize(("op", "variant"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager_is_as_good_as_itself_and_better_than_what_is_wrong(op, variant, dtype):
    eager = reference(op, variant)

    def wrong(*arguments, **keywords):
        outputs = eager(*arguments, **keywords)
        scaled = [each if each is None else each * 1.1 for each in outputs] if isinstance(outputs, tuple) else outputs
        return tuple(scaled) if isinstance(outputs, tuple) else outputs * 1.1

    (call,) = sized(op, variant, dtype)
    assert list(deviations(eager, eager, call)) == []
    assert list(deviations(wrong, eager, call)) != []


def test_a_routing_of_zipf_crowds_the_first_expert_and_takes_none_twice():
    op, generator = default_registry().op("moe_experts"), torch.Generator().manual_seed(0)
    sizes = {**SIZES, "experts": 16, "length": 200, "routing": "zipf"}
    (call,) = Call.of_samples(op, op.sized_samples("standard", sizes, torch.float32, torch.device("cpu"), generator))
    index = call.arguments["top_k_index"]
    counts = index.flatten().bincount(minlength=16)
    assert counts[0] == counts.max() > 4 * counts[8:].float().mean()
    assert (index[:, 0] != index[:, 1]).all()
