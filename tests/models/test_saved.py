"""The kernels of a model are kept beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kernelkit import KernelContainer, build_model, kernel_report
from kernelkit.errors import SavedKernelsWarning
from kernelkit.models import AutoModelForCausalLM
from kernelkit.models.qwen3_moe import Qwen3MoeForCausalLM
from tests.containers.fakes import mistakes
from tests.models.families import our_model, small_config, tokens

OPS = {
    "attention": "sdpa",
    "rms_norm": "torch",
    "swiglu_mlp": {"impl": "compile", "dynamic": True},
    "overrides": {"layers.0.self_attn": {"attention": "eager"}, "**.k_norm": {"rms_norm": "eager"}},
}


def kernels(model: Any) -> list[tuple[str, str, str]]:
    return [(row.module, row.op, row.impl) for row in kernel_report(model).rows]


def written(folder: Path) -> Any:
    return json.loads((folder / "kernelkit.json").read_text())


def rewrite(folder: Path, **changes: Any) -> None:
    (folder / "kernelkit.json").write_text(json.dumps({**written(folder), **changes}, indent=2))


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    model = our_model("qwen3", OPS, num_hidden_layers=4)
    model.save_pretrained(tmp_path)
    return model


def test_what_is_written_are_the_kernels_of_each_module(saved: Any, tmp_path: Path) -> None:
    content = written(tmp_path)
    assert content["ops"].items() >= {"cross_entropy_loss": "eager", "attention": "sdpa", "rms_norm": "torch"}.items()
    assert content["ops"]["swiglu_mlp"] == {"impl": "compile", "dynamic": True}
    assert content["ops"]["overrides"] == {
        "model.layers.0.self_attn": {"attention": "eager"},
        "model.layers.{0-3}.self_attn.k_norm": {"rms_norm": "eager"},
    }
    assert content["versions"].keys() >= {"kernelkit", "torch", "transformers"}
    assert content["hardware"] == {"device_type": "cpu", "name": "cpu", "capability": None}


@pytest.mark.filterwarnings("error::kernelkit.errors.SavedKernelsWarning")
def test_a_model_is_loaded_with_the_kernels_that_it_was_saved_with(saved: Any, tmp_path: Path) -> None:
    for loaded in (
        build_model(tmp_path, kernels="saved"),
        AutoModelForCausalLM.from_pretrained(str(tmp_path), kernels="saved"),
        type(saved).from_pretrained(tmp_path, kernels="saved"),
    ):
        assert kernels(loaded) == kernels(saved)
        assert torch.equal(loaded(tokens(1, 5)).logits, saved(tokens(1, 5)).logits)
        again = tmp_path / "again"
        loaded.save_pretrained(again)
        assert written(again) == written(tmp_path)


def test_stock_transformers_still_loads_the_folder(saved: Any, tmp_path: Path) -> None:
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(stock(tokens(1, 5)).logits, saved(tokens(1, 5)).logits)


def test_what_was_rebound_is_what_is_saved(saved: Any, tmp_path: Path) -> None:
    saved.set_attn_implementation("eager")
    saved.save_pretrained(tmp_path)
    assert written(tmp_path)["ops"]["attention"] == "eager"
    assert kernels(build_model(tmp_path, kernels="saved")) == kernels(saved)


def test_experts_and_a_distillation_are_saved_too_and_the_latter_need_not_be_loaded(tmp_path: Path) -> None:
    config, ops = small_config("qwen3_moe"), {"moe_experts": "eager", "distillation_loss": "eager"}
    student = build_model(config, kernels=ops, device="cpu", distilled=True)
    student.save_pretrained(tmp_path)
    plain = Qwen3MoeForCausalLM.from_pretrained(tmp_path, kernels="saved")
    assert kernels(plain) == [row for row in kernels(student) if row[1] != "distillation_loss"]
    assert kernels(build_model(tmp_path, kernels="saved", distilled=True)) == kernels(student)


def test_what_differs_on_this_machine_is_said(saved: Any, tmp_path: Path) -> None:
    versions = {**written(tmp_path)["versions"], "torch": "2.0", "quack-kernels": "0.6"}
    hardware = {"device_type": "cuda", "name": "NVIDIA H100", "capability": [9, 0]}
    rewrite(tmp_path, versions=versions, hardware=hardware)
    with pytest.warns(SavedKernelsWarning) as caught:
        build_model(tmp_path, kernels="saved", device="cpu")
    (message,) = [str(each.message) for each in caught if each.category is SavedKernelsWarning]
    assert message.endswith(
        f"another machine: NVIDIA H100 there, cpu here; torch 2.0 there, {written_version('torch')} here; "
        "quack-kernels 0.6 there, none here"
    )


def written_version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


@pytest.mark.parametrize(
    ("ops", "loc", "message"),
    [
        ({"rms_norm": "tirton"}, ("rms_norm",), "3:5: unknown implementation 'tirton' of rms_norm"),
        ({"attention": "flash_attention_3"}, ("attention",), "3:5: attention: flash_attention_3 (named) runs on cuda"),
        ({"moe_experts": "torch"}, ("moe_experts",), "3:5: Qwen3ForCausalLM has no use for 'moe_experts'"),
    ],
)
def test_a_saved_kernel_that_cannot_serve_here_is_refused_like_any_other(
    saved: Any, tmp_path: Path, ops: dict[str, Any], loc: Any, message: str
) -> None:
    rewrite(tmp_path, ops=ops)
    found = mistakes(lambda: build_model(tmp_path, kernels="saved", device="cpu"))
    assert found[loc][1].startswith(f"{tmp_path / 'kernelkit.json'}:{message}")


def test_a_kernel_without_a_name_is_saved_as_such_and_cannot_be_loaded(tmp_path: Path) -> None:
    container = KernelContainer.from_config(device="cpu")
    container.override("swiglu_mlp", lambda gate, up: gate * up)
    our_model("qwen3", container).save_pretrained(tmp_path)
    found = mistakes(lambda: build_model(tmp_path, kernels="saved"))
    assert "unknown implementation 'override <lambda>' of swiglu_mlp" in found["swiglu_mlp",][1]


def test_without_the_file_or_without_a_checkpoint_there_is_nothing_saved(saved: Any, tmp_path: Path) -> None:
    rewrite(tmp_path, ops=None)
    with pytest.raises(ValueError, match="is not what save_pretrained writes: name the kernels"):
        build_model(tmp_path, kernels="saved")
    (tmp_path / "kernelkit.json").unlink()
    with pytest.raises(ValueError, match=r"has no kernelkit.json; it was not saved by a model with kernels"):
        build_model(tmp_path, kernels="saved")
    with pytest.raises(ValueError, match="give its path instead of a config"):
        build_model(small_config("qwen3"), kernels="saved")


def test_only_the_main_process_writes(saved: Any, tmp_path: Path) -> None:
    saved.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "kernelkit.json").exists()
