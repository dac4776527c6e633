"""Two models of one class with different kernels, in one process, each as if it were alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from kernelkit import build_model, kernel_report
from tests.coexistence import recorded
from tests.coexistence.recorded import CALLS, assert_equal_runs, recorded_model, run, teacher_and_student
from tests.models.families import FAMILIES, small_config


@pytest.fixture(autouse=True)
def _fresh_calls() -> Iterator[None]:
    CALLS.clear()
    yield
    CALLS.clear()


def callers() -> set[str]:
    return {who for who, _ in CALLS}


@pytest.mark.parametrize("family", FAMILIES)
def test_interleaved_calls_equal_each_model_alone(family: str) -> None:
    alone = {
        "teacher": run(recorded_model("teacher", 1.0, family)),
        "student": run(recorded_model("student", 1.01, family)),
    }
    teacher, student = teacher_and_student(family)
    for _ in range(2):
        assert_equal_runs(run(teacher), alone["teacher"])
        assert_equal_runs(run(student), alone["student"])
    assert not torch.equal(alone["teacher"][0], alone["student"][0])


def test_the_teacher_never_calls_the_students_kernels() -> None:
    teacher, student = teacher_and_student()
    run(teacher)
    assert callers() == {"teacher"}
    teachers = len(CALLS)
    CALLS.clear()
    run(student)
    assert callers() == {"student"}
    assert len(CALLS) == teachers
    assert {op for _, op in CALLS} == set(recorded.RECORDED)


def test_building_the_second_after_the_first_has_run_changes_neither() -> None:
    teacher = recorded_model("teacher", 1.0)
    before = run(teacher)
    student = recorded_model("student", 1.01)
    run(student)
    CALLS.clear()
    assert_equal_runs(run(teacher), before)
    assert callers() == {"teacher"}


def test_sixteen_threads_keep_the_models_apart() -> None:
    teacher, student = teacher_and_student()
    with torch.no_grad():
        expected = [
            [model(recorded.tokens(2, 6, seed=seed)).logits for seed in range(8)] for model in (teacher, student)
        ]

        def call(job: int) -> bool:
            which, seed = job % 2, (job // 2) % 8
            with torch.no_grad():
                logits = (teacher, student)[which](recorded.tokens(2, 6, seed=seed)).logits
            return torch.equal(logits, expected[which][seed])

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(call, range(64)))


def through_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("twin", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_keeps_its_kernels_beside_the_other_model(family: str, twin: Callable[[Any], Any]) -> None:
    configs = {"teacher": {"preset": "eager"}, "student": {"rms_norm": "torch", "attention": "sdpa"}}
    models = {who: build_model(small_config(family), kernels=ops, device="cpu") for who, ops in configs.items()}
    for model in models.values():
        expected, copied = run(model), twin(model)
        assert kernel_report(copied) == kernel_report(model)
        assert_equal_runs(run(copied), expected)
        assert_equal_runs(run(model), expected)


def test_a_deep_copy_shares_no_weights_and_calls_the_same_kernels() -> None:
    student = recorded_model("student", 1.01)
    copied = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in student.parameters())
    CALLS.clear()
    run(copied)
    assert callers() == {"student"}


def test_gradient_checkpointing_in_one_does_not_reach_the_other() -> None:
    teacher, student = teacher_and_student()
    expected = run(teacher), run(student)
    student.gradient_checkpointing_enable()
    student.train()
    CALLS.clear()
    assert_equal_runs(run(student), expected[1])
    recomputed = len(CALLS)
    CALLS.clear()
    assert_equal_runs(run(teacher), expected[0])
    assert recomputed > len(CALLS)
    assert callers() == {"teacher"}


def test_moving_and_casting_one_leaves_the_other() -> None:
    teacher, student = teacher_and_student()
    expected = run(teacher)
    student.to(torch.bfloat16)
    run(student)
    assert_equal_runs(run(teacher), expected)


def test_transformers_and_torch_are_as_they_were() -> None:
    from transformers.models.qwen3 import modeling_qwen3
    from transformers.models.qwen3_moe import modeling_qwen3_moe

    watched = (
        modeling_qwen3,
        modeling_qwen3_moe,
        nn.functional,
        transformers.masking_utils,
        transformers.modeling_utils,
    )
    before = [dict(vars(module)) for module in watched]
    tables = [
        dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping),
        dict(transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping),
        dict(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING._extra_content),
    ]
    for family in FAMILIES:
        for model in teacher_and_student(family):
            run(model)
    for module, attributes in zip(watched, before, strict=True):
        assert dict(vars(module)) == attributes
    assert tables == [
        dict(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping),
        dict(transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping),
        dict(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING._extra_content),
    ]


def test_stock_models_beside_ours_compute_what_they_did() -> None:
    stock = transformers.Qwen3ForCausalLM(small_config("qwen3")).eval()
    before = run(stock)
    run(recorded_model("student", 1.01))
    CALLS.clear()
    assert_equal_runs(run(stock), before)
    assert CALLS == []
