from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kernelkit.bench.charts import draw
from kernelkit.bench.records import Run, read, slug_of
from kernelkit.bench.results import publish, render
from kernelkit.bench.targets import read_targets
from tests.bench.conftest import H200

ROOT = Path(__file__).parents[2]


def rows(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_an_implementation_is_a_row_with_both_passes_and_what_it_reaches(made_up):
    text = render({"h200": [made_up("eager", ms=4.0), made_up("eager", "fwd+bwd", 8.0), made_up("triton", ms=1.25)]})
    assert rows(text) == [
        "|  | fwd ms | of floor | fwd+bwd ms | of floor | achieved | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| eager | 4 | 25% | 8 | 12% | 3.50 TB/s | 12 |",
        "| triton | 1.25 | 80% | - | - | 3.50 TB/s | 12 |",
    ]


def test_the_document_names_device_run_versions_and_shape(made_up):
    text = render({"nvidia-h200": [made_up("eager")]})
    assert "## NVIDIA H200" in text
    assert "Run made-up: kernelkit 0.1.0, torch 2.11.0." in text
    assert "standard, batch=4 hidden_size=64:" in text
    assert "![rms_norm](results/nvidia-h200/rms_norm.png)" in text


def test_what_failed_is_told_with_its_reason(made_up):
    text = render({"h200": [made_up("eager"), made_up("liger", ms=None, error="OutOfMemoryError: 57 GiB")]})
    assert "| liger | - | - | - | - | - | - |" in text
    assert "- `liger`, fwd: OutOfMemoryError: 57 GiB" in text


def test_a_time_that_is_not_a_graphs_is_marked(made_up):
    slow = made_up("liger").model_copy(update={"how": "events"})
    assert "| liger | 2* |" in render({"h200": [slow]})


def test_whole_steps_have_a_table_of_their_own(made_up):
    step = made_up("stock", "fwd+bwd", 300.0, op="step", tokens_per_s=50_214.4, loss=12.3456, of_floor=None)
    text = render({"h200": [step]})
    assert "### Whole steps" in text
    assert "| stock | 50,214 | 300 | 12 | 12.3456 | made-up |" in rows(text)


WANTED = """NVIDIA H200:
  - {op: rms_norm, shape: batch=4 hidden_size=64, pass: fwd, ms: 1.5, peak_mib: 12}
  - {op: rms_norm, shape: batch=4 hidden_size=64, pass: fwd+bwd, ms: 1.5, bound: memory}
  - {op: step, shape: batch=8, variant: qwen3, pass: fwd+bwd, tokens_per_s: 100, bound: power}
  - {op: swiglu_mlp, shape: batch=4, pass: fwd, ms: 1.5}
"""


def test_what_is_wanted_is_set_against_the_fastest_of_ours_or_what_bounds_it(tmp_path, made_up):
    (tmp_path / "targets.yaml").write_text(WANTED)
    of_step = {"op": "step", "variant": "qwen3", "shape": "batch=8", "pass": "fwd+bwd"}
    kernels = [made_up("eager", ms=1.0), made_up("triton", ms=1.25), made_up("triton", "fwd+bwd", 2.0)]
    slow, fast = (
        made_up(name, ms=ms, tokens_per_s=tokens, **of_step)
        for name, ms, tokens in (("preset: triton", 2.0, 90.0), ("injected, preset: triton", 1.0, 101.0))
    )
    text = publish(tmp_path, [*kernels, slow, fast]).read_text()
    assert [line for line in rows(text) if "batch=" in line] == [
        "| `rms_norm`, batch=4 hidden_size=64 | fwd | 1.5 ms, 12 MiB | 1.25 ms, 12 MiB (triton) | met |",
        "| `rms_norm`, batch=4 hidden_size=64 | fwd+bwd | 1.5 ms | 2 ms (triton) | memory |",
        "| qwen3, batch=8 | fwd+bwd | 100 tokens/s | 101 tokens/s (injected, preset: triton) | met |",
    ]


def test_a_target_may_be_for_another_implementation(tmp_path, made_up):
    (tmp_path / "targets.yaml").write_text(
        "NVIDIA H200:\n  - {op: rms_norm, shape: batch=4 hidden_size=64, pass: fwd, ms: 1.5, impl: quack}\n"
    )
    text = publish(tmp_path, [made_up("triton", ms=1.0), made_up("quack", ms=1.25)]).read_text()
    assert "| 1.25 ms (quack) | met |" in text


def test_what_our_targets_are_for_was_measured():
    for gpu, targets in read_targets(ROOT / "benchmarks/targets.yaml").items():
        records = read(ROOT / f"benchmarks/results/{slug_of(gpu)}.json")
        for target in targets:
            best = target.best(records)
            assert best is not None, target
            assert target.met_by(best) or target.bound, f"{target} is missed, and no reason is given"


def test_publishing_writes_the_results_their_charts_and_the_document(tmp_path, made_up):
    document = publish(tmp_path, [made_up("eager"), made_up("triton", "fwd+bwd")])
    assert document.read_text().startswith("# Results")
    assert len(read(tmp_path / "results/nvidia-h200.json")) == 2
    assert (tmp_path / "results/nvidia-h200/rms_norm.png").read_bytes().startswith(b"\x89PNG")


def test_a_later_run_replaces_the_ops_that_it_measured_and_no_other(tmp_path, made_up):
    publish(tmp_path, [made_up("eager"), made_up("liger"), made_up("eager", op="swiglu_mlp")])
    later = dataclasses.replace(H200, id="later")
    text = publish(tmp_path, [made_up("triton", run=later)]).read_text()
    found = {(each.op, each.impl, each.run) for each in read(tmp_path / "results/nvidia-h200.json")}
    assert found == {("rms_norm", "triton", "later"), ("swiglu_mlp", "eager", "made-up")}
    assert "Run later" in text and "Run made-up" in text


def test_a_later_step_replaces_itself_and_no_other_way_of_running_it(tmp_path, made_up):
    later = dataclasses.replace(H200, id="later")
    publish(tmp_path, [made_up("stock", "fwd+bwd", op="step"), made_up("injected", "fwd+bwd", op="step")])
    text = publish(tmp_path, [made_up("injected", "fwd+bwd", op="step", run=later)]).read_text()
    assert [line.split(" | ")[-1] for line in rows(text) if line.startswith(("| stock", "| injected"))] == [
        "made-up |",
        "later |",
    ]


def test_two_devices_stand_in_one_document(tmp_path, made_up):
    h100 = dataclasses.replace(H200, gpu="NVIDIA H100")
    publish(tmp_path, [made_up("eager")])
    text = publish(tmp_path, [made_up("eager", run=h100)]).read_text()
    assert text.index("## NVIDIA H100") < text.index("## NVIDIA H200")


def test_a_cpu_publishes_nothing(tmp_path, made_up):
    cpu = Run("cpu")
    with pytest.raises(ValueError, match="published from a GPU alone"):
        publish(tmp_path, [made_up("eager", run=cpu)])
    assert list(tmp_path.iterdir()) == []


def test_a_chart_is_drawn_for_each_op_of_which_something_was_timed(tmp_path, made_up):
    records = [made_up("eager"), made_up("eager", op="swiglu_mlp"), made_up("eager", op="moe_experts", ms=None)]
    assert [path.name for path in draw(tmp_path, records)] == ["rms_norm.png", "swiglu_mlp.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
