"""The kit catches kernels that are wrong, each by the check that its fault belongs to."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from kernelkit import KernelSpec, default_registry
from kernelkit.cli.app import app
from kernelkit.kernels.cross_entropy_loss.eager import cross_entropy_loss
from kernelkit.kernels.distillation_loss.eager import distillation_loss
from kernelkit.kernels.moe_router.eager import moe_router
from kernelkit.kernels.rms_norm.eager import standard
from kernelkit.testing import check_kernel
from kernelkit.testing.checks import CHECKS
from tests.testing.broken import (
    FAULTS,
    Custom,
    breaks_the_graph,
    depends_on_chance,
    overwrites_its_input,
    raises,
    takes_the_next_weight,
)


def judged(kernel, op="rms_norm", checks=CHECKS, **fields):
    spec = KernelSpec(op=op, variant="standard", name="mine", factory=lambda: kernel, **fields)
    return check_kernel(spec, device="cpu", checks=checks)


@pytest.mark.parametrize(("check", "kernel"), [(check, kernel) for check, found in FAULTS.items() for kernel in found])
def test_a_broken_kernel_is_caught_by_name(check, kernel):
    verdict = judged(kernel, checks=[check])
    assert not verdict.passed and check in verdict.failures, str(verdict)
    assert f"{check}: " in str(verdict)
    assert ("raises" in str(verdict)) == (kernel in (raises, breaks_the_graph)), str(verdict)


@pytest.mark.parametrize("kernel", [standard, Custom.apply])
def test_a_kernel_that_is_right_passes(kernel):
    verdict = judged(kernel, traceable=kernel is standard)
    assert verdict.passed, str(verdict)
    assert str(verdict) == f"rms_norm: mine (standard) on cpu passes {len(verdict.checked)} checks"


def test_a_loss_that_forgets_ignored_labels_is_caught():
    def forgets(hidden_states, weight, labels, *, ignore_index=-100, **arguments):
        return cross_entropy_loss(hidden_states, weight, labels.clamp(min=0), ignore_index=ignore_index, **arguments)

    assert "accuracy" in judged(forgets, op="cross_entropy_loss", checks=["accuracy"]).failures


def test_a_loss_that_is_zero_where_no_label_counts_is_caught():
    def divides_by_one(hidden_states, weight, labels, **arguments):
        loss, logits = cross_entropy_loss(hidden_states, weight, labels, **arguments)
        return loss.nan_to_num(), logits

    verdict = judged(divides_by_one, op="cross_entropy_loss", checks=["accuracy", "ignored_labels"])
    assert [*verdict.failures] == ["ignored_labels"], str(verdict)


def test_a_router_that_names_the_next_expert_is_caught():
    def off_by_one(router_logits, top_k, norm_topk_prob):
        weights, index = moe_router(router_logits, top_k, norm_topk_prob)
        return weights, (index + 1) % router_logits.shape[1]

    verdict = judged(off_by_one, op="moe_router", checks=["accuracy"])
    assert "output 1 errs" in str(verdict) and "output 0 errs" not in str(verdict)


def test_a_router_that_counts_every_equal_expert_is_caught():
    def compares_with_the_least_chosen(router_logits, num_experts, top_k, attention_mask=None):
        routing = torch.cat(router_logits).float().softmax(-1)
        rows = torch.ones(routing.shape[:1]) if attention_mask is None else attention_mask.flatten().float()
        rows = (rows.repeat(len(routing) // len(rows)) if len(rows) else rows)[:, None]
        chosen = (routing >= routing.topk(top_k).values[:, -1:]).float()
        return num_experts * ((chosen * rows).sum(0) / rows.sum() * ((routing * rows).sum(0) / rows.sum())).sum()

    verdict = judged(compares_with_the_least_chosen, op="load_balancing_loss", checks=["accuracy", "ties"])
    assert [*verdict.failures] == ["ties"], str(verdict)


def test_a_distillation_loss_that_is_hardly_wrong_is_caught():
    def off_by_a_thousandth(*tensors, **arguments):
        output = distillation_loss(*tensors, **arguments)
        return output._replace(loss=output.loss * 1.001, divergence=output.divergence * 1.001)

    verdict = judged(off_by_a_thousandth, op="distillation_loss", checks=["accuracy"])
    assert "output 0 errs" in str(verdict) and "output 1 errs" in str(verdict)


class ForwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight, eps):
        return standard(hidden_states, weight, eps)


def test_of_a_kernel_for_inference_the_forward_is_judged():
    verdict = judged(ForwardOnly.apply, inference_only=True, traceable=False)
    assert verdict.passed and "accuracy" in verdict.checked, str(verdict)
    assert verdict.not_checked["second_backward"] == verdict.not_checked["checkpointing"] == "has no backward"
    assert "accuracy" in judged(ForwardOnly.apply).failures
    assert "accuracy" in judged(takes_the_next_weight, inference_only=True).failures
    assert "purity" in judged(overwrites_its_input, inference_only=True).failures


def test_a_kernel_may_refuse_some_calls_by_name_and_not_all():
    def refuses(narrow):
        def kernel(hidden_states, weight, eps):
            if hidden_states.shape[-1] >= narrow:
                raise ValueError(f"rms_norm: mine takes rows narrower than {narrow}. Use rms_norm: eager.")
            return standard(hidden_states, weight, eps)

        return kernel

    assert judged(refuses(50)).passed
    assert "refuses every sample" in str(judged(refuses(1)))


def test_what_a_kernel_does_not_promise_it_is_not_asked_for():
    verdict = judged(depends_on_chance, checks=["determinism"], deterministic=False)
    assert verdict.checked == () and "does not say" in verdict.not_checked["determinism"]
    verdict = judged(breaks_the_graph, checks=["tracing"], traceable=False)
    assert verdict.checked == () and "does not say" in verdict.not_checked["tracing"]


def test_a_kernel_that_cannot_run_here_is_not_judged():
    verdict = check_kernel(default_registry().get("rms_norm", "standard", "liger"), device="cpu")
    assert not verdict.passed and "runs on cuda or xpu, not on" in verdict.skipped
    assert "was not judged" in str(verdict)


def command(*arguments):
    return CliRunner().invoke(app, ["verify", "--device", "cpu", *arguments])


def test_the_command_judges_what_is_asked_for(tmp_path):
    done = command("--op", "rms_norm", "--impl", "torch")
    assert done.exit_code == 0 and done.output.count("passes") == 3
    (tmp_path / "ops.yaml").write_text("rms_norm: torch\nswiglu_mlp: liger\n")
    rows = json.loads(command(str(tmp_path / "ops.yaml"), "--json").output)
    assert {(row["op"], row["impl"]) for row in rows} == {("rms_norm", "torch"), ("swiglu_mlp", "liger")}
    assert all(row["passed"] or "not on" in row["skipped"] for row in rows)
    assert command("--impl", "ligr").exit_code == 2


def test_the_command_says_which_checks_were_not_made_and_why():
    text = command("--op", "cross_entropy_loss", "--impl", "eager").output
    assert re.search(r"operators +is not made of operators of its own +all", text)
    assert re.search(r"large_values +calls in float16 in which eager overflows too +all", text)
    rows = json.loads(command("--op", "cross_entropy_loss", "--impl", "eager", "--json").output)
    for row in rows:
        assert {*row["checked"], *row["not_checked"]} == {*CHECKS}
        assert row["left_out"] == {"large_values": ["calls in float16 in which eager overflows too"]}


def test_the_command_fails_where_a_kernel_does(monkeypatch):
    from kernelkit import registry

    mine = default_registry().copy()
    mine.register(KernelSpec(op="rms_norm", variant="standard", name="broken", factory=lambda: takes_the_next_weight))
    monkeypatch.setattr(registry, "_default", [mine])
    done = command("--impl", "broken")
    assert done.exit_code == 1 and "fails accuracy" in done.output


def test_tritons_interpreter_is_asked_for_no_kernel_of_the_cutlass_dsl(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = default_registry().get("moe_experts", "standard", "quack")
    assert check_kernel(spec, device="cpu").skipped == "runs on cuda, not on cpu"
