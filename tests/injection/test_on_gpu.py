"""On a GPU, in bfloat16: injected models against stock transformers in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernelkit import eject, inject, kernel_report
from tests.injection.stock import stock
from tests.models.test_on_gpu import REALISTIC, SLACK, distance, relative

pytestmark = pytest.mark.gpu

PRESETS = ("eager", "torch", "compile", "liger", "triton")
WIDE = {"moe_intermediate_size": 128, "num_experts": 8, "mlp_only_layers": []}
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 32},
    "gemma3": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 32},
    "qwen3_moe": WIDE,
}


def model_of(family: str) -> Any:
    config = {name: value for name, value in REALISTIC.items() if name not in CHANGES[family]}
    return stock(family, **config, **CHANGES[family]).cuda()


def step(model: Any, family: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    rows = torch.randint(3, 1024, (2, 128), generator=torch.Generator().manual_seed(1)).cuda()
    extra = {"output_router_logits": True} if family == "qwen3_moe" else {}
    extra |= {"return_logits": True} if kernel_report(model).rows else {}
    output = model.train()(input_ids=rows, labels=rows.roll(-1, 1), use_cache=False, **extra)
    output.loss.backward()
    gradients = {name: parameter.grad.float() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return output.loss.detach(), output.logits.detach().float(), gradients


@pytest.mark.parametrize("family", CHANGES)
def test_injected_kernels_are_as_near_to_float32_as_stock_in_bfloat16(family: str) -> None:
    model = model_of(family)
    _, exact, exact_gradients = step(model, family)
    loss, logits, gradients = step(model.to(torch.bfloat16), family)
    for preset in PRESETS:
        # Liger's experts tune themselves for minutes at their first call.
        inject(model, {"preset": preset, "moe_experts": "torch", "allow_unused": True})
        our_loss, our_logits, our_gradients = step(model, family)
        assert "stock" not in kernel_report(model).impls["rms_norm"]
        errors = relative(our_logits, exact) / relative(logits, exact)
        slopes = distance(our_gradients, exact_gradients) / distance(gradients, exact_gradients)
        print(f"{family} {preset}: logits {errors:.3f}, gradients {slopes:.3f} of stock's error; loss {our_loss:.5f}")
        assert errors < SLACK, preset
        assert slopes < SLACK, preset
        assert abs(our_loss - loss) < 5e-3 * loss.abs(), preset
    again = step(eject(model), family)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], logits)


def test_inductor_compiles_an_injected_model_whole() -> None:
    model = inject(model_of("qwen3").to(torch.bfloat16), {"preset": "torch"}, compiled=True)
    rows = torch.randint(3, 1024, (2, 128), generator=torch.Generator().manual_seed(1)).cuda()
    expected = model(input_ids=rows, labels=rows, use_cache=False).loss
    loss = torch.compile(model, fullgraph=True)(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    assert abs(loss - expected) < 5e-3 * expected
