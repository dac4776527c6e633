"""An injected model is the same instance, and works wherever it worked before."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from kernelkit import KernelContainer, eject, inject, kernel_report
from kernelkit.models import injected
from tests.injection.stock import FAMILIES, pair, step, stock
from tests.models.families import EAGER, assert_close, assert_same_gradients, tokens

families = pytest.mark.parametrize("family", FAMILIES)
SDPA = {"preset": "torch"}


def logits(model: Any, *shape: int) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens(*(shape or (2, 6)))).logits


def state_of(model: Any) -> dict[str, tuple[Any, ...]]:
    """All that an instance is made of, by identity; parameters and children are in the dictionaries of it."""
    return {
        path: (type(module), {name: id(value) for name, value in vars(module).items()})
        for path, module in model.named_modules()
    }


@families
def test_parameters_keep_their_identity_and_the_state_dict_its_keys(family: str) -> None:
    model = stock(family)
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    assert inject(model, EAGER) is model
    assert list(model.state_dict()) == keys
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@families
def test_eject_restores_the_instance_exactly(family: str) -> None:
    model = stock(family)
    before = state_of(model)
    inject(model, EAGER)
    assert state_of(model) != before
    assert eject(model) is model
    assert state_of(model) == before
    assert eject(model) is model


@families
def test_siblings_and_the_module_of_transformers_stay_what_they_are(family: str) -> None:
    config = stock(family).config
    torch.manual_seed(0)
    model, sibling = (type(stock(family))(config).eval() for _ in range(2))
    module = __import__(type(sibling).__module__, fromlist=["_"])
    attributes, of_sibling, expected = dict(vars(module)), state_of(sibling), logits(sibling)
    inject(model, SDPA)
    step(model)
    assert dict(vars(module)) == attributes
    assert state_of(sibling) == of_sibling
    assert torch.equal(logits(sibling), expected)
    assert type(type(sibling)(config).model) is type(sibling.model)
    assert config._attn_implementation == "eager"


@families
def test_a_copy_and_a_pickle_compute_the_same_with_weights_of_their_own(family: str, tmp_path: Path) -> None:
    model = inject(stock(family), SDPA)
    expected = logits(model)
    torch.save(model, tmp_path / "model.pt")
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in others:
        assert torch.equal(logits(other), expected)
        assert str(kernel_report(other)) == str(kernel_report(model))
        assert torch.isfinite(step(other).loss)
        assert type(eject(other)).__module__.startswith("transformers.")


def test_hooks_fire_as_before() -> None:
    model, calls = stock("llama"), []
    for module in (model, model.model, model.model.layers[0].self_attn, model.model.norm, model.model.layers[1].mlp):
        module.register_forward_hook(lambda *_: calls.append("forward"))
        module.register_forward_pre_hook(lambda *_: calls.append("before"))
        module.register_full_backward_hook(lambda *_: calls.append("backward"))
    step(model)
    expected = calls.copy()
    calls.clear()
    step(inject(model, EAGER))
    assert calls == expected


@families
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(family: str, reentrant: bool) -> None:
    plain, model = pair(family)
    for each in (plain, model):
        inject(each, EAGER)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    calls: list[int] = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    step(plain)
    step(model)
    assert len(calls) == 2
    assert_same_gradients(model, plain)


@families
@pytest.mark.parametrize("when", ["before", "after"])
def test_outputs_are_captured_as_in_stock(family: str, when: str) -> None:
    plain, model = pair(family)
    asked = {"output_hidden_states": True, "output_attentions": True}
    if when == "before":
        model(tokens(1, 4), **asked)
    inject(model, EAGER)
    theirs, mine = (each(tokens(2, 6), **asked) for each in (plain, model))
    for name in ("hidden_states", "attentions"):
        assert len(mine[name]) == len(theirs[name]) > 0
        for one, other in zip(mine[name], theirs[name], strict=True):
            assert_close(one, other)


def test_attention_weights_that_a_kernel_cannot_give_are_refused() -> None:
    with pytest.raises(ValueError, match="sdpa returns no weights"):
        inject(stock("qwen3"), {"attention": "sdpa"})(tokens(1, 4), output_attentions=True)


def test_set_attn_implementation_rebinds_what_is_bound_and_else_asks_transformers() -> None:
    plain, model = pair("qwen3")
    inject(model, {"attention": "eager"})
    model.set_attn_implementation("sdpa")
    assert kernel_report(model).impls["attention"] == {"sdpa"}
    assert model.config._attn_implementation == "eager"
    assert_close(logits(model), logits(plain), 1e-5)
    with pytest.raises(ValueError, match="Valid: "):
        model.set_attn_implementation("sdpaa")
    inject(model, {"rms_norm": "eager"})
    model.set_attn_implementation("sdpa")
    assert kernel_report(model).impls["attention"] == {"stock"}
    assert model.config._attn_implementation == "sdpa"


def test_injecting_again_replaces_and_a_mistake_changes_nothing() -> None:
    model = inject(stock("llama"), {"preset": "eager"})
    inject(model, {"rms_norm": "torch"})
    impls = kernel_report(model).impls
    assert impls.pop("rms_norm") == {"torch"}
    assert set().union(*impls.values()) == {"stock"}
    before = str(kernel_report(model))
    with pytest.raises(ValueError, match="no use for 'moe_experts'"):
        inject(model, {"moe_experts": "eager"})
    assert str(kernel_report(model)) == before


def test_injected_gives_kernels_for_a_while() -> None:
    model = stock("llama")
    before = state_of(model)
    with injected(model, EAGER) as same:
        assert same is model
        assert kernel_report(model).impls["rms_norm"] == {"eager"}
    assert state_of(model) == before
    inject(model, {"rms_norm": "torch"})
    with pytest.raises(RuntimeError, match="in between"), injected(model, EAGER):
        raise RuntimeError("in between")
    assert kernel_report(model).impls["rms_norm"] == {"torch"}
    assert kernel_report(model).impls["attention"] == {"stock"}


def test_two_injected_models_call_their_own_kernels() -> None:
    calls: list[str] = []

    def doubled(who: str) -> Any:
        def kernel(*args: Any) -> Any:
            calls.append(who)
            return tuple(2 * each for each in args[:2])

        return kernel

    models = {}
    for who in ("teacher", "student"):
        container = KernelContainer.from_config(device="cpu")
        container.override("rotary_pos_emb", doubled(who))
        models[who] = inject(stock("qwen3"), container)
    for who, model in models.items():
        calls.clear()
        logits(model)
        assert set(calls) == {who}


def test_saved_it_is_a_stock_checkpoint(tmp_path: Path) -> None:
    model = inject(stock("qwen3"), SDPA)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(again) is transformers.Qwen3ForCausalLM
    assert again.config.architectures == ["Qwen3ForCausalLM"]
    assert_close(logits(again), logits(model), 1e-5)


def test_experts_are_saved_one_by_one_as_stock_saves_them(tmp_path: Path) -> None:
    plain, model = pair("qwen3_moe")
    inject(model, EAGER).save_pretrained(tmp_path / "injected")
    plain.save_pretrained(tmp_path / "stock")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("injected", "stock")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[1])


def test_the_experts_of_transformers_can_be_chosen_where_they_are_stock() -> None:
    model = inject(stock("qwen3_moe"), {"rms_norm": "eager"})
    model.set_experts_implementation("batched_mm")
    assert model.config._experts_implementation == "batched_mm"


def test_a_pickle_loads_in_a_process_that_has_injected_nothing(tmp_path: Path, python: Any) -> None:
    model = inject(stock("qwen3"), SDPA)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import torch; from tests.models.families import tokens;"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False);"
        "output = model(tokens(2, 6), output_hidden_states=True);"
        "print(len(output.hidden_states), float(output.logits.detach().sum()))"
    )
    states, total = python(code).split()
    assert int(states) == 3
    assert float(total) == pytest.approx(float(logits(model).sum()), abs=1e-3)


def test_the_report_shows_places_and_what_is_left_alone() -> None:
    report = kernel_report(inject(stock("qwen3_next"), {"rms_norm": "torch"}))
    assert report.model == "Qwen3NextForCausalLM"
    assert report.left_alone == (("model.layers.0.linear_attn", "Qwen3NextGatedDeltaNet"),)
    assert "left alone: model.layers.0.linear_attn (Qwen3NextGatedDeltaNet)" in str(report)
    assert report.to_dict()["left_alone"] == [["model.layers.0.linear_attn", "Qwen3NextGatedDeltaNet"]]
    norms = {row.impl for row in report.rows if row.op == "rms_norm"}
    assert norms == {"torch"}
    assert kernel_report(inject(stock("gemma3"), EAGER)).left_alone == ()
