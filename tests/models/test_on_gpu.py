"""On a GPU, in bfloat16: every implementation that runs there, against stock transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from kernelkit import build_model, default_registry, kernel_report
from kernelkit.containers import Need
from kernelkit.containers.resolution import Conditions
from kernelkit.hardware import Hardware
from tests.models.families import CONFIGS, FAMILIES, MOE, SMALL

pytestmark = pytest.mark.gpu

REALISTIC = {
    **SMALL,
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "num_hidden_layers": 3,
}
SLACK = 1.5
"""How much farther from the float32 model than stock transformers in bfloat16 an implementation may be."""


def config_of(family: str, **changes: Any) -> transformers.PreTrainedConfig:
    config_class, _, extra = CONFIGS[family]
    wide = {**extra, "moe_intermediate_size": 128, "num_experts": 8} if extra else extra
    return config_class(**{**REALISTIC, **wide, **changes})


def available(family: str) -> list[tuple[str, str]]:
    """(op, impl) of everything that a model of ``family`` can be given on this machine."""
    registry, conditions = default_registry(), Conditions(Hardware.detect("cuda"))
    needs = build_model(config_of(family), device="meta").kernel_needs(config_of(family))
    return [
        (need.op, spec.name)
        for need in needs
        for spec in registry.list(need.op, need.variant)
        if conditions.problem(spec, Need(need.op, need.variant)) is None
    ]


def batch(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 1024, (2, 128), generator=generator).cuda()
    extra = {"output_router_logits": True} if MOE.keys() & config_of(family).to_dict().keys() else {}
    return {"input_ids": rows, "labels": rows.roll(-1, 1), "use_cache": False, **extra}


def step(model: Any, family: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    model.train()
    output = model(
        **batch(family), **({} if type(model).__module__.startswith("transformers") else {"return_logits": True})
    )
    output.loss.backward()
    gradients = {name: parameter.grad.float() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return output.loss.detach(), output.logits.detach().float(), gradients


def relative(ours: torch.Tensor, stock: torch.Tensor) -> float:
    return ((ours - stock).norm() / stock.norm().clamp(min=1e-12)).item()


def distance(gradients: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Of all parameters' gradients together."""
    return relative(*(torch.cat([every[name].flatten() for name in exact]) for every in (gradients, exact)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_impl_agrees_with_stock_transformers_in_bfloat16(family: str) -> None:
    torch.manual_seed(0)
    stock = CONFIGS[family][1](config_of(family)).cuda()
    _, exact, exact_gradients = step(stock, family)
    loss, logits, gradients = step(stock.to(torch.bfloat16), family)
    for op, impl in available(family):
        ours = build_model(config_of(family), kernels={op: impl}, dtype=torch.bfloat16, device="cuda")
        ours.load_state_dict(stock.state_dict())
        our_loss, our_logits, our_gradients = step(ours, family)
        assert kernel_report(ours).impls[op] == {impl}
        assert relative(our_logits, exact) < SLACK * relative(logits, exact), (op, impl)
        assert abs(our_loss - loss) < 5e-3 * loss.abs(), (op, impl)
        assert distance(our_gradients, exact_gradients) < SLACK * distance(gradients, exact_gradients), (op, impl)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_inductor_compiles_the_whole_model_without_a_break(family: str) -> None:
    torch.manual_seed(0)
    changes = {"output_router_logits": True} if family == "qwen3_moe" else {}
    model = build_model(
        config_of(family, **changes), kernels={"preset": "torch"}, dtype=torch.bfloat16, device="cuda", compiled=True
    )
    expected = step(model, family)
    compiled = torch.compile(model, fullgraph=True)
    loss = compiled(**batch(family)).loss
    loss.backward()
    assert abs(loss - expected[0]) < 5e-3 * expected[0]
    explained = torch._dynamo.explain(model)(**batch(family))
    assert explained.graph_break_count == 0


def test_liger_kernels_compile_whole_and_leave_the_neighbour_alone() -> None:
    torch.manual_seed(0)
    teacher = build_model(config_of("qwen3"), kernels={"preset": "eager"}, dtype=torch.bfloat16, device="cuda")
    student = build_model(
        config_of("qwen3"), kernels={"preset": "liger"}, dtype=torch.bfloat16, device="cuda", compiled=True
    ).train()
    student.load_state_dict(teacher.state_dict())
    expected = step(teacher, "qwen3")
    loss = torch.compile(student, fullgraph=True)(**batch("qwen3")).loss
    loss.backward()
    assert abs(loss - expected[0]) < 5e-3 * expected[0]
    again = step(teacher, "qwen3")
    assert torch.equal(again[0], expected[0])
    assert torch.equal(again[1], expected[1])
