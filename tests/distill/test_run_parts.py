"""What a run leaves behind, the parts that it is made of, and the memory that it is said to need."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from dependency_injector import providers
from transformers import AutoModelForCausalLM, AutoTokenizer

from kernelkit.distill.distiller import Distiller
from kernelkit.distill.memory import META, Tracker, predict
from kernelkit.distill.metrics import read_records
from kernelkit.distill.parallel import Ranks
from kernelkit.distill.plan import Plan
from kernelkit.distill.report import headline
from kernelkit.hardware import Hardware
from kernelkit.models.layers.teaching import Distillation
from tests.distill.runs import Memory, config, fitted, shape
from tests.models.families import assert_close


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stock_transformers_loads_the_student_with_its_tokenizer(tmp_path, tied, dtype):
    student = {"config": shape(16, tie_word_embeddings=tied), "dtype": dtype, "ops": {"preset": "eager"}}
    distiller = fitted(tmp_path, student=student)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "run/student", dtype=dtype, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/student")
    rows = tokenizer("the lazy dog", return_tensors="pt").input_ids
    assert type(stock).__name__ == "Qwen3ForCausalLM" and stock.config.tie_word_embeddings == tied
    assert_close(distiller.student.eval()(rows).logits, stock(rows).logits)


def test_a_run_leaves_figures_a_report_and_files_for_tensorboard(tmp_path):
    distiller = fitted(tmp_path, train={"steps": 4, "control": True}, eval={"every": 2}, output={"tensorboard": True})
    records = read_records(tmp_path / "run/metrics.jsonl")
    assert {(each.stage, each.kind) for each in records} == {
        (stage, kind) for stage in ("student", "control") for kind in ("train", "eval")
    }
    assert [each.step for each in records if (each.stage, each.kind) == ("student", "eval")] == [0, 2, 4]
    heading, rows = headline(distiller.report())
    assert [row[0] for row in rows] == ["teacher", "student", "control"] and "KL to teacher" in heading
    page = (tmp_path / "run/report.html").read_text()
    assert all(cell in page for row in rows for cell in row)
    assert len(list((tmp_path / "run/tensorboard").rglob("events*"))) == 2


def test_a_student_is_looked_at_and_saved_before_and_after_its_training(tmp_path):
    follows = {"loss": {"divergence": "forward_kl", "alpha": 0.0}}
    distiller = Distiller(config(tmp_path, **follows))
    before = distiller.evaluate()
    assert before.keys() == {"cross_entropy", "kl", "agreement", "teacher_cross_entropy"}
    distiller.fit()
    after = distiller.evaluate()
    assert after["kl"] < before["kl"]
    # Another one finds the trained student in the folder.
    assert Distiller(config(tmp_path, **follows)).evaluate() == pytest.approx(after)
    saved = AutoModelForCausalLM.from_pretrained(distiller.save(tmp_path / "copy"))
    assert torch.equal(saved.model.norm.weight, distiller.student.model.norm.weight)


def test_what_was_evaluated_last_is_what_the_finished_student_gives(tmp_path):
    distiller = fitted(tmp_path)
    last = [each for each in read_records(tmp_path / "run/metrics.jsonl") if each.kind == "eval"][-1]
    assert dict(last.figures) == pytest.approx(distiller.evaluate())


def test_without_validation_data_there_is_nothing_to_evaluate(tmp_path):
    distiller = fitted(tmp_path, data={"validation": None})
    with pytest.raises(ValueError, match="no validation data"):
        distiller.evaluate()
    assert "KL to teacher" not in headline(distiller.report())[0]


def test_every_part_may_be_replaced_and_no_other_run_sees_it(tmp_path):
    mine, other = Distiller(config(tmp_path)), Distiller(config(tmp_path))
    student, teacher, sink = mine.container.student(), mine.container.teacher(None), Memory()
    seen = []

    def evaluation(model, judge, device):
        seen.append((model, judge))
        return {"cross_entropy": 1.0}

    replaced = {"student": student, "teacher": teacher, "sinks": [sink], "evaluation": evaluation}
    replaced["loss"] = Distillation(divergence="reverse_kl", temperature=2.0)
    for name, part in replaced.items():
        getattr(mine.container, name).override(providers.Object(part))
    mine.fit()
    assert seen == [(student, teacher)] and mine.student is student and mine.teacher is teacher
    assert {each.kind for each in sink.records} == {"train", "eval"}
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert mine._stage("student").distillation.divergence == "reverse_kl"
    assert other.container.loss().divergence == "jsd" and other.student is not student


def test_a_plan_made_elsewhere_is_the_run(tmp_path):
    plan = Plan.make(config(tmp_path, train={"steps": 2}), Ranks())
    distiller = Distiller(config(tmp_path))
    distiller.container.plan.override(providers.Object(plan))
    assert distiller.plan is plan


def test_the_tracker_counts_what_lives_and_remembers_the_most():
    tracker = Tracker()
    with tracker:
        first = torch.zeros(1024, device=META)
        second = first + 1
        view = second[:10]
        assert tracker.live == 8192
        del second
        assert tracker.live == 8192
        del view, first
    assert (tracker.live, tracker.peak) == (0, 8192)


def predicted(folder, **sections):
    return predict(Plan.make(config(folder, **sections), Ranks(), Hardware.named("h200")))


def full_rows(folder, seq_len):
    """Sections of data whose rows are one document each, so that no attention is given a mask."""
    path = folder / "rows.jsonl"
    path.write_text((json.dumps({"text": "a" * (seq_len - 2)}) + "\n") * 8)
    return {"seq_len": seq_len, "batch_size": 8, "train": str(path), "validation": None}


def test_the_prediction_knows_weights_and_optimizer_to_the_byte(tmp_path):
    found = predicted(tmp_path, student={"config": shape(16), "dtype": "bfloat16", "ops": {}})
    plan = Plan.make(config(tmp_path), Ranks())
    teacher, student = (
        sum(weight.numel() for weight in each.outline().parameters()) for each in (plan.teacher, plan.student)
    )
    scalars = 4 * len(list(plan.student.outline().parameters()))
    assert 0 <= found.weights - (4 * teacher + 2 * student) < 1024  # and the inverse frequencies
    assert found.optimizer == 12 * student + scalars


def test_more_rows_and_logits_kept_whole_cost_memory_and_checkpointing_saves_it(tmp_path):
    def peak(ops, **changes):
        student = {"config": shape(64), "ops": ops, **changes}
        return predicted(tmp_path, student=student, data=full_rows(tmp_path, 1024)).peak

    plain = peak({"distillation_loss": "chunked"})
    assert peak({"distillation_loss": "eager"}) > plain + 3 * 8 * 1024 * 264 * 4
    assert peak({"distillation_loss": "chunked", "attention": "eager"}) > plain + 2 * 8 * 2 * 1024**2 * 4
    assert peak({"distillation_loss": "chunked"}, gradient_checkpointing=True) < plain


def test_documents_that_share_a_row_cost_a_mask_in_each_layer(tmp_path):
    def peak(**data):
        student = {"config": shape(64, num_hidden_layers=4), "ops": {}}
        return predicted(tmp_path, student=student, data={"seq_len": 512, "batch_size": 8, **data}).peak

    assert peak() > peak(**full_rows(tmp_path, 512)) + 4 * 8 * 512**2 * 4


@pytest.mark.slow
def test_what_is_compiled_keeps_what_fused_kernels_keep(tmp_path):
    def peak(**changes):
        student = {"config": shape(64, num_attention_heads=16, num_hidden_layers=4), "ops": {}, **changes}
        return predicted(tmp_path, student=student, data=full_rows(tmp_path, 512), teacher={"config": shape(8)}).peak

    # The matrix products and the attention ask for the same tensors, whoever fuses what is between them.
    assert peak(compile=True) == pytest.approx(peak(ops={"preset": "triton"}), rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["eager", "chunked", "triton"])
def test_the_peak_of_a_run_on_a_gpu_is_the_one_predicted(tmp_path, loss):
    wide = {"vocab_size": 32000, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
    sections = {
        "teacher": {"config": shape(512, **wide, head_dim=64), "dtype": "bfloat16"},
        "student": {
            "config": shape(256, **wide, head_dim=64),
            "dtype": "bfloat16",
            "ops": {"preset": "triton", "distillation_loss": loss},
        },
        "data": {"seq_len": 1024, "batch_size": 16, "validation": None},
    }
    predicted_peak = predict(Plan.make(config(tmp_path, **sections), Ranks())).peak
    gc.collect()  # what another test has left
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fitted(tmp_path, **sections)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(predicted_peak, rel=0.15)


PLAIN_KL = {"divergence": "forward_kl", "alpha": 0.0}


def experts(width, **changes):
    """A Qwen3-MoE config."""
    routed = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "norm_topk_prob": True}
    return {**shape(width), "model_type": "qwen3_moe", **routed, **changes}


def test_a_mixture_of_experts_teaches_a_dense_model_and_learns_from_one(tmp_path):
    to_dense = fitted(tmp_path, teacher={"config": experts(24), "ops": {"moe_experts": "eager"}})
    assert {row.op for row in to_dense.report().stages[0].kernels.rows} >= {"moe_experts"}
    routed = {"config": experts(16, output_router_logits=True), "ops": {"preset": "eager"}}
    learnt = fitted(tmp_path, student=routed, loss={"divergence": "forward_kl", "alpha": 0.0})
    last = [each.figures for each in read_records(tmp_path / "run/metrics.jsonl") if each.kind == "train"][-1]
    # The balancing loss of the router is trained, and is no part of the divergence.
    assert last["loss"] > last["divergence"] > 0
    assert learnt.student.config.output_router_logits


def test_a_routers_loss_counts_once_in_a_step_however_it_is_cut(tmp_path):
    routed = {"config": experts(16, output_router_logits=True), "ops": {"preset": "eager"}}

    def extra(folder, size):
        folder.mkdir()
        fitted(
            folder,
            student=routed,
            data={"micro_batch_size": size},
            loss={"divergence": "forward_kl"},
            train={"steps": 1},
        )
        first = next(each.figures for each in read_records(folder / "run/metrics.jsonl") if each.kind == "train")
        return first["loss"] - first["divergence"]

    # It is no sum over tokens, so that it is nearly the same and not quite.
    assert extra(tmp_path / "rows", 1) == pytest.approx(extra(tmp_path / "whole", None), rel=0.05)
