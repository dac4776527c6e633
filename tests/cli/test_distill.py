"""``kernelkit distill``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kernelkit.cli.app import app
from kernelkit.errors import UnverifiedWarning

ROOT = Path(__file__).parents[2]
CONFIGS = [
    # What torch.compile keeps for a backward is found by compiling.
    pytest.param(path, marks=pytest.mark.slow if "compile: true" in path.read_text() else (), id=path.name)
    for path in sorted((ROOT / "configs/distill").glob("*.yaml"))
]

SMALL = "vocab_size: 264, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1"
RUN = f"""
teacher:
  config: {{model_type: qwen3, hidden_size: 32, head_dim: 16, {SMALL}}}
  ops: {{rms_norm: torch}}
student:
  config: {{model_type: qwen3, hidden_size: 16, head_dim: 16, {SMALL}}}
  ops: {{preset: eager}}
data: {{train: text.txt, seq_len: 16, batch_size: 2}}
train: {{steps: 3, save_every: 1}}
output: {{dir: out, tensorboard: false}}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command in a folder that holds run.yaml and its text."""
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["distill", "run.yaml", *arguments])


@pytest.mark.parametrize("path", CONFIGS)
def test_a_config_is_accepted_on_the_hardware_that_it_names(path):
    named = dict(re.findall(r"^# (hardware|ranks): (.+)$", path.read_text(), re.MULTILINE))
    options = ["--hardware", named["hardware"], "--ranks", named.get("ranks", "1")]
    done = CliRunner().invoke(app, ["distill", str(path), "--dry-run", *options])
    assert done.exit_code == 0, done.output
    assert done.output.count("Kernels of") == 2
    assert re.search(r"peak memory per rank +\d+\.\d\d GiB predicted", done.output), done.output


def test_a_run_says_its_kernels_its_results_and_where_the_report_is(run):
    done = run()
    assert done.exit_code == 0, done.output
    assert done.output.count("Kernels of Qwen3ForCausalLM") == 2
    assert re.search(r"^student +\S+", done.output, re.MULTILINE)
    assert "The report is out/report.html" in done.output
    assert json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_a_dry_run_writes_nothing(run):
    done = run("--dry-run")
    assert done.exit_code == 0, done.output
    assert "tokens per step" in done.output and not Path("out").exists()


def test_all_mistakes_are_told_with_their_places_before_anything_is_written(run):
    done = run("student.ops.rms_norm=ligr", "train.stps=4", "optim.lr")
    assert done.exit_code == 1 and not Path("out").exists()
    assert "student.ops.rms_norm=ligr: unknown implementation 'ligr' of rms_norm. Did you mean 'liger'?" in done.output
    assert "train.stps=4: unknown key 'stps'. Did you mean 'steps'?" in done.output
    assert "optim.lr: an override is of the form section.key=value" in done.output
    Path("run.yaml").write_text(RUN.replace("rms_norm: torch", "rms_norm: liger"))
    assert "run.yaml:4:9: rms_norm: liger (named) runs on cuda or xpu, not on cpu" in run().output


def test_a_finished_run_is_left_alone_resumed_or_overwritten(run):
    assert run().exit_code == 0
    again = run()
    assert again.exit_code == 1 and "--resume goes on with it, --overwrite begins anew" in again.output
    before = Path("out/student/model.safetensors").stat().st_mtime_ns
    assert run("--resume").exit_code == 0
    assert Path("out/student/model.safetensors").stat().st_mtime_ns == before
    assert run("--overwrite").exit_code == 0
    assert Path("out/student/model.safetensors").stat().st_mtime_ns > before


def test_options_that_make_no_sense_together_are_refused(run):
    assert "are for --dry-run" in run("--hardware", "h100").output
    assert "give one of them" in run("--resume", "--overwrite").output


@pytest.mark.parametrize("folder", ["text.txt", "text.txt/out", "/proc/out"])
def test_a_folder_that_cannot_be_had_is_one_line(run, folder):
    done = run(f"output.dir={folder}")
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert done.stderr.startswith(f"kernelkit: {folder}") and done.stderr.count("\n") == 1


def test_resuming_where_no_run_is_says_that_it_begins(run):
    done = run("--resume")
    assert done.exit_code == 0 and "kernelkit: out holds no run yet; it begins now" in done.stderr
    assert "holds no run" not in run("--resume").stderr


def test_a_pattern_of_modules_that_fits_none_has_its_place(run):
    override = "student.ops={overrides: {layers.7.mlp: {swiglu_mlp: eager}}}"
    done = run(override)
    assert done.exit_code == 1 and not Path("out").exists()
    assert f"{override}: no module of Qwen3ForCausalLM at layers.7.mlp calls swiglu_mlp" in done.stderr


def test_a_run_that_verifies_its_kernels_does_not_warn_that_its_outline_is_on_meta(run, recwarn):
    assert run("student.ops.verify=bind").exit_code == 0
    assert not [each for each in recwarn if each.category is UnverifiedWarning]
