from __future__ import annotations

from kernelkit.kernels import measurements
from kernelkit.kernels.measurements import MeasuredGpu, Ranking


def test_an_op_is_explained_by_its_contract_its_variants_and_its_implementations(run):
    text = run("explain", "sum").stdout
    assert "Add two tensors.\n\nFor the tests of the command alone." in text
    assert "sum(\n    left: Tensor,\n    right: Tensor,\n    *,\n    scale: float = 1.0,\n) -> Tensor\n" in text
    assert "    Return scale * (left + right), [N]." in text
    assert "plain    torch.add  eager" in text
    assert "eager           plain, wide  The reference." in text


def test_every_built_in_op_and_implementation_can_be_explained(run, known_registry):
    for op in known_registry.ops:
        assert run("explain", op).exit_code == 0
        for impl in known_registry.impls(op):
            assert run("explain", op, impl).stdout.startswith(f"{op}: {impl}\n")


def test_an_op_shows_what_was_measured_to_be_fast(run, monkeypatch):
    order = Ranking(op="sum", variant="plain", passes="fwd", date="2026-11-25", impls=("hopper", "eager"))
    gpu = MeasuredGpu(gpu="NVIDIA H200", capability=(9, 0), rankings=(order,))
    monkeypatch.setattr(measurements, "shipped", lambda: (gpu,))
    *_, last = run("explain", "sum").stdout.splitlines()
    assert [cell.strip() for cell in last.split("  ") if cell] == [
        "NVIDIA H200",
        "plain",
        "fwd",
        "2026-11-25",
        "hopper, eager",
    ]
    assert "measured on" not in run("explain", "rms_norm").stdout


def test_an_implementation_is_explained_by_what_it_declares(run, known_registry):
    facts = dict(line.split("  ", 1) for line in run("explain", "sum", "hopper").stdout.splitlines() if "  " in line)
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["needs"] == "cuda, compute capability at least 9.0, hopper-sums>=2"
    assert facts["dtypes"] == "bfloat16"
    assert facts["limits"] == "width up to 64"
    assert facts["declared at"] == known_registry.get("sum", "plain", "hopper").location


def test_options_are_shown_with_type_default_and_their_docstring(run):
    text = run("explain", "sum", "tuned").stdout
    assert "order   Literal['left', 'right']  'left'" in text
    assert "width   int                       required" in text
    assert "order: which operand comes first." in text


def test_an_implementation_without_options_says_so(run):
    assert "It takes no options." in run("explain", "sum", "eager").stdout


def test_variants_that_differ_are_explained_one_by_one(run):
    text = run("explain", "sum", "eager").stdout
    assert [line.split() for line in text.splitlines() if line.startswith("variant")] == [
        ["variant", "plain"],
        ["variant", "wide"],
    ]


def test_unknown_names_get_one_line_with_the_nearest_name(refused):
    assert refused("explain", "sun").startswith("kernelkit: unknown op 'sun'. Did you mean 'sum'?")
    assert refused("explain", "sum", "eagr").startswith(
        "kernelkit: unknown implementation 'eagr' of sum. Did you mean 'eager'? Valid: eager, hopper, "
    )
