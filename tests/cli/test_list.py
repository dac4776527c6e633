from __future__ import annotations


def row(result, impl):
    (line,) = [line for line in result.stdout.splitlines() if line.split()[:2] == ["sum", impl]]
    return " ".join(line.split())


def test_every_implementation_of_every_op_is_listed(run, known_registry):
    lines = [line.split()[:2] for line in run("list").stdout.splitlines()]
    for op in known_registry.ops:
        for impl in known_registry.impls(op):
            assert [op, impl] in lines


def test_variants_of_which_the_same_is_true_share_a_row(run):
    assert row(run("list", "--op", "sum"), "eager") == "sum eager plain, wide yes"


def test_a_kernel_that_cannot_run_here_says_why(run):
    assert (
        row(run("list", "--op", "sum", "--hardware", "cpu"), "hopper") == "sum hopper plain no runs on cuda, not on cpu"
    )


def test_a_named_machine_is_asked_instead_of_this_one(run):
    result = run("list", "--op", "sum", "--hardware", "h100")
    assert result.stdout.startswith("Kernels on h100 ")
    assert row(result, "hopper") == "sum hopper plain yes"


def test_what_one_should_know_before_choosing_is_noted(run):
    result = run("list", "--op", "sum")
    assert row(result, "sketch").endswith(
        "yes not run on its hardware yet; not traceable by torch.compile; not deterministic"
    )
    assert row(result, "forward").endswith("yes inference only")


def test_a_plugin_that_cannot_be_loaded_is_named_below_with_its_reason(run):
    last = run("list", "--op", "sum").stdout.splitlines()[-1]
    assert last.startswith(
        "plug-in tidal (tidal.kernels:register) cannot be loaded: ModuleNotFoundError: No module named"
    )


def test_nothing_is_cut_where_the_output_is_piped(run, known_registry):
    long = known_registry.list("sum", name="eager")[0].model_copy(
        update={"name": "long", "packages": (f"a-package-{'with-a-long-name' * 20}",)}
    )
    known_registry.register(long)
    line = row(run("list", "--op", "sum"), "long")
    assert "…" not in line
    assert line.endswith(f"pip install '{long.packages[0]}'")


def test_an_unknown_op_gets_one_line_with_the_nearest_name(refused):
    assert refused("list", "--op", "rms_nrom").startswith(
        "kernelkit: unknown op 'rms_nrom'. Did you mean 'rms_norm'? Valid: add_rms_norm, attention, "
    )


def test_an_unknown_machine_gets_one_line_with_the_nearest_name(refused):
    assert refused("list", "--hardware", "h1000").startswith(
        "kernelkit: unknown hardware 'h1000'. Did you mean 'h100'?"
    )
