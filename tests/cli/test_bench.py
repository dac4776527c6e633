from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernelkit.bench import steps
from kernelkit.bench.records import Run, read, write
from kernelkit.hardware import Hardware


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch, tmp_path):
    cpu = Hardware.detect("cpu")
    monkeypatch.setattr(Hardware, "detect", lambda *_: cpu)
    monkeypatch.chdir(tmp_path)


def test_every_implementation_of_an_op_is_a_line_and_a_record(run):
    result = run("bench", "--op", "swiglu_mlp", "--impl", "eager", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "Small shapes, which say nothing of speed" in result.stdout
    assert [line.split()[:3] for line in result.stdout.splitlines() if line.startswith("swiglu_mlp")] == [
        ["swiglu_mlp", "eager", "fwd"],
        ["swiglu_mlp", "eager", "fwd+bwd"],
    ]
    assert [(record.op, record.passes) for record in read(Path("out/cpu.json"))] == [
        ("swiglu_mlp", "fwd"),
        ("swiglu_mlp", "fwd+bwd"),
    ]
    assert Path("out/cpu.csv").exists() and Path("out/swiglu_mlp.png").exists()


def test_an_earlier_run_is_compared(run):
    run("bench", "--op", "swiglu_mlp", "--impl", "eager", "--out", "out")
    records = json.loads(Path("out/cpu.json").read_text())
    Path("old.json").write_text(json.dumps([record | {"ms": record["ms"] * 1e6} for record in records]))
    result = run("bench", "--op", "swiglu_mlp", "--impl", "eager", "--out", "out", "--compare", "old.json")
    table = result.stdout.partition("Before: cpu")[2].splitlines()
    assert table[1].split()[-2:] == ["ms", "ratio"]
    assert [row.split()[-1] for row in table[2:4]] == ["0.00", "0.00"]


def test_a_whole_step_is_a_case_of_its_name(run, monkeypatch):
    measured = {"ms": 2.0, "how": "clock", "peak_mib": None, "tokens_per_s": 64_000.0, "loss": 6.5}
    monkeypatch.setattr(steps, "_apart", lambda *_: measured)
    result = run("bench", "--step", "--model", "qwen3-0.6b", "--impl", "stock", "--out", "out")
    assert result.exit_code == 0, result.output
    assert "step stock fwd+bwd 2.0000 ms 64,000 tokens/s qwen3-0.6b, batch=2 length=64" in " ".join(
        result.stdout.split()
    )
    (record,) = read(Path("out/cpu-step.json"))
    assert (record.variant, record.impl, record.shape) == ("qwen3-0.6b", "stock", "batch=2 length=64")


def gpu_run(tmp_path):
    facts = {"op": "rms_norm", "variant": "standard", "impl": "eager", "shape": "batch=4", "pass": "fwd", "ms": 2.0}
    write(tmp_path / "h200.json", [Run("NVIDIA H200", {"torch": "2.11.0"}, "made-up").record(**facts)])
    return "h200.json"


def test_the_records_of_a_run_elsewhere_are_published_without_measuring(run, tmp_path):
    result = run("bench", "--from", gpu_run(tmp_path), "--publish", "benchmarks", "--compare", "h200.json")
    assert result.exit_code == 0, result.output
    assert "| eager | 2 |" in Path("benchmarks/RESULTS.md").read_text()
    assert Path("benchmarks/results/nvidia-h200.json").exists()
    assert "1.00" in result.stdout


def test_the_records_of_a_cpu_are_not(run, refused):
    run("bench", "--op", "swiglu_mlp", "--impl", "eager", "--out", "out")
    said = refused("bench", "--from", "out/cpu.json", "--publish", "benchmarks")
    assert (
        said == "kernelkit: a CPU runs small shapes, which say nothing of speed: results are published from a GPU alone"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--op", "rms_nrom"), "unknown op 'rms_nrom'. Did you mean 'rms_norm'?"),
        (("--step", "--model", "qwen3"), "unknown model 'qwen3'."),
        (("--step", "--op", "rms_norm"), "--op is for kernels, and --model for --step"),
        (("--publish", "."), "cpu runs small shapes, which say nothing of speed: --publish needs a GPU"),
        (("--impl", "eager", "--publish", "."), "--publish replaces all implementations of an op"),
        (("--step", "--impl", "stock", "--publish", "."), "cpu runs small shapes, which say nothing of speed"),
        (("--compare", "nowhere.json"), "[Errno 2] No such file or directory: 'nowhere.json'"),
    ],
)
def test_what_does_not_go_together_is_one_line(refused, arguments, said):
    assert refused("bench", *arguments).startswith(f"kernelkit: {said}")


def test_where_nothing_is_left_to_measure_it_says_so(run):
    result = run("bench", "--op", "rms_norm", "--impl", "triton")
    assert result.exit_code == 2
    assert "nothing of this runs here: see kernelkit list" in result.stderr
