"""Some modules of a model have other kernels than the rest."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernelkit import KernelContainer, build_model, default_registry, kernel_report, register_kernel
from kernelkit.containers import Need
from kernelkit.errors import UnusedOpWarning
from kernelkit.models import AutoModelForCausalLM
from kernelkit.models.layers.norm import RMSNorm
from kernelkit.models.overrides import apply_overrides
from kernelkit.models.qwen3 import Qwen3ForCausalLM, Qwen3Model
from tests.containers.fakes import mistakes
from tests.models.families import assert_close, our_model, recording, small_config, stock_model, tokens


def impls(model: nn.Module, op: str) -> dict[str, str]:
    return {row.module.removeprefix("model."): row.impl for row in kernel_report(model).rows if row.op == op}


def with_rules(rules: dict[str, Any], family: str = "qwen3", **settings: Any) -> Any:
    return our_model(family, {"preset": "eager", "overrides": rules}, num_hidden_layers=3, **settings)


def refused(rules: dict[str, Any], family: str = "qwen3", **settings: Any) -> dict[Any, tuple[str, str]]:
    return {loc[1:]: found for loc, found in mistakes(lambda: with_rules(rules, family, **settings)).items()}


def test_a_rule_changes_the_modules_that_it_names_and_no_other() -> None:
    model = with_rules({"layers.[0-1].mlp": {"swiglu_mlp": "compile"}})
    assert impls(model, "swiglu_mlp") == {"layers.0.mlp": "compile", "layers.1.mlp": "compile", "layers.2.mlp": "eager"}
    assert impls(model, "rms_norm").keys() >= {"norm", "layers.0.input_layernorm"}
    assert set(impls(model, "rms_norm").values()) == {"eager"}


def test_the_report_shows_which_rule_has_decided() -> None:
    report = kernel_report(with_rules({"**.q_norm": {"rms_norm": "torch"}}))
    whys = {row.why for row in report.rows if row.module.endswith("q_norm")}
    assert whys == {"overrides **.q_norm"}
    assert "model.layers.{0-2}.self_attn.q_norm" in str(report)


def test_what_the_report_calls_a_module_is_a_pattern() -> None:
    (path,) = [line.split()[0] for line in str(kernel_report(our_model("qwen3"))).splitlines() if "swiglu_mlp" in line]
    assert set(impls(with_rules({path: {"swiglu_mlp": "compile"}}), "swiglu_mlp").values()) == {"eager", "compile"}


def test_layers_whose_attention_reads_another_mask_stay_causal_and_agree() -> None:
    stock = stock_model("qwen3", num_hidden_layers=3)
    ids, padding = tokens(2, 7), torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    expected = stock(ids, attention_mask=padding).logits
    for rules in ({"layers.1": {"attention": "sdpa"}}, {"layers.[0,2]": {"attention": "sdpa"}}):
        ours = with_rules(rules, like=stock)
        assert set(impls(ours, "attention").values()) == {"eager", "sdpa"}
        assert_close(ours(ids, attention_mask=padding).logits[padding > 0], expected[padding > 0])


def test_a_sliding_and_a_full_layer_each_get_their_variant() -> None:
    changes = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    stock = stock_model("qwen2", num_hidden_layers=3, **changes)
    ours = with_rules({"layers.[1-2]": {"attention": "sdpa"}}, "qwen2", like=stock, **changes)
    assert [row.variant for row in kernel_report(ours).rows if row.impl == "sdpa"] == ["sliding_window"] * 2
    assert_close(ours(tokens(2, 9)).logits, stock(tokens(2, 9)).logits)


def test_experts_of_one_layer_have_their_own_kernel() -> None:
    stock = stock_model("qwen3_moe", num_hidden_layers=3)
    ours = with_rules({"layers.1.mlp": {"moe_experts": "torch"}}, "qwen3_moe", like=stock)
    assert impls(ours, "moe_experts")["layers.1.mlp.experts"] == "torch"
    assert_close(ours(tokens(2, 9)).logits, stock(tokens(2, 9)).logits, 1e-5)


def test_the_model_itself_is_covered_by_two_stars() -> None:
    assert impls(with_rules({"**": {"cross_entropy_loss": "compile"}}), "cross_entropy_loss") == {"": "compile"}
    losses = impls(with_rules({"**": {"load_balancing_loss": "compile"}}, "qwen3_moe"), "load_balancing_loss")
    assert losses == {"": "compile"}


def test_however_a_model_is_made_its_overrides_are_applied(tmp_path: Path) -> None:
    ops = {"overrides": {"layers.1.mlp": {"swiglu_mlp": "compile"}}}
    config = small_config("qwen3")
    our_model("qwen3").save_pretrained(tmp_path)
    made = [
        build_model(config, kernels=ops),
        build_model(config, kernels=KernelContainer.from_config(ops, device="cpu")),
        build_model(tmp_path, kernels=ops),
        AutoModelForCausalLM.from_pretrained(tmp_path, kernels=ops),
        Qwen3ForCausalLM(config, kernels=ops),
        Qwen3Model(config, kernels=ops),
    ]
    for model in made:
        assert impls(model, "swiglu_mlp") == {"layers.0.mlp": "eager", "layers.1.mlp": "compile"}
        assert model._source is None


def test_copies_and_pickles_keep_them() -> None:
    model = with_rules({"layers.0": {"attention": "sdpa"}})
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kernel_report(twin) == kernel_report(model)
        assert twin.model.layers[0].self_attn.mask_kind == "bool"
        assert torch.equal(twin(tokens(1, 5)).logits, model(tokens(1, 5)).logits)


def test_an_override_of_the_container_serves_every_module() -> None:
    calls: list[str] = []
    container = KernelContainer.from_config({"overrides": {"layers.0": {"swiglu_mlp": "compile"}}}, device="cpu")
    container.override("swiglu_mlp", recording("swiglu_mlp", calls, "mine"))
    our_model("qwen3", container)(tokens(1, 3))
    assert calls == ["mine", "mine"]


# --- refused


def test_a_path_that_fits_nothing_is_refused_with_those_near_it() -> None:
    found = refused({"layers.[0-3].mpl": {"swiglu_mlp": "compile"}, "layers.7": {"rms_norm": "torch"}})
    assert found["layers.[0-3].mpl", "swiglu_mlp"] == (
        "unmatched_path",
        "no module of Qwen3ForCausalLM at layers.[0-3].mpl calls swiglu_mlp; near it: model.layers.{0-2}.mlp",
    )
    assert "model.layers.{0-2}.input_layernorm" in found["layers.7", "rms_norm"][1]


def test_an_op_that_only_the_model_itself_calls_needs_no_path() -> None:
    kind, message = refused({"lm_head": {"cross_entropy_loss": "compile"}})["lm_head", "cross_entropy_loss"]
    assert kind == "unmatched_path"
    assert message.endswith("the model itself does: name cross_entropy_loss without a path")


def test_two_rules_for_one_module_and_op_are_refused_and_both_named() -> None:
    found = refused({"layers.*": {"swiglu_mlp": "compile"}, "layers.[1-2].mlp": {"swiglu_mlp": "compile"}})
    assert found == {
        ("layers.[1-2].mlp", "swiglu_mlp"): (
            "colliding_paths",
            "layers.* and layers.[1-2].mlp both say what swiglu_mlp is at model.layers.1.mlp; make them fit different "
            "modules",
        )
    }
    assert with_rules({"layers.*": {"rms_norm": "torch"}, "layers.[1-2].mlp": {"swiglu_mlp": "compile"}})


def test_an_op_that_the_model_lacks_is_an_error_unless_allowed(tmp_path: Path) -> None:
    rules = {"layers.*.mlp": {"moe_experts": "torch"}}
    assert refused(rules)["layers.*.mlp", "moe_experts"][0] == "unused_op"
    file = tmp_path / "ops.yaml"
    file.write_text("allow_unused: true\noverrides:\n  layers.*.mlp:\n    moe_experts: torch\n")
    with pytest.warns(UnusedOpWarning, match=r"ops.yaml:4:5: Qwen3ForCausalLM has no use for 'moe_experts'"):
        our_model("qwen3", file)


def test_a_rule_without_the_variant_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "ops.yaml"
    file.write_text("overrides:\n  layers.[5-9].mlp: {swiglu_mlp: eager}\n")
    ((_, message),) = mistakes(lambda: our_model("qwen3", file)).values()
    assert message.startswith(f"{file}:2:22: no module of Qwen3ForCausalLM at layers.[5-9].mlp")


def test_a_part_of_a_fused_op_that_nobody_named_is_not_passed_by() -> None:
    catalogue = default_registry().copy()
    register_kernel("qk_norm_rope", "mine", registry=catalogue)(lambda *arguments: None)
    ops: dict[str, Any] = {"overrides": {"**.q_norm": {"rms_norm": "torch"}}}

    def build(**more: Any) -> Any:
        container = KernelContainer.from_config({**ops, **more}, registry=catalogue, device="cpu")
        return build_model(small_config("qwen3"), kernels=container, device="cpu")

    register_kernel("add_rms_norm", "mine", registry=catalogue)(lambda *arguments: None)
    build(qk_norm_rope="mine")
    build(qk_norm_rope="eager")
    for op in ("qk_norm_rope", "add_rms_norm"):
        catalogue.register_op(replace(catalogue.op(op), default="mine"), replace=True)
    ((kind, message),) = mistakes(build).values()
    assert kind == "bypassed_kernel"
    build(qk_norm_rope="eager")  # the sum and its norm, farther out, are of another module
    assert "model.layers.0.self_attn.q_norm may be passed by: qk_norm_rope: mine (default) computes it too" in message


# --- any tree of modules


class Tower(nn.Module):
    """Two norms of some other library's model."""

    def __init__(self, container: KernelContainer) -> None:
        super().__init__()
        kernels = container.bind([Need("rms_norm")], model="Tower")
        self.blocks = nn.ModuleList(RMSNorm(8, 1e-6, kernels) for _ in range(2))


def test_one_function_serves_any_tree_of_modules_and_changes_all_or_none() -> None:
    container = KernelContainer.from_config({"overrides": {"blocks.1": {"rms_norm": "torch"}}}, device="cpu")
    tower = Tower(container)
    apply_overrides(tower, container)
    assert impls(tower, "rms_norm") == {"blocks.0": "eager", "blocks.1": "torch"}

    rules = {"blocks.0": {"rms_norm": "torch"}, "blocks.2": {"rms_norm": "torch"}}
    container = KernelContainer.from_config({"overrides": rules}, device="cpu")
    tower = Tower(container)
    assert [*mistakes(lambda: apply_overrides(tower, container))] == [("overrides", "blocks.2", "rms_norm")]
    assert impls(tower, "rms_norm") == {"blocks.0": "eager", "blocks.1": "eager"}
