from __future__ import annotations

import json

import torch

import kernelkit


def test_the_schema_completes_every_op_and_implementation(run, known_registry):
    schema = json.loads(run("schema").stdout)
    for op in known_registry.ops:
        text = json.dumps(schema["properties"][op])
        assert all(f'"{impl}"' in text for impl in known_registry.impls(op))
    assert schema["additionalProperties"] is False


def test_the_schema_goes_to_a_file_on_request(run, tmp_path):
    file = tmp_path / "ops.schema.json"
    assert run("schema", "-o", file).stdout == ""
    assert json.loads(file.read_text()) == json.loads(run("schema").stdout)


def test_a_file_that_cannot_be_written_gets_one_line(refused, tmp_path):
    assert refused("schema", "-o", tmp_path / "none" / "ops.json").endswith(
        "cannot be written: No such file or directory"
    )


def test_env_gives_versions_and_the_state_of_each_kernel(run):
    report = json.loads(run("env", "--json").stdout)
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["kernelkit"] == kernelkit.__version__
    assert report["machine"]["cuda"] == torch.version.cuda
    assert report["kernels"]["attention"]["eager"] == "available"
    assert report["kernels"]["sum"]["lost"].startswith("cannot be loaded: ModuleNotFoundError")
    assert list(report["broken_plugins"]) == ["tidal (tidal.kernels:register)"]


def test_env_is_text_to_paste_unless_json_is_asked_for(run):
    lines = run("env").stdout.splitlines()
    assert ["torch", torch.__version__] in [line.split() for line in lines]
    assert ["sum", "eager", "available"] in [line.split() for line in lines]
    assert lines[-1].startswith("plug-in tidal")


def test_a_kernel_whose_options_have_no_defaults_is_not_called_broken(run):
    assert json.loads(run("env", "--json").stdout)["kernels"]["sum"]["tuned"] == "not tried: it needs options (width)"


def test_a_compiler_that_is_named_and_missing_is_not_reported(run, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert json.loads(run("env", "--json").stdout)["machine"]["c++ compiler"] is None
