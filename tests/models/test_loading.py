"""Models are saved and loaded as stock transformers' are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from kernelkit import KernelContainer, OpsConfig, build_model, kernel_report
from kernelkit.models import AutoModelForCausalLM
from tests.models.families import EAGER, FAMILIES, MOE, assert_close, our_model, pair, small_config, tokens

families = pytest.mark.parametrize("family", FAMILIES)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens(2, 6)).logits


@families
def test_what_we_save_stock_transformers_loads(family: str, tmp_path: Path) -> None:
    _, ours = pair(family)
    ours.save_pretrained(tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(stock).__module__.startswith("transformers.")
    assert_close(logits(stock), logits(ours), 1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (transformers.LlamaForCausalLM, "not the class LlamaForCausalLM"),
        (torch.nn.Linear(1, 1), "not a Linear"),
        ({"model_type": "llama"}, "not a dict"),
    ],
    ids=["class", "module", "dict"],
)
def test_a_model_is_built_of_a_config_or_a_path_and_of_nothing_else(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"takes an HF config or the path of a checkpoint, {message}$"):
        build_model(given)


def test_who_gives_a_stock_model_is_told_of_inject() -> None:
    with pytest.raises(TypeError, match="not a Qwen3ForCausalLM; give a stock model kernels of its own with inject"):
        build_model(pair("qwen3")[0])


def test_a_dtype_is_torchs_or_the_configs() -> None:
    assert build_model(small_config("qwen3", dtype="bfloat16"), dtype="auto").dtype == torch.bfloat16
    assert build_model(small_config("qwen3"), dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'bf16' is not a torch dtype, such as 'bfloat16'"):
        build_model(small_config("qwen3"), dtype="bf16")


@families
def test_what_stock_transformers_saves_we_load(family: str, tmp_path: Path) -> None:
    stock, _ = pair(family)
    stock.save_pretrained(tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, kernels=EAGER)
    assert_close(logits(ours), logits(stock))
    again = build_model(tmp_path, kernels=EAGER)
    assert torch.equal(logits(again), logits(ours))


@families
def test_loading_leaves_nothing_uninitialised(family: str, tmp_path: Path) -> None:
    _, ours = pair(family)
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.endswith(_MISSING)}
    assert len(state) < len(ours.state_dict())
    ours.save_pretrained(tmp_path, state_dict=state)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, kernels=EAGER)
    for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert tensor.device.type == "cpu", name
        assert torch.isfinite(tensor).all(), name
    norm = dict(loaded.named_parameters())["model.layers.0.input_layernorm.weight"]
    assert torch.equal(norm, torch.ones_like(norm))
    projection = dict(loaded.named_parameters())["model.layers.1.self_attn.q_proj.weight"]
    assert 0.01 < projection.std() < 0.04
    assert torch.equal(loaded.model.rotary_emb.inv_freq, ours.model.rotary_emb.inv_freq)


_MISSING = ("input_layernorm.weight", "layers.1.self_attn.q_proj.weight", "mlp.gate.weight")


def test_missing_experts_are_initialised(tmp_path: Path) -> None:
    _, ours = pair("qwen3_moe")
    state = {name: tensor for name, tensor in ours.state_dict().items() if "layers.0.mlp.experts" not in name}
    ours.save_pretrained(tmp_path, state_dict=state)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, kernels=EAGER)
    for tensor in loaded.model.layers[0].mlp.experts.parameters():
        assert 0.01 < tensor.std() < 0.04


@families
def test_the_dtype_and_the_device_are_those_asked_for(family: str, tmp_path: Path) -> None:
    built = build_model(small_config(family), kernels=EAGER, dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in built.parameters()} == {torch.bfloat16}
    built.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, kernels=EAGER, dtype=torch.float32, device_map="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_model_can_be_built_on_the_meta_device() -> None:
    model = build_model(small_config("qwen3"), kernels=EAGER, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_config_of_a_model_is_its_own() -> None:
    config = small_config("qwen3")
    first, second = (build_model(config, kernels={"attention": name}, device="cpu") for name in ("eager", "sdpa"))
    assert first.config is not config
    assert first.config is not second.config
    assert first.config is first.model.config
    assert (first.config._attn_implementation, second.config._attn_implementation) == ("eager", "sdpa")
    assert config._attn_implementation is None


@families
def test_a_config_that_a_stock_model_was_built_from_builds_ours(family: str) -> None:
    config = small_config(family)
    stock = transformers.AutoModelForCausalLM.from_config(config)
    ours = build_model(stock.config, kernels=EAGER, device="cpu")
    assert kernel_report(ours).impls["attention"] == {"eager"}
    assert stock.config._attn_implementation == "sdpa"


def test_kernels_may_be_given_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "ops.yaml"
    file.write_text("rms_norm: torch\n")
    forms = [{"rms_norm": "torch"}, OpsConfig(rms_norm="torch"), file, str(file)]
    forms.append(KernelContainer.from_config(OpsConfig(rms_norm="torch"), device="cpu"))
    for form in forms:
        assert kernel_report(our_model("qwen3", form)).impls["rms_norm"] == {"torch"}


def test_only_the_named_ops_change() -> None:
    report = kernel_report(our_model("qwen3_moe", {"rms_norm": "torch"}))
    assert report.impls == {
        "rms_norm": {"torch"},
        "add_rms_norm": {"eager"},
        "attention": {"sdpa"},
        "rotary_pos_emb": {"eager"},
        "qk_norm_rope": {"eager"},
        "moe_router": {"eager"},
        "moe_experts": {"torch"},
        "cross_entropy_loss": {"eager"},
        "load_balancing_loss": {"eager"},
    }
    assert {row.why for row in report.rows if row.op == "rms_norm"} == {"named"}
    assert {row.why for row in report.rows if row.op != "rms_norm"} == {"default"}


def test_an_op_that_the_model_lacks_is_an_error_unless_allowed() -> None:
    with pytest.raises(ValidationError, match="Qwen3ForCausalLM has no use for 'moe_experts'"):
        our_model("qwen3", {"moe_experts": "eager"})
    with pytest.warns(UserWarning, match="moe_experts"):
        our_model("qwen3", {"moe_experts": "eager", "allow_unused": True})


def test_a_family_that_is_not_here_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="'gpt2'; it has: llama, qwen2, qwen3, qwen3_moe"):
        build_model(transformers.GPT2Config())


@pytest.mark.parametrize("switch", [{"attn_implementation": "eager"}, {"use_kernels": True}])
def test_the_global_switches_of_transformers_are_refused(switch: dict[str, Any], tmp_path: Path) -> None:
    _, ours = pair("qwen3")
    ours.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="kernels=OpsConfig"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **switch)


def test_an_activation_without_a_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="relu"):
        build_model(small_config("llama", hidden_act="relu"), device="cpu")
    with pytest.raises(ValueError, match="relu"):
        build_model(small_config("qwen3_moe", hidden_act="relu"), device="cpu")


def test_set_attn_implementation_rebinds_and_reports() -> None:
    _, ours = pair("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    before = logits(ours)
    ours.set_attn_implementation("sdpa")
    assert kernel_report(ours).impls["attention"] == {"sdpa"}
    assert ours.config._attn_implementation == "sdpa"
    assert_close(logits(ours), before, 1e-5)
    ours.set_attn_implementation("auto")
    assert ours.config._attn_implementation == "sdpa"
    with pytest.raises(ValidationError, match="Did you mean 'sdpa'"):
        ours.set_attn_implementation("spda")


def test_what_a_family_says_it_needs_is_what_its_modules_take() -> None:
    for family in FAMILIES:
        for changes in ({}, {"use_sliding_window": True, "sliding_window": 4}, MOE | {"mlp_only_layers": [0]}):
            if family == "llama" or (family != "qwen3_moe" and "num_experts" in changes):
                changes = {}
            model = our_model(family, **changes)
            taken = {(row.op, row.variant) for row in kernel_report(model).rows}
            assert taken == {(need.op, need.variant) for need in model.kernel_needs(model.config)}
