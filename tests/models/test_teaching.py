"""A model teaches another: hidden states and head go over, and the loss is the op's."""

from __future__ import annotations

import pytest
import torch

from kernelkit import build_model, kernel_report
from kernelkit.models.layers.teaching import Distillation, Teaching
from tests.models.families import EAGER, assert_close, our_model, small_config, tokens

JSD = Distillation(divergence="jsd", beta=0.3, temperature=2.0, temperature_squared=True, alpha=0.25)


def student_model(kernels=None, family="qwen3", **changes):
    torch.manual_seed(1)
    config = small_config(family, **changes)
    return build_model(config, kernels=EAGER if kernels is None else kernels, device="cpu", distilled=True)


def batch(shape=(2, 10)):
    rows = tokens(*shape)
    labels = rows.clone()
    labels[:, :3] = -100
    return {"input_ids": rows, "labels": labels}


def taught(student, teacher, distillation=JSD, **arguments):
    rows = batch()
    with torch.no_grad():
        teaching = teacher.teach(rows["input_ids"])
    output = student.train()(**rows, teaching=teaching, distillation=distillation, **arguments)
    output.loss.backward()
    return output


def by_hand(student, teacher):
    rows = batch()
    log_p = (teacher(rows["input_ids"]).logits[:, :-1].detach() / 2).log_softmax(-1)
    logits = student(rows["input_ids"]).logits[:, :-1]
    log_q = (logits / 2).log_softmax(-1)
    log_m = (0.3 * log_p.exp() + 0.7 * log_q.exp()).log()
    kl = [(log.exp() * (log - log_m)).sum(-1) for log in (log_p, log_q)]
    targets = rows["labels"][:, 1:]
    soft = (4 * (0.3 * kl[0] + 0.7 * kl[1]))[targets != -100].mean()
    return 0.25 * torch.nn.functional.cross_entropy(logits[targets != -100], targets[targets != -100]) + 0.75 * soft


@pytest.mark.parametrize("impl", ["eager", "chunked"])
def test_a_student_learns_from_a_wider_teacher_of_another_family(impl):
    teacher = our_model("llama", hidden_size=64)
    student = student_model({"preset": "eager", "distillation_loss": impl})
    output = taught(student, teacher)
    gradients = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    expected = by_hand(student, teacher)
    expected.backward()
    assert_close(output.loss.detach(), expected.detach(), 1e-5)
    for mine, parameter in zip(gradients, student.parameters(), strict=True):
        assert_close(mine, parameter.grad, 1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher = our_model("qwen3")
    student = student_model()
    student.load_state_dict(teacher.state_dict())
    output = taught(student, teacher, Distillation())
    assert output.distillation.divergence.abs() < 1e-6 and output.distillation.agreement == 1
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in student.parameters())


def test_the_logits_are_never_made():
    output = taught(student_model(), our_model("qwen3"))
    assert output.logits is None


def test_the_routers_loss_is_added_for_a_student_with_experts():
    student, teacher = student_model(family="qwen3_moe", output_router_logits=True), our_model("qwen3")
    output = taught(student, teacher)
    assert output.loss > output.distillation.loss
    assert_close(output.loss - output.distillation.loss, student.config.router_aux_loss_coef * output.aux_loss, 1e-4)


def test_vocabularies_of_different_size_are_refused_or_cut_to_what_both_have():
    teacher, student = our_model("qwen3", vocab_size=128), student_model()
    with pytest.raises(ValueError, match="vocabulary has 96 tokens and the teacher's 128"):
        taught(student, teacher, JSD)
    output = taught(student, teacher, JSD._replace(truncate=True))
    cut = our_model("qwen3", vocab_size=128)
    rows = batch()
    teaching = cut.teach(rows["input_ids"]).cut(96)
    again = student(**rows, teaching=teaching, distillation=JSD)
    assert torch.equal(again.loss, output.loss)


def test_only_a_student_has_a_distillation_loss():
    assert "distillation_loss" not in kernel_report(our_model("qwen3")).impls
    assert kernel_report(student_model({})).impls["distillation_loss"] == {"chunked"}
    with pytest.raises(ValueError, match="distilled=True"):
        taught(our_model("qwen3"), our_model("qwen3"))
    with pytest.raises(ValueError, match="has no use for 'distillation_loss'"):
        build_model(small_config("qwen3"), kernels={"distillation_loss": "eager"})


def test_teaching_needs_labels_and_plain_heads():
    student, teacher = student_model(), our_model("qwen3")
    rows = batch()
    teaching = teacher.teach(rows["input_ids"])
    with pytest.raises(ValueError, match="needs labels"):
        student(rows["input_ids"], teaching=teaching)
    student.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the head has hooks"):
        student(**rows, teaching=teaching)


def test_a_student_saves_and_loads_as_one(tmp_path):
    student = student_model()
    student.save_pretrained(tmp_path)
    again = build_model(tmp_path, kernels=EAGER, device="cpu", distilled=True)
    teacher = our_model("qwen3")
    assert torch.equal(taught(student, teacher).loss, taught(again, teacher).loss)


@pytest.mark.parametrize("impl", ["eager", "chunked"])
def test_the_whole_student_compiles_with_its_loss(impl):
    student = student_model({"preset": "eager", "distillation_loss": impl}).train()
    rows, teaching = batch(), our_model("qwen3").teach(batch()["input_ids"])
    teaching = Teaching(*(part if part is None else part.detach() for part in teaching))
    expected = student(**rows, teaching=teaching, distillation=JSD).loss
    compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
    assert_close(compiled(**rows, teaching=teaching, distillation=JSD).loss, expected, 1e-5)
