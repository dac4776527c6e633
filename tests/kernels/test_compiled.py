"""How the implementations named ``compile`` are made."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch._dynamo.testing import CompileCounterWithBackend

from kernelkit.hardware import Hardware
from kernelkit.kernels.compiled import CompileOptions, compiled, problem
from kernelkit.kernels.rms_norm import eager
from kernelkit.registry import default_registry

CPU = Hardware.detect("cpu")


@pytest.fixture
def counter(monkeypatch):
    """Counts compilations, in place of inductor, which takes seconds for each."""
    backend = CompileCounterWithBackend("eager")
    compile_ = torch.compile
    settings = []

    def compile_with_counter(function, *, fullgraph, dynamic, options):
        settings.append(options)
        return compile_(function, fullgraph=fullgraph, dynamic=dynamic, backend=backend)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", compile_with_counter)
    backend.settings = settings
    return backend


def norm(*shape, requires_grad=False):
    return torch.randn(shape, requires_grad=requires_grad), torch.ones(shape[-1]), 1e-6


def test_a_call_compiles_once_and_another_size_once_more_for_any(counter):
    kernel = compiled(eager.standard, CompileOptions())
    for length in (5, 5, 6, 7, 8):
        kernel(*norm(length, 64))
    assert counter.frame_count == 2


def test_a_norm_called_in_every_way_of_a_model_never_reaches_dynamos_limit(counter):
    kernel = compiled(eager.standard, CompileOptions())
    for requires_grad in (False, True):
        for shape in ((2, 5, 64), (1, 5, 64), (2, 1, 64), (1, 1, 64), (3, 6, 64), (2, 5, 4, 16), (3, 5, 4, 16)):
            arguments = norm(*shape, requires_grad=requires_grad)
            assert torch.equal(kernel(*arguments), eager.standard(*arguments))
    assert counter.frame_count > torch._dynamo.config.recompile_limit


def test_two_models_share_no_compiled_code(counter):
    first, second = (compiled(eager.standard, CompileOptions()) for _ in range(2))
    first(*norm(5, 64))
    first(*norm(6, 64))
    before = counter.frame_count
    second(*norm(5, 64))
    assert counter.frame_count == before + 1


def test_the_mode_comes_with_eager_rounding(counter):
    compiled(eager.standard, CompileOptions(mode="max-autotune-no-cudagraphs"))(*norm(5, 64))
    (options,) = counter.settings
    assert options["max_autotune"] is True
    assert options["emulate_precision_casts"] is True


def test_modes_with_cuda_graphs_are_refused():
    with pytest.raises(ValidationError, match="max-autotune-no-cudagraphs"):
        CompileOptions(mode="reduce-overhead")


def test_within_an_outer_compile_it_becomes_part_of_that_graph(counter):
    kernel = compiled(eager.standard, CompileOptions())
    arguments = norm(5, 64)

    def outer(*arguments):
        return kernel(*arguments).sum()

    whole = torch.compile(outer, fullgraph=True, dynamic=None, options=None)
    torch.testing.assert_close(whole(*arguments), outer(*arguments))
    assert counter.settings[0] is None
    assert len(counter.graphs) == 2  # the outer one, and the kernel's own, called directly for comparison


def test_keyword_arguments_and_their_values_are_told_apart(counter):
    def scaled(tensor, *, factor=1.0, negative=False):
        return -tensor * factor if negative else tensor * factor

    kernel = compiled(scaled, CompileOptions())
    assert kernel(torch.ones(2), negative=True).tolist() == [-1, -1]
    assert kernel(torch.ones(2), factor=3.0).tolist() == [3, 3]
    assert kernel(torch.ones(2)).tolist() == [1, 1]


def test_without_a_cpp_compiler_compile_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert problem(CPU) == "needs a C++ compiler, and no-such-compiler is not found: install one, or set CXX"


def test_the_compiler_of_the_environment_is_the_one_looked_for(monkeypatch, tmp_path):
    mine = tmp_path / "my-c++"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "g++ is not found" in problem(CPU)
    monkeypatch.setenv("CXX", "my-c++")
    assert "C++" not in (problem(CPU) or "")


def test_on_a_gpu_it_is_triton_that_needs_a_compiler_and_that_is_for_c(monkeypatch):
    gpu = Hardware(device_type="cuda", name="gpu", capability=(9, 0), packages={})
    monkeypatch.setenv("CC", "no-such-compiler")
    assert problem(gpu) == "needs a C compiler, and no-such-compiler is not found: install one, or set CC"


def test_every_kernel_named_compile_asks_for_the_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    specs = default_registry().list(name="compile")
    assert {spec.op for spec in specs} >= {"rms_norm", "rotary_pos_emb", "swiglu_mlp", "cross_entropy_loss"}
    assert all("C++ compiler" in spec.problem(CPU) for spec in specs)


def test_a_graph_break_raises_instead_of_running_eager():
    def breaks(tensor):
        torch._dynamo.graph_break()
        return tensor + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(breaks, CompileOptions())(torch.ones(2))
