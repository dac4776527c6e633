"""torch.compile over our models: whole graphs, and a neighbour that is not disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kernelkit import Hardware, build_model
from kernelkit.kernels.compiled import problem
from tests.models.families import FAMILIES, assert_close, small_config, tokens

OPS = {"preset": "torch"}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_with(ops: dict[str, str], family: str = "qwen3", **changes: Any) -> Any:
    torch.manual_seed(0)
    return build_model(small_config(family, **changes), kernels=ops, device="cpu", compiled=True)


def step(model: Any, module: Any = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = (model if module is None else module)(tokens(2, 8), labels=tokens(2, 8, seed=1), use_cache=False).loss
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_one_graph(family: str) -> None:
    changes = {"output_router_logits": True} if family == "qwen3_moe" else {}
    model = model_with(OPS, family, **changes)
    loss, gradients = step(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_loss, compiled_gradients = step(model, compiled)
    assert_close(compiled_loss, loss, 1e-5)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        assert_close(one, other, 1e-4)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_there_are_no_graph_breaks_and_one_graph(family: str) -> None:
    model = model_with(OPS, family, **({"output_router_logits": True} if family == "qwen3_moe" else {}))
    explained = torch._dynamo.explain(model)(tokens(2, 8), labels=tokens(2, 8, seed=1), use_cache=False)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_padded_and_packed_batches_compile_whole() -> None:
    model = model_with(OPS).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    mask = torch.tensor([[1] * 8, [0] * 3 + [1] * 5])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        for inputs in ({"attention_mask": mask}, {"position_ids": positions}):
            valid = mask.bool() if "attention_mask" in inputs else torch.ones(2, 8, dtype=torch.bool)
            expected, actual = (run(tokens(2, 8), use_cache=False, **inputs).logits for run in (model, compiled))
            assert_close(actual[valid], expected[valid], 1e-5)


def test_one_compiled_and_one_not_keep_their_kernels() -> None:
    teacher, student = model_with({"preset": "eager"}), model_with(OPS)
    expected = step(teacher)
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    step(student, compiled)
    again = step(teacher)
    assert torch.equal(again[0], expected[0])
    assert all(torch.equal(one, other) for one, other in zip(again[1], expected[1], strict=True))


def test_both_compiled_and_interleaved_keep_their_kernels() -> None:
    teacher, student = model_with({"preset": "eager"}), model_with(OPS)
    # A kernel that doubles what it returns shows at once if the other model's graph is taken.
    for layer in student.model.layers:
        norm = layer.input_layernorm
        norm.__dict__["rms_norm"] = _doubled
    expected = [step(model) for model in (teacher, student)]
    compiled = [torch.compile(model, fullgraph=True, backend="aot_eager") for model in (teacher, student)]
    for _ in range(2):
        for model, module, (loss, gradients) in zip((teacher, student), compiled, expected, strict=True):
            compiled_loss, compiled_gradients = step(model, module)
            assert_close(compiled_loss, loss, 1e-5)
            for one, other in zip(compiled_gradients, gradients, strict=True):
                assert_close(one, other, 1e-4)
    assert abs(expected[0][0] - expected[1][0]) > 1e-3


def test_a_second_model_with_the_same_kernels_does_not_recompile() -> None:
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for _ in range(2):
        model = model_with(OPS)
        torch.compile(model.model.layers[0].input_layernorm, fullgraph=True, backend=frames)(torch.randn(2, 3, 32))
    assert frames.frame_count == 1


def _doubled(hidden_states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return 2 * torch.nn.functional.rms_norm(hidden_states, (hidden_states.shape[-1],), weight, eps)


@pytest.mark.slow
@pytest.mark.skipif(problem(Hardware.detect("cpu")) is not None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_inductor_gives_the_gradients_of_the_plain_model(family: str) -> None:
    model = model_with(OPS, family)
    loss, gradients = step(model)
    compiled_loss, compiled_gradients = step(model, torch.compile(model, fullgraph=True))
    assert_close(compiled_loss, loss, 1e-5)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        assert_close(one, other, 1e-4)
