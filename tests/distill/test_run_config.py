"""What can be wrong with a run is told before any weight is loaded, all at once."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from kernelkit import build_model
from kernelkit.distill.config import DistillConfig
from kernelkit.distill.data.byte_tokenizer import byte_tokenizer
from kernelkit.distill.distiller import Distiller
from kernelkit.distill.model_plan import ModelPlan
from kernelkit.distill.parallel import Ranks
from kernelkit.distill.plan import Plan
from kernelkit.hardware import Hardware
from tests.distill.runs import config, settings, shape
from tests.models.families import small_config


def problems(folder, ranks=None, hardware=None, **sections):
    """Messages by loc of what a plan is refused for."""
    with pytest.raises(ValidationError) as caught:
        Plan.make(config(folder, **sections), ranks or Ranks(), hardware)
    return {".".join(map(str, line["loc"])): line["msg"] for line in caught.value.errors()}


def written(folder, *overrides, **sections):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings(folder, **sections), sort_keys=False))
    return DistillConfig.from_yaml(path, overrides)


def mistakes(folder, *overrides, **sections):
    with pytest.raises(ValidationError) as caught:
        written(folder, *overrides, **sections)
    return [line["msg"].removeprefix(str(folder)) for line in caught.value.errors()]


def test_a_file_an_override_and_a_mapping_give_the_same_config(tmp_path):
    assert written(tmp_path) == config(tmp_path)
    changed = written(tmp_path, "student.ops.rms_norm=torch", "train.steps=7", "loss={alpha: 0.5}")
    assert changed.student.ops.choices["rms_norm"].impl == "torch"
    assert (changed.train.steps, changed.train.save_every, changed.loss.divergence) == (7, 2, "forward_kl")


def test_a_config_survives_yaml(tmp_path):
    one = config(tmp_path)
    (tmp_path / "again.yaml").write_text(one.to_yaml())
    assert DistillConfig.from_yaml(tmp_path / "again.yaml") == one


def test_the_ops_may_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "ops.yaml").write_text("rms_norm: torch\n")
    found = written(tmp_path, f"student.ops={tmp_path / 'ops.yaml'}")
    assert found.student.ops.choices["rms_norm"].impl == "torch"
    (tmp_path / "ops.yaml").write_text("\nrms_norm: torhc\n")
    (message,) = mistakes(tmp_path, f"student.ops={tmp_path / 'ops.yaml'}")
    assert "ops.yaml:2:1: unknown implementation 'torhc' of rms_norm. Did you mean 'torch'?" in message


def test_every_mistake_has_the_line_or_the_override_that_it_is_in(tmp_path):
    found = mistakes(
        tmp_path, "student.ops.swiglu_mlp=ligr", "train.stps=4", "loss.alpha=2", data={"seq_len": 1}, optim={"lr": -1}
    )
    lines = (tmp_path / "run.yaml").read_text().splitlines()
    at = {
        name: number
        for number, line in enumerate(lines, 1)
        for name in ("seq_len", "lr")
        if line.strip().startswith(name)
    }
    assert any(message.startswith("student.ops.swiglu_mlp=ligr: unknown implementation 'ligr'") for message in found)
    assert any(
        message.startswith("train.stps=4: unknown key 'stps'. Did you mean 'steps'? Valid: ") for message in found
    )
    assert "loss.alpha=2: Input should be less than or equal to 1" in found
    for name, line in at.items():
        assert any(message.startswith(f"/run.yaml:{line}:3: ") for message in found), name
    assert len(found) == 5


def test_a_key_that_a_section_does_not_know_or_lacks_is_named_with_those_that_there_are(tmp_path):
    found = mistakes(tmp_path, "trian.steps=4", teacher={"pretrain": {}}, student={"opps": {}})
    assert "trian.steps=4: unknown key 'trian'. Did you mean 'train'? Valid: " in found[0]
    assert any(message.endswith(": steps is missing") for message in found)
    assert any("unknown key 'opps'. Did you mean 'ops'? Valid: path, config, ops, " in message for message in found)
    assert len(found) == 3


@pytest.mark.parametrize("override", ["optim.lr=.inf", "optim.betas=[0.9, 1.0]", "loss.temperature=.inf"])
def test_numbers_with_which_no_run_can_go_well_are_refused(tmp_path, override):
    (message,) = mistakes(tmp_path, override, loss={"divergence": "forward_kl"})
    assert message.startswith(f"{override}: Input should be ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "an override is of the form section.key=value"),
        ("=3", "an override is of the form section.key=value"),
        ("train.steps={", "'{' is not YAML"),
        ("train.steps.more=3", "train.steps is 5, not a section"),
    ],
)
def test_an_override_that_cannot_be_read_is_named(tmp_path, override, message):
    assert mistakes(tmp_path, override) == [f"{override}: {message}"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"path": "x"}}, "either a path (a checkpoint) or a config (new weights), and both are given"),
        ({"student": {"config": None}}, "and neither is given"),
        ({"loss": {"divergence": "forward_kl", "beta": 0.3}}, "beta is of jsd, and the divergence is forward_kl"),
        ({"optim": {"warmup_steps": 6}}, "the warm-up is longer than train.steps, which is 5"),
        ({"data": {"validation": None}, "eval": {"every": 2}}, "there are no validation data to evaluate on"),
        ({"teacher": {"config": None, "path": "x", "pretrain": {"steps": 2}}}, "only a teacher with new weights"),
        ({"teacher": {"dtype": "float16", "pretrain": {"steps": 2}}}, "float16 is for a teacher that is not trained"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(tmp_path, sections, message):
    assert any(message in found for found in mistakes(tmp_path, **sections))


def test_a_plan_tells_everything_that_is_wrong_with_both_models_and_the_data(tmp_path):
    found = problems(
        tmp_path,
        Ranks(0, 3),
        teacher={"ops": {"rms_norm": "liger"}},
        student={"config": shape(16, vocab_size=300, max_position_embeddings=16), "ops": {"swiglu_mlp": "triton"}},
        data={"validation": str(tmp_path / "none.txt")},
    )
    assert "runs on cuda or xpu, not on cpu" in found["teacher.ops.rms_norm"]
    assert "runs on cuda" in found["student.ops.swiglu_mlp"]
    assert "positions for 16 tokens, and a row has 32" in found["data.seq_len"]
    assert "4 rows cannot be divided over 3 ranks" in found["data.batch_size"]
    assert found.keys() == {
        "teacher.ops.rms_norm", "student.ops.swiglu_mlp", "data.seq_len", "data.batch_size", "data.validation"
    }  # fmt: skip


def test_no_weight_is_loaded_for_a_plan_that_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelPlan, "build", lambda *args, **options: pytest.fail("weights were loaded"))
    with pytest.raises(ValidationError, match="liger"):
        Distiller(config(tmp_path, teacher={"ops": {"rms_norm": "liger"}})).fit()
    assert not (tmp_path / "run").exists()


def test_vocabularies_of_different_size_are_refused_or_spelled_out(tmp_path):
    wide = {"student": {"config": shape(16, vocab_size=300)}}
    assert "the teacher's vocabulary has 264 tokens and the student's 300" in problems(tmp_path, **wide)["loss.vocab"]
    plan = Plan.make(config(tmp_path, **wide, loss={"vocab": "truncate"}), Ranks())
    assert plan.config.loss.distillation.truncate


def test_a_vocabulary_must_have_room_for_the_tokenizer(tmp_path):
    found = problems(tmp_path, teacher={"config": shape(24, vocab_size=200)}, loss={"vocab": "truncate"})
    assert found == {"data.tokenizer": "tokenizer bytes has 262 tokens, and the teacher's vocabulary 200"}


def test_a_checkpoints_own_tokenizer_must_be_that_of_the_data(tmp_path):
    folder = tmp_path / "teacher"
    build_model(small_config("qwen3", vocab_size=264)).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    given = {"teacher": {"config": None, "path": str(folder)}}
    assert Plan.make(config(tmp_path, **given), Ranks()).teacher.config.hidden_size == 32
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    assert "1 tokens differ, such as '<think>'" in problems(tmp_path, **given)["data.tokenizer"]


@pytest.mark.parametrize(
    ("model", "loc", "message"),
    [
        ({"config": None, "path": "nowhere"}, "teacher.path", "nowhere is no folder"),
        ({"config": {"model_type": "qwen33"}}, "teacher.config.model_type", "Did you mean 'qwen3'?"),
        ({"config": shape(24, hiden_act="silu")}, "teacher.config.hiden_act", "Did you mean 'hidden_act'?"),
        ({"config": shape(24, num_hidden_layers="two")}, "teacher.config", "num_hidden_layers"),
        ({"device": "cuda:77"}, "teacher.device", "cuda"),
        ({"device": "abacus"}, "teacher.device", "abacus"),
    ],
)
def test_a_model_that_cannot_be_is_refused(tmp_path, model, loc, message):
    assert message in problems(tmp_path, teacher=model)[loc]


def test_a_folder_without_a_model_is_refused(tmp_path):
    found = problems(tmp_path, teacher={"config": None, "path": str(tmp_path)})
    assert "has no config.json; a checkpoint in HF's format is wanted" in found["teacher.path"]


def test_ranks_have_an_accelerator_each(tmp_path):
    found = problems(tmp_path, Ranks(0, 2), Hardware.named("h100"), student={"device": "cuda:1"})
    assert "name no number" in found["student.device"]


def test_a_run_for_another_machine_is_planned_without_its_kernels(tmp_path):
    fast = {"preset": "triton", "distillation_loss": "triton"}
    plan = Plan.make(config(tmp_path, student={"ops": fast}), Ranks(world_size=4), Hardware.named("h200"))
    assert str(plan.student.device) == "cuda" and plan.student.outline().device.type == "meta"
