"""A run that was stopped, killed or damaged, and goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from dependency_injector import providers

from kernelkit.distill.checkpoints import MANIFEST, CheckpointError
from kernelkit.distill.distiller import Distiller
from kernelkit.distill.trainer import NonFiniteLossError
from tests.distill.runs import Memory, assert_same, config, figures, fitted, settings, shape, weights

STAGES = ("teacher", "student", "control")
LONG = {
    "teacher": {"pretrain": {"steps": 4}},
    "train": {"steps": 14, "save_every": 1, "control": True},
    "eval": {"every": 3},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole run with three stages, of more than one epoch."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fitted(folder, **LONG)
    return folder


def interrupted(folder, stage, step):
    """The same run, stopped by force after a step of a stage was written down."""
    distiller = Distiller(config(folder, **LONG))
    sinks = distiller.container.sinks()

    class Interrupting(Memory):
        def write(self, record):
            if (record.stage, record.kind, record.step) == (stage, "train", step):
                raise KeyboardInterrupt

    distiller.container.sinks.override(providers.Object([*sinks, Interrupting()]))
    with pytest.raises(KeyboardInterrupt):
        distiller.fit()


def resumed(folder, **options):
    Distiller(config(folder, **LONG)).fit(resume=True, **options)


@pytest.mark.parametrize(
    ("stage", "step"), [("teacher", 1), ("teacher", 3), ("student", 2), ("student", 12), ("control", 7)]
)
def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path, undisturbed, stage, step):
    interrupted(tmp_path, stage, step)
    resumed(tmp_path)
    for each in STAGES:
        assert_same(weights(tmp_path, each), weights(undisturbed, each))
    assert figures(tmp_path) == figures(undisturbed)


def test_resuming_a_finished_run_changes_nothing(tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    resumed(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    assert figures(tmp_path) == figures(undisturbed)


def command(folder):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings(folder, **LONG)))
    return [sys.executable, "-m", "kernelkit", "distill", str(path)]


def started(folder, *options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command(folder), *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(folder, moment):
    """Until the run has written so many records."""
    metrics = folder / "run/metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and metrics.read_text().count("\n") >= moment:
            return
        time.sleep(0.01)
    raise AssertionError("the run does not come that far")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, undisturbed, seed):
    draw = random.Random(seed)
    for number, moment in enumerate(sorted(draw.sample(range(1, 34), 3))):
        process = started(tmp_path, *(["--resume"] if number else []))
        wait_for(tmp_path, moment)
        # Anywhere in a step, a checkpoint or the saving of a model.
        time.sleep(draw.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert started(tmp_path, "--resume").wait() == 0
    for stage in STAGES:
        assert_same(weights(tmp_path, stage), weights(undisturbed, stage))
    assert figures(tmp_path) == figures(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_itself(tmp_path, undisturbed, number):
    process = started(tmp_path, "train.save_every=null")
    wait_for(tmp_path, 9)
    process.send_signal(number)
    assert process.wait() == 143
    assert len(list((tmp_path / "run/checkpoints/student").glob("step-*"))) == 1
    assert started(tmp_path, "--resume", "train.save_every=null").wait() == 0
    assert_same(weights(tmp_path), weights(undisturbed))
    assert figures(tmp_path) == figures(undisturbed)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut short": ("*.distcp", cut, "bytes of"),
    "a bit flipped": ("*.distcp", flip, "is not what was written"),
    "tensors missing": ("*.distcp", lambda path: path.unlink(), "is missing"),
    "index cut short": (".metadata", cut, "bytes of"),
    "manifest cut short": (MANIFEST, cut, "is no checkpoint of kernelkit, or is damaged"),
    "manifest missing": (MANIFEST, lambda path: path.unlink(), "is no checkpoint of kernelkit, or is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_last_good_one_taken_if_asked(tmp_path, undisturbed, name):
    pattern, damage, message = DAMAGES[name]
    interrupted(tmp_path, "student", 6)
    *_, good, last = sorted((tmp_path / "run/checkpoints/student").iterdir())
    damage(next(last.glob(pattern)))
    with pytest.raises(CheckpointError, match=rf"{last.name}.*{message}.*--resume-last-good") as caught:
        resumed(tmp_path)
    assert good.name not in str(caught.value)
    resumed(tmp_path, last_good=True)
    assert last.with_name(f"unused-{last.name}").is_dir()
    assert_same(weights(tmp_path), weights(undisturbed))
    assert figures(tmp_path) == figures(undisturbed)


CHANGES = {
    "optim.lr was 0.01 and is 0.02": {"optim": {"lr": 0.02}},
    "loss.alpha|distillation.alpha": {"loss": {"divergence": "jsd", "alpha": 0.5}},
    "steps was 5 and is 9": {"train": {"steps": 9, "save_every": 2}},
    "seed was 0 and is 3": {"train": {"steps": 5, "save_every": 2, "seed": 3}},
    "model.intermediate_size was 32 and is 40": {
        "student": {"config": shape(16, intermediate_size=40), "ops": {"preset": "eager"}}
    },
    "teacher.intermediate_size was 48 and is 40": {"teacher": {"config": shape(24, intermediate_size=40)}},
    "teacher.dtype was 'float32' and is 'bfloat16'": {"teacher": {"dtype": "bfloat16"}},
    "data.seq_len was 32 and is 16": {"data": {"seq_len": 16}},
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, message):
    fitted(tmp_path)
    shutil.rmtree(tmp_path / "run/student")
    described = (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(CheckpointError, match=message):
        Distiller(config(tmp_path, **CHANGES[message])).fit(resume=True)
    assert (tmp_path / "run/config.yaml").read_text() == described


def test_a_checkpoint_knows_the_weights_of_its_teacher(tmp_path):
    fitted(tmp_path)
    shutil.rmtree(tmp_path / "run/student")
    again = Distiller(config(tmp_path))
    again.teacher.model.model.norm.weight[0] += 1e-3
    with pytest.raises(CheckpointError, match=r"teacher.weights was '[0-9a-f]{16}' and is '"):
        again.fit(resume=True)


def test_a_finished_training_of_another_run_is_refused(tmp_path):
    fitted(tmp_path)
    with pytest.raises(CheckpointError, match=r"finished training .* was another: .*optim.lr was 0.01 and is 0.02"):
        Distiller(config(tmp_path, optim={"lr": 0.02})).fit(resume=True)
    (tmp_path / "run/checkpoints/student/finished.json").unlink()
    with pytest.raises(CheckpointError, match="does not tell of what run the finished model is"):
        Distiller(config(tmp_path)).fit(resume=True)


def test_kernels_may_be_changed_in_mid_run(tmp_path):
    fitted(tmp_path)
    shutil.rmtree(tmp_path / "run/student")
    ops = {"preset": "torch", "distillation_loss": "eager"}
    Distiller(config(tmp_path, student={"ops": ops})).fit(resume=True)
    assert (tmp_path / "run/student").is_dir()
    assert "preset: torch" in (tmp_path / "run/config.yaml").read_text()


def test_only_the_newest_checkpoints_are_kept_and_drafts_count_for_nothing(tmp_path):
    fitted(tmp_path, train={"steps": 9, "save_every": 2, "keep": 3})
    folder = tmp_path / "run/checkpoints/student"
    assert [path.name for path in sorted(folder.glob("step-*"))] == ["step-00000004", "step-00000006", "step-00000008"]
    shutil.rmtree(tmp_path / "run/student")
    (folder / ".step-00000009.draft").mkdir()
    Distiller(config(tmp_path, train={"steps": 9, "save_every": 2, "keep": 3})).fit(resume=True)
    assert figures(tmp_path)[-2][2] == 9


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    distiller = Distiller(config(tmp_path, train={"steps": 8, "save_every": 2}))
    student, calls = distiller.student, []

    def poisoned(module, args, output):
        calls.append(1)
        return output * (torch.nan if len(calls) == 5 else 1)

    student.model.embed_tokens.register_forward_hook(poisoned)
    distiller.container.student.override(providers.Object(student))
    distiller.container.evaluation.override(providers.Object(None))
    message = r"at step 5 of student, batch 4 of epoch 0, the loss is nan.*; the last checkpoint is .*step-00000004"
    with pytest.raises(NonFiniteLossError, match=message):
        distiller.fit()
    assert [path.name for path in sorted((tmp_path / "run/checkpoints/student").iterdir())][-1] == "step-00000004"
    assert not (tmp_path / "run/student").exists()
    assert all(torch.isfinite(weight).all() for weight in student.parameters())


def test_a_folder_that_is_no_run_is_not_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match=r"holds thesis\.tex and is no run of kernelkit"):
            Distiller(config(tmp_path)).fit(**options)
    fitted(tmp_path / "run", output={"dir": str(tmp_path / "other")})
    (tmp_path / "other/notes.txt").write_text("mine")
    (tmp_path / "other/.student.draft").mkdir()
    Distiller(config(tmp_path, output={"dir": str(tmp_path / "other")})).fit(overwrite=True)
    assert (tmp_path / "other/notes.txt").read_text() == "mine"
    assert not (tmp_path / "other/.student.draft").exists()


def test_a_manifest_lists_every_file(tmp_path):
    fitted(tmp_path)
    newest = sorted((tmp_path / "run/checkpoints/student").iterdir())[-1]
    listed = json.loads((newest / MANIFEST).read_text())["files"]
    assert set(listed) == {path.name for path in newest.iterdir()} - {MANIFEST}
