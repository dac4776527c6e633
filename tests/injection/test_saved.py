"""An injected model comes back with the kernels that it was saved with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers

from kernelkit import build_model, inject, kernel_report
from kernelkit.errors import SavedKernelsWarning
from kernelkit.models import injected
from tests.injection.stock import FAMILIES, stock
from tests.models.families import EAGER, tokens

OVERRIDES = {"overrides": {"layers.0.input_layernorm": {"rms_norm": "eager"}}}


def kernels(model: Any) -> list[tuple[str, str, str, str]]:
    return [(row.module, row.op, row.variant, row.impl) for row in kernel_report(model).rows]


def test_saved_it_has_its_kernels_beside_the_weights(tmp_path: Path) -> None:
    ops = {"swiglu_mlp": "eager", "overrides": {"layers.0.self_attn": {"attention": "eager"}}}
    model = inject(stock("qwen3"), ops)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "kernelkit.json").read_text())["ops"]
    # What stays with transformers elsewhere is a rule for the one module, and no choice for all.
    assert saved == {"swiglu_mlp": "eager", "overrides": {"model.layers.0.self_attn": {"attention": "eager"}}}
    again = inject(stock("qwen3"), saved)
    assert kernel_report(again).impls == kernel_report(model).impls
    built = kernel_report(build_model(tmp_path, kernels="saved"))
    assert built.impls["swiglu_mlp"] == {"eager"} and built.impls["attention"] == {"eager", "sdpa"}


def test_it_is_injected_again_with_the_kernels_that_it_was_saved_with(tmp_path: Path) -> None:
    ops = {"swiglu_mlp": "eager", "overrides": {"layers.0.self_attn": {"attention": "eager"}}}
    model = inject(stock("qwen3"), ops)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with injected(again, "saved"):
        assert kernel_report(again).impls == kernel_report(model).impls
        assert torch.equal(again.eval()(tokens(2, 6)).logits, model.eval()(tokens(2, 6)).logits)
    with pytest.raises(ValueError, match="this model was not loaded from one: name them"):
        inject(stock("qwen3"), "saved")
    (tmp_path / "kernelkit.json").unlink()
    with pytest.raises(ValueError, match=r"has no kernelkit\.json"):
        inject(again, "saved")


def test_what_was_saved_by_a_model_of_ours_is_injected_into_a_stock_one(tmp_path: Path) -> None:
    built = build_model(stock("qwen3").config, kernels={**EAGER, "distillation_loss": "chunked"}, distilled=True)
    built.save_pretrained(tmp_path)
    model = inject(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), "saved")
    saved = {op: impls for op, impls in kernel_report(built).impls.items() if op != "distillation_loss"}
    assert kernel_report(model).impls == saved


@pytest.mark.filterwarnings("error::kernelkit.errors.SavedKernelsWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["ForCausalLM", "Model", "ForSequenceClassification"])
def test_whatever_is_named_or_stock_comes_back_the_same(family: str, kind: str, tmp_path: Path) -> None:
    for number, ops in enumerate(({}, {"rms_norm": "torch"}, {**EAGER, "rms_norm": "torch"}, OVERRIDES)):
        model, folder = stock(family, kind), tmp_path / str(number)
        plain = type(model)
        inject(model, ops).save_pretrained(folder)
        again = inject(plain.from_pretrained(folder), "saved")
        assert kernels(again) == kernels(model)


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_losses_that_a_model_has_no_place_for_are_left_out(auto: str, tmp_path: Path) -> None:
    whole = inject(stock("qwen3_moe"), EAGER)
    whole.save_pretrained(tmp_path)
    part = inject(getattr(transformers, auto).from_pretrained(tmp_path), "saved")
    ops = kernel_report(whole).impls
    assert kernel_report(part).impls == {op: ops[op] for op in ops if not op.endswith("_loss")}


def test_any_other_op_without_a_place_is_refused(tmp_path: Path) -> None:
    inject(stock("qwen3"), EAGER).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "kernelkit.json").read_text())
    (tmp_path / "kernelkit.json").write_text(json.dumps({**content, "ops": {"moe_experts": "eager"}}))
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no use for 'moe_experts'"):
        inject(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), "saved")


def test_what_differs_on_this_machine_is_said(tmp_path: Path) -> None:
    inject(stock("qwen3"), EAGER).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "kernelkit.json").read_text())
    content["versions"]["torch"] = "2.0"
    (tmp_path / "kernelkit.json").write_text(json.dumps(content))
    with pytest.warns(SavedKernelsWarning, match=r"saved with its kernels on another machine: torch 2\.0 there"):
        inject(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), "saved")


@pytest.mark.parametrize("how", ["built", "injected"])
@pytest.mark.parametrize("saved_before", [False, True])
def test_what_is_pushed_has_the_kernels_too(how: str, saved_before: bool, hub: list[Any], tmp_path: Path) -> None:
    model = build_model(stock("qwen3").config, kernels=EAGER) if how == "built" else inject(stock("qwen3"), EAGER)
    if saved_before:
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="somebody/model")
    model.push_to_hub("somebody/model")
    for uploaded in hub:
        assert uploaded.keys() >= {"model.safetensors", "config.json"}
        assert json.loads(uploaded["kernelkit.json"])["ops"]["attention"] == "eager"
    assert len(hub) == 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """In the place of the hub: the files of each commit by their names."""
    commits: list[dict[str, bytes]] = []

    def create_commit(*_: Any, operations: list[Any], **__: Any) -> None:
        commits.append({each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in operations})

    def create_repo(self: Any, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    card = huggingface_hub.ModelCard("---\nlibrary_name: transformers\n---\n")
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", lambda *_, **__: card)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    return commits
