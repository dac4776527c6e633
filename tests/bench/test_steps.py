"""Whole steps: every way of running one computes the same."""

from __future__ import annotations

import pytest
import torch

from kernelkit.bench import steps
from kernelkit.bench.records import Run
from kernelkit.bench.step_cases import DISTILLED, shapes, step_cases
from kernelkit.containers import PRESETS
from kernelkit.hardware import Hardware

HERE, RUN = Hardware.detect("cpu"), Run("cpu", {}, "test")


def plain(models):
    """What can run in this process: nothing compiled or patched, and no kernel of a GPU."""
    return [
        case
        for case in step_cases(models, HERE)
        if not (case.compiled or case.patched or "triton" in f"{case.ops}{case.teacher}" or "liger" in f"{case.ops}")
        and case.name != "preset: compile"
    ]


@pytest.mark.parametrize("models", ["qwen3-0.6b", "qwen3-moe", DISTILLED])
def test_every_way_of_running_a_step_has_the_loss_of_stock(models):
    found = {case.name: steps.measure(models, case, torch.device("cpu")) for case in plain(models)}
    stock = found.pop("stock")["loss"]
    assert found and {name: each["loss"] for name, each in found.items()} == pytest.approx(
        dict.fromkeys(found, stock), abs=0.02
    )


def test_a_step_measures_speed_and_on_a_cpu_no_memory():
    found = steps.measure("qwen3-0.6b", plain("qwen3-0.6b")[0], torch.device("cpu"))
    assert found["tokens_per_s"] == pytest.approx(2 * 64 / found["ms"] * 1000)
    assert found["peak_mib"] is None


def test_the_cases_are_stock_its_patch_every_preset_that_runs_and_compiled_ones():
    gpu = {case.name for case in step_cases("qwen3-0.6b", Hardware.named("h200"))}
    assert {"stock", "stock, compiled", "stock, patched by Liger", "default", "default, compiled"} <= gpu
    assert {f"preset: {name}" for name in PRESETS if not name.endswith("_npu")} <= gpu
    assert "preset: liger_npu" not in gpu
    assert "preset: triton" not in {case.name for case in step_cases("qwen3-0.6b", HERE)}


def test_a_mixture_of_experts_runs_with_quacks_experts_too_where_they_run():
    quack = {"preset: triton, moe_experts: quack", "injected, preset: triton, moe_experts: quack"}
    assert quack <= {case.name for case in step_cases("qwen3-moe", Hardware.named("h200"))}
    assert not quack & {case.name for case in step_cases("qwen3-moe", Hardware.named("a100"))}
    assert not quack & {case.name for case in step_cases("qwen3-0.6b", Hardware.named("h200"))}


def test_the_models_of_a_gpu_are_whole_and_a_teacher_is_first():
    configs, batch = shapes(DISTILLED, small=False)
    assert [config.hidden_size for config in configs] == [2048, 1024]
    assert batch == (4, 2048)
    assert {config.vocab_size for config in configs} == {151_936}


@pytest.mark.slow
def test_a_case_runs_in_a_process_of_its_own():
    (record,) = steps.measure_steps("qwen3-0.6b", RUN, HERE, names=["preset: torch"])
    assert (record.op, record.variant, record.impl) == ("step", "qwen3-0.6b", "preset: torch")
    assert record.error == "" and record.tokens_per_s > 0 and record.loss > 0


def test_a_case_that_fails_leaves_the_last_line_of_its_process(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(steps.sys, "executable", "/usr/bin/env")
    (record,) = steps.measure_steps("qwen3-0.6b", RUN, HERE, names=["stock"])
    assert record.ms is None and record.error


def test_a_case_that_takes_too_long_is_ended():
    (record,) = steps.measure_steps("qwen3-0.6b", RUN, HERE, names=["stock"], limit=0.05)
    assert (record.ms, record.error) == (None, "took more than 0.05 s")
