"""Which kernels ``kernelkit verify`` judges for a config; tests/testing shows how."""

from __future__ import annotations

import json

import pytest

from kernelkit.containers import kernel_container
from kernelkit.hardware import Hardware
from kernelkit.kernels.measurements import MeasuredGpu, Ranking

HERE = Hardware.detect("cpu")


@pytest.fixture
def measured(monkeypatch):
    """As if this machine had been measured; the test's kernels are none of its registry."""
    order = Ranking(op="swiglu_mlp", variant="silu", passes="fwd+bwd", date="2026-11-25", impls=("triton", "eager"))
    gpu = MeasuredGpu(gpu=HERE.name, capability=None, rankings=(order,))
    monkeypatch.setattr(kernel_container, "shipped", lambda: (gpu,))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "fastest.yaml"
    path.write_text("preset: fastest-training\n")
    return str(path)


def test_a_preset_that_goes_by_measurements_names_what_it_chooses(measured, config, run):
    result = run("verify", config, "--op", "swiglu_mlp", "--device", "cpu", "--json")
    assert [(each["op"], each["variant"], each["impl"]) for each in json.loads(result.stdout)] == [
        ("swiglu_mlp", "silu", "eager")
    ]


def test_where_nothing_was_measured_it_says_so(config, run):
    result = run("verify", config, "--device", "cpu")
    assert result.exit_code == 1
    assert "there are none of cpu" in result.stderr


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (
            ("--impl", "tocrh", "--op", "rms_norm"),
            2,
            "unknown implementation 'tocrh' of rms_norm. Did you mean 'torch'?",
        ),
        (("--op", "rms_norm", "--device", "cuda:99"), 2, "this machine has no device 'cuda:99'"),
        (("--op", "rms_norm", "--impl", "liger_npu", "--device", "cpu"), 1, ""),
    ],
    ids=["unknown", "no device", "nothing judged"],
)
def test_what_cannot_be_judged_is_no_success(options, status, message, run):
    result = run("verify", *options)
    assert result.exit_code == status and isinstance(result.exception, SystemExit)
    assert message in result.stderr
