"""A step means the same however it is cut, and each model keeps its own kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dependency_injector import providers
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from kernelkit import kernel_report
from kernelkit.distill.config import OptimConfig
from kernelkit.distill.container import make_model
from kernelkit.distill.distiller import Distiller
from kernelkit.distill.optimizer import MasterAdamW, learning_rate
from kernelkit.distill.stage import Stage
from kernelkit.distill.teacher import Teacher
from tests.distill.runs import ROWS, assert_near, config, figures, fitted, shape, weights
from tests.ranks import run_ranks

CUTS = [{"packing": packing, "micro_batch_size": size} for packing in (True, False) for size in (1, 2)]


@pytest.mark.parametrize(
    "cut", CUTS, ids=lambda cut: f"{'packed' if cut['packing'] else 'padded'}-{cut['micro_batch_size']}"
)
def test_the_weights_do_not_depend_on_the_micro_batches(tmp_path, cut):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    fitted(whole, data={**cut, "micro_batch_size": None})
    fitted(parts, data=cut)
    # AdamW divides by the root of what may be nearly nothing, and rounding errors grow.
    assert_near(weights(parts), weights(whole), 1e-4)


def gradient(distiller, step):
    stage = Stage(
        "student",
        distiller.container.student(),
        distiller.teacher,
        None,
        distiller.config.loss.distillation,
        distiller.config.optim,
        lr=0.0,
        steps=1,
        seed=0,
    )
    for batch in step.micro_batches:
        loss, _ = stage.loss(batch, step.num_targets)
        (loss * distiller.plan.ranks.world_size).backward()
    gradients = {name: parameter.grad for name, parameter in stage.model.named_parameters()}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in gradients.items()}


def conversations():
    """Chats, of which only what the assistant says is learnt."""
    for number in range(12):
        asked = {"role": "user", "content": f"line {number}"}
        yield {"messages": [asked, {"role": "assistant", "content": "the dog " * (number % 3)}]}


@pytest.mark.parametrize("chats", [False, True], ids=["text", "chat"])
def test_the_gradient_of_a_step_is_the_sum_over_its_tokens_by_their_number(tmp_path, chats):
    data = {"packing": False}
    if chats:
        data |= {"train": str(tmp_path / "chats.jsonl"), "chat": True}
        Path(data["train"]).write_text("".join(json.dumps(each) + "\n" for each in conversations()))
    parts, whole = (Distiller(config(tmp_path, data={**data, **cut})) for cut in ({"micro_batch_size": 1}, {}))
    step, again = (next(distiller.plan.data.train) for distiller in (parts, whole))
    assert again.num_targets == step.num_targets < step.num_tokens
    assert len({batch.num_targets for batch in step.micro_batches}) > 1
    assert_near(gradient(parts, step), gradient(whole, again))


def last_gradient(folder):
    """The gradient of an epoch's last step, and how many labels count in this rank's share of it."""
    distiller = Distiller(config(folder, data={"train": str(folder / "few.jsonl")}))
    with distiller.plan.ranks.joined(torch.device("cpu")):
        *_, step = distiller.plan.data.train.epoch()
        return gradient(distiller, step), [batch.num_targets for batch in step.micro_batches]


def last_gradient_of_a_rank(rank, folder):
    torch.save(last_gradient(Path(folder)), f"{folder}/{rank}.pt")


@pytest.mark.parametrize("rows", [25, 26], ids=["one rank has only padding", "both ranks have labels"])
def test_the_gradient_of_a_step_does_not_depend_on_the_ranks(tmp_path, rows):
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS[:rows]))
    run_ranks(last_gradient_of_a_rank, str(tmp_path))
    (two, first), (again, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (sum(second) == 0) == (rows == 25)
    one, targets = last_gradient(tmp_path)
    assert sum(first + second) == sum(targets)
    assert_near(two, one, 1e-6)
    assert_near(again, two, 0.0)


def two_ranks(_rank: int, folder: str) -> None:
    fitted(Path(folder), train={"steps": 11, "save_every": 4}, eval={"every": 5}, student={"ops": STUDENTS})


STUDENTS = {"swiglu_mlp": "eager", "distillation_loss": "chunked"}


def test_two_ranks_come_to_the_weights_and_figures_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    fitted(one, train={"steps": 11}, eval={"every": 5}, student={"ops": STUDENTS})
    run_ranks(two_ranks, str(two))
    assert_near(weights(two), weights(one))
    for mine, theirs in zip(figures(two), figures(one), strict=True):
        assert mine[:3] == theirs[:3]
        assert mine[3] == pytest.approx(theirs[3], rel=1e-5, abs=1e-7)
    assert AutoModelForCausalLM.from_pretrained(two / "run/student").num_parameters() > 0
    # What two ranks have saved, one may go on with.
    resumed = Distiller(config(two, train={"steps": 11, "save_every": 4}, eval={"every": 5}, student={"ops": STUDENTS}))
    (two / "run/student").rename(two / "run/.student")
    resumed.fit(resume=True)
    assert_near(weights(two), weights(one))


def test_teacher_and_student_call_each_its_own_kernels(tmp_path):
    distiller = Distiller(config(tmp_path))
    callers = []

    def recording(who):
        def swiglu(gate, up):
            callers.append((who, torch.is_grad_enabled()))
            return torch.nn.functional.silu(gate) * up

        return swiglu

    plan, models = distiller.plan, {}
    for who, part in (("teacher", plan.teacher), ("student", plan.student)):
        container = part.container(training=who == "student")
        container.override("swiglu_mlp", recording(who))
        object.__setattr__(part, "container", lambda training, container=container: container)
        models[who] = make_model(part, plan.ranks)
    distiller.container.teacher.override(providers.Object(Teacher(models["teacher"], torch.device("cpu"))))
    distiller.container.student.override(providers.Object(models["student"]))
    distiller.container.evaluation.override(providers.Object(None))
    distiller.fit()
    assert (
        callers[:8]
        == [("teacher", False)] * 2 + [("student", True)] * 2 + [("teacher", False)] * 2 + [("student", True)] * 2
    )
    assert kernel_report(models["teacher"]).impls["rms_norm"] == {"torch"}
    assert kernel_report(models["student"]).impls["rms_norm"] == {"eager"}


def test_the_teacher_is_never_changed(tmp_path):
    distiller = Distiller(config(tmp_path))
    model = distiller.teacher.model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    distiller.fit()
    assert distiller.teacher.model is model and not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and not parameter.requires_grad


def test_a_teacher_that_is_its_own_student_has_nothing_to_say(tmp_path):
    distiller = Distiller(
        config(tmp_path, student={"config": shape(24)}, loss={"divergence": "forward_kl", "alpha": 0.0})
    )
    student = distiller.student
    student.load_state_dict(distiller.teacher.model.state_dict())
    found = distiller.evaluate()
    assert found["kl"] == pytest.approx(0, abs=1e-6) and found["agreement"] == 1
    assert found["cross_entropy"] == pytest.approx(found["teacher_cross_entropy"], rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_least(schedule):
    optim = OptimConfig(schedule=schedule, warmup_steps=4, min_lr_ratio=0.2)
    rates = [learning_rate(optim, 1.0, step, 20) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    middle = {"cosine": 0.6, "linear": 0.6, "constant": 1.0}[schedule]
    assert rates[11] == pytest.approx(middle)


def test_steps_too_small_for_bfloat16_add_up_in_the_masters():
    model = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    optimizer = MasterAdamW(model, OptimConfig(weight_decay=0.0, clip_norm=None))
    for _ in range(40):
        model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
        optimizer.accumulate()
        optimizer.step(1e-4)
    # A single step of 1e-4 is lost beside 1 in bfloat16, and forty of them are not.
    assert optimizer.masters["weight"].dtype == torch.float32
    torch.testing.assert_close(optimizer.masters["weight"], torch.full((4, 4), 1 - 4e-3), rtol=1e-5, atol=0)
    assert torch.equal(model.weight, optimizer.masters["weight"].bfloat16()) and model.weight.max() < 1


def test_only_matrices_decay_and_gradients_are_clipped_as_a_whole():
    model = torch.nn.Linear(3, 3)
    torch.nn.init.ones_(model.weight), torch.nn.init.ones_(model.bias)
    optimizer = MasterAdamW(model, OptimConfig(weight_decay=0.5, clip_norm=1.0))
    model.weight.grad, model.bias.grad = torch.zeros(3, 3), torch.zeros(3)
    optimizer.step(0.1)
    assert torch.allclose(model.weight, torch.full((3, 3), 0.95)) and torch.equal(model.bias, torch.ones(3))
    model.weight.grad, model.bias.grad = torch.full((3, 3), 4.0), torch.zeros(3)
    assert optimizer.clip() == 12
    optimizer.step(0.0)
    assert optimizer.adamw.state[model.weight]["exp_avg"].norm() == pytest.approx(0.1)


def test_gradient_checkpointing_changes_no_weight(tmp_path):
    plain, saving = tmp_path / "plain", tmp_path / "saving"
    for folder in (plain, saving):
        folder.mkdir()
    fitted(plain)
    student = fitted(saving, student={"gradient_checkpointing": True}).student
    assert student.is_gradient_checkpointing
    assert_near(weights(saving), weights(plain), 1e-6)


def test_a_student_in_bfloat16_learns_from_a_teacher_in_another_dtype(tmp_path):
    distiller = fitted(tmp_path, student={"dtype": "bfloat16"}, teacher={"dtype": "float16"}, train={"steps": 30})
    losses = [each[3]["loss"] for each in figures(tmp_path) if each[1] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.bfloat16}
    assert distiller.teacher.model.dtype == torch.float16
