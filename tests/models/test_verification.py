"""`verify: bind`: a model whose kernels do not agree with eager is not built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelkit import KernelContainer, build_model, default_registry, register_kernel
from kernelkit.containers import Need
from kernelkit.errors import UnverifiedWarning
from kernelkit.kernels.rms_norm.eager import standard
from kernelkit.kernels.swiglu_mlp.eager import silu
from kernelkit.models import AutoModelForCausalLM, verify_kernels
from kernelkit.models.layers.norm import RMSNorm
from kernelkit.models.qwen3 import Qwen3ForCausalLM
from kernelkit.spec import Op
from kernelkit.testing import check_kernel
from tests.containers.fakes import mistakes
from tests.models.families import FAMILIES, our_model, small_config, tokens

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


@pytest.fixture
def registry() -> Any:
    """The shipped kernels, and some that are wrong."""
    catalogue = default_registry().copy()
    register = {name: register_kernel("rms_norm", name, registry=catalogue) for name in ("scaled", "lazy", "fragile")}
    register["scaled"](lambda states, weight, eps: 1.05 * standard(states, weight, eps))
    register["lazy"](lambda states, weight, eps: standard(states, weight.detach(), eps))
    register["fragile"](fragile)
    register_kernel("swiglu_mlp", "wide", variant="silu", registry=catalogue)(lambda gate, up: silu(gate, up).float())
    return catalogue


def fragile(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if states.shape[-1] != 32:
        raise RuntimeError("rows of 32 only")
    return standard(states, weight, eps)


def build(
    ops: Any, registry: Any = None, family: str = "qwen3", dtype: torch.dtype = torch.float32, **more: Any
) -> Any:
    container = KernelContainer.from_config({"verify": "bind", **ops}, registry=registry, device="cpu", dtype=dtype)
    return build_model(small_config(family, **more), kernels=container, device="cpu", dtype=dtype)


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ops", [{}, {"preset": "torch"}], ids=["default", "torch"])
def test_kernels_that_agree_with_eager_build(family: str, ops: dict[str, Any], dtype: torch.dtype) -> None:
    build(ops, family=family, dtype=dtype)


@DTYPES
def test_so_do_windows_and_a_distillation(dtype: torch.dtype) -> None:
    build({"attention": "sdpa"}, family="qwen2", dtype=dtype, **WINDOWS)
    build_model(small_config("qwen3"), kernels={"verify": "bind"}, device="cpu", dtype=dtype, distilled=True)


@DTYPES
@pytest.mark.slow
def test_so_do_compiled_kernels(dtype: torch.dtype) -> None:
    build({"preset": "compile"}, family="qwen3_moe", dtype=dtype)


@pytest.mark.parametrize(
    ("impl", "reason"),
    [
        ("scaled", "called with hidden_states [2, 32, 32], weight [32] in float32: output 0 errs by "),
        ("lazy", "called with hidden_states [2, 32, 32], weight [32] in float32: the gradient of weight errs by "),
        (
            "fragile",
            "called with hidden_states [2, 32, 8], weight [8] in float32: raises RuntimeError: rows of 32 only",
        ),
    ],
)
def test_a_kernel_that_is_wrong_is_refused_with_its_shape_and_its_error(registry: Any, impl: str, reason: str) -> None:
    with pytest.raises(ValueError, match="Qwen3ForCausalLM") as refusal:
        build({"rms_norm": impl}, registry)
    lines = refusal.value.errors()
    assert {(line["loc"], line["type"]) for line in lines} == {(("rms_norm",), "kernel_mismatch")}
    assert any(f"rms_norm: {impl} (named) is not as good as eager, {reason}" in line["msg"] for line in lines)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda gate: gate, "raises TypeError: <lambda>() takes 1 positional argument but 2 were given"),
        (lambda *_, gate: gate, "raises TypeError: <lambda>() missing 1 required keyword-only argument: 'gate'"),
        (lambda *_: None, "raises TypeError: the kernel returns None and no tensor"),
        (lambda *given: (silu(*given), None), "raises TypeError: the kernel returns 2 outputs, and eager 1"),
    ],
    ids=["takes too few", "takes another", "returns nothing", "returns too much"],
)
def test_a_kernel_that_takes_or_returns_something_else_is_refused(registry: Any, kernel: Any, reason: str) -> None:
    register_kernel("swiglu_mlp", "odd", variant="silu", registry=registry)(kernel)
    assert reason in mistakes(lambda: build({"swiglu_mlp": "odd"}, registry))["swiglu_mlp",][1]
    assert "accuracy" in check_kernel(registry.get("swiglu_mlp", "silu", "odd"), device="cpu").failures


def test_all_of_them_are_refused_at_once_each_at_its_choice(registry: Any, tmp_path: Path) -> None:
    file = tmp_path / "ops.yaml"
    file.write_text("swiglu_mlp: wide\nverify: bind\noverrides:\n  layers.1.input_layernorm:\n    rms_norm: scaled\n")
    container = KernelContainer.from_config(file, registry=registry, device="cpu")
    found = mistakes(lambda: build_model(small_config("qwen3"), kernels=container, device="cpu", dtype=torch.bfloat16))
    assert set(found) == {("swiglu_mlp",), ("overrides", "layers.1.input_layernorm", "rms_norm")}
    assert f"{file}:1:1: swiglu_mlp: wide (named)" in found["swiglu_mlp",][1]
    assert (
        "output 0 is [2, 32, 48] in torch.float32, and eager's [2, 32, 48] in torch.bfloat16"
        in (found["swiglu_mlp",][1])
    )
    assert (
        f"{file}:5:5: rms_norm: scaled (overrides layers.1.input_layernorm)"
        in (found["overrides", "layers.1.input_layernorm", "rms_norm"][1])
    )


def test_each_kernel_and_size_is_compared_once(registry: Any) -> None:
    shapes: list[tuple[int, ...]] = []

    def counted(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        shapes.append(tuple(states.shape))
        return standard(states, weight, eps)

    register_kernel("rms_norm", "counted", registry=registry)(counted)
    build({"rms_norm": "counted"}, registry, num_hidden_layers=4)
    assert sorted(shapes) == [(2, 32, 8), (2, 32, 32)]


@pytest.mark.parametrize("op", ["add_rms_norm", "qk_norm_rope"])
def test_fused_ops_are_compared_in_the_models_sizes(registry: Any, op: str) -> None:
    register_kernel(op, "wrong", registry=registry)(
        lambda *arguments: tuple(1.1 * each for each in registry.get(op, "standard", "eager").build()(*arguments))
    )
    found = mistakes(lambda: build({op: "wrong"}, registry))
    assert f"{op}: wrong (named) is not as good as eager" in found[op,][1]
    assert ("[2, 32, 32]" if op == "add_rms_norm" else "query [2, 32, 4, 8], key [2, 32, 2, 8]") in found[op,][1]


def test_a_kernel_without_a_backward_is_compared_forward_for_inference(registry: Any) -> None:
    register_kernel("rms_norm", "forward", registry=registry, inference_only=True)(
        lambda states, weight, eps: F.rms_norm(states.detach(), weight.shape, weight.detach(), eps)
    )
    ops = {"verify": "bind", "rms_norm": "forward"}
    container = KernelContainer.from_config(ops, registry=registry, device="cpu", training=False)
    build_model(small_config("qwen3"), kernels=container, device="cpu")


def test_an_override_of_the_container_is_compared_too() -> None:
    container = KernelContainer.from_config({"verify": "bind"}, device="cpu")
    container.override("attention", lambda query, key, value, mask, **settings: (value.transpose(1, 2), None))
    found = mistakes(lambda: build_model(small_config("qwen2"), kernels=container, device="cpu"))
    assert "attention: <lambda> (override) is not as good as eager" in found["attention",][1]


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_however_a_model_is_made_it_is_verified(registry: Any, tmp_path: Path, surroundings: Any) -> None:
    our_model("qwen3").save_pretrained(tmp_path)
    config, ops = small_config("qwen3"), {"rms_norm": "lazy", "verify": "bind"}
    container = KernelContainer.from_config(ops, registry=registry, device="cpu")
    for make in (
        lambda: build_model(config, kernels=container),
        lambda: build_model(tmp_path, kernels=container),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path, kernels=container),
        lambda: Qwen3ForCausalLM.from_pretrained(tmp_path, kernels=container, output_loading_info=True),
        lambda: Qwen3ForCausalLM(config, kernels=container),
    ):
        with surroundings(), pytest.raises(ValueError, match="the gradient of weight"):
            make()


def test_verifying_changes_neither_weights_nor_random_state() -> None:
    states, models = [], []
    for verify in (None, "bind"):
        torch.manual_seed(3)
        models.append(build_model(small_config("qwen3_moe"), kernels={"verify": verify}, device="cpu"))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))
    assert torch.equal(*(model.eval()(tokens(1, 4)).logits for model in models))
    assert all(parameter.grad is None for parameter in models[1].parameters())


def test_on_the_meta_device_it_is_left_out_with_a_warning_and_can_be_done_later(registry: Any) -> None:
    ops = {"verify": "bind", "rms_norm": "scaled"}
    container = KernelContainer.from_config(ops, registry=registry, device="cpu")
    with pytest.warns(UnverifiedWarning, match="verify: bind was left out on the meta device; call verify_kernels"):
        model = build_model(small_config("qwen3"), kernels=container, device="meta")
    found = mistakes(lambda: verify_kernels(model, container))
    assert found["verify",][0] == "no_device"
    with pytest.raises(ValueError, match="rms_norm: scaled"):
        verify_kernels(model.to_empty(device="cpu"), container)


class Tower(nn.Module):
    def __init__(self, container: KernelContainer) -> None:
        super().__init__()
        self.norm = RMSNorm(24, 1e-6, container.bind([Need("rms_norm")], model="Tower"))


def test_any_tree_of_modules_can_be_verified(registry: Any) -> None:
    container = KernelContainer.from_config({"rms_norm": "scaled"}, registry=registry, device="cpu")
    found = mistakes(lambda: verify_kernels(Tower(container), container))
    assert "hidden_states [2, 32, 24]" in found["rms_norm",][1]


def test_an_op_of_a_plugin_is_compared_by_its_samples_or_said_to_be_without(registry: Any) -> None:
    shipped = registry.op("rms_norm")
    for samples, reason in ((shipped.samples, "hidden_states [2, 5, 64]"), (None, "cannot be compared")):
        registry.register_op(
            Op("rms_norm", shipped.variants, shipped.protocol, samples=samples, location=shipped.location), replace=True
        )
        found = mistakes(lambda: build({"rms_norm": "scaled"}, registry, "qwen2"))
        assert reason in found["rms_norm",][1]


QWEN3_0_6B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 2,
}


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["eager", "torch", "triton", "liger", None])
def test_what_is_shipped_agrees_with_eager_in_a_models_own_sizes_on_a_gpu(preset: str | None) -> None:
    for family, changes in (
        ("qwen3", QWEN3_0_6B),
        ("qwen3_moe", {"hidden_size": 256, "head_dim": 64, "moe_intermediate_size": 128}),
    ):
        for distilled in (False, True):
            build_model(
                small_config(family, **changes),
                kernels={"preset": preset, "verify": "bind"},
                dtype=torch.bfloat16,
                device="cuda",
                distilled=distilled,
            )


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["torch", None])
def test_so_it_does_in_float32_on_a_gpu(preset: str | None) -> None:
    build_model(small_config("qwen3", **QWEN3_0_6B), kernels={"preset": preset, "verify": "bind"}, device="cuda")


@pytest.mark.gpu
def test_a_wrong_kernel_is_refused_on_a_gpu_and_the_random_state_stays(registry: Any) -> None:
    container = KernelContainer.from_config({"rms_norm": "scaled"}, registry=registry, device="cuda")
    model = build_model(small_config("qwen3"), kernels=container, dtype=torch.bfloat16, device="cuda")
    before = torch.cuda.get_rng_state()
    with pytest.raises(ValueError, match="rms_norm: scaled"):
        verify_kernels(model, container)
    assert torch.equal(torch.cuda.get_rng_state(), before)
