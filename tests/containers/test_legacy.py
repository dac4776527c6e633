"""VeOmni's field names."""

from __future__ import annotations

import inspect
import runpy
import warnings

import pytest

from kernelkit.containers import KernelChoice, KernelContainer, Need, OpsConfig
from kernelkit.errors import LegacyNameWarning
from tests.containers.fakes import CPU, mistakes, spec


@pytest.fixture
def registry(registry):
    for name in ("quack", "triton", "npu"):
        registry.register(spec(name, "moe_experts"))
    registry.register(spec("liger", "moe_experts"))
    return registry


def load(registry, **data):
    return OpsConfig.load(data, registry=registry)


@pytest.mark.parametrize(
    ("field", "value", "op", "impl"),
    [
        ("rms_norm_implementation", "liger_kernel", "rms_norm", "liger"),
        ("rms_norm_implementation", "eager", "rms_norm", "eager"),
        ("attn_implementation", "flash_attention_3", "attention", "flash_attention_3"),
        ("moe_experts_implementation", "liger_kernel", "moe_experts", "liger"),
        ("moe_implementation", "eager", "moe_experts", "eager"),
        ("moe_implementation", "fused", "moe_experts", "quack"),
        ("moe_implementation", "fused_triton", "moe_experts", "triton"),
        ("moe_implementation", "fused_quack", "moe_experts", "quack"),
        ("moe_implementation", "fused_npu", "moe_experts", "npu"),
    ],
)
def test_an_old_name_is_read_with_a_warning_that_gives_the_new_one(registry, field, value, op, impl):
    with pytest.warns(LegacyNameWarning) as caught:
        config = load(registry, **{field: value})
    assert isinstance(caught[0].message, DeprecationWarning)
    assert config == load(registry, **{op: impl})
    assert [str(each.message) for each in caught] == [f"{field}: {value!r} is VeOmni's spelling; write {op}: {impl}"]


def test_a_config_with_old_names_is_written_with_the_new_ones_in_their_order(registry, write):
    path = write("moe_implementation: fused\nrms_norm: torch\nattn_implementation: sdpa\n")
    with pytest.warns(LegacyNameWarning):
        config = OpsConfig.from_yaml(path, registry=registry)
    assert config.to_yaml() == "moe_experts: quack\nrms_norm: torch\nattention: sdpa\n"


def test_the_warning_is_about_the_line_of_the_user():
    old = {"rms_norm_implementation": "eager"}
    for read in (
        lambda: (OpsConfig(**old), here()),
        lambda: (OpsConfig.load(old), here()),
        lambda: (KernelContainer.from_config(old, hardware=CPU), here()),
    ):
        with pytest.warns(LegacyNameWarning) as caught:
            _, line = read()
        assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def here() -> int:
    return inspect.currentframe().f_back.f_lineno


def test_a_warning_about_a_file_names_the_place_of_the_key(write):
    path = write("attention: sdpa\nrms_norm_implementation: eager\n")
    with pytest.warns(LegacyNameWarning, match=f"^{path}:2:1: rms_norm_implementation: 'eager' is VeOmni's spelling"):
        OpsConfig.load(path)


def test_python_shows_the_warning_to_whoever_runs_a_script_with_an_old_name(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("from kernelkit import OpsConfig\n\nOpsConfig(rms_norm_implementation='eager')\n")
    with warnings.catch_warnings(record=True) as caught:
        # What Python does with a DeprecationWarning by itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        runpy.run_path(str(script), run_name="__main__")
    assert [(each.filename, each.lineno) for each in caught] == [(str(script), 3)]


def test_an_error_points_at_the_key_that_the_user_wrote(registry, write):
    with pytest.warns(LegacyNameWarning):
        found = mistakes(lambda: load(registry, moe_implementation="fusd", rms_nrom_implementation="eager"))
    assert found[("moe_implementation",)][1].startswith("unknown implementation 'fusd' of moe_experts.")
    assert found[("rms_nrom_implementation",)][1].startswith("unknown op 'rms_nrom'. Did you mean 'rms_norm'?")


def test_an_error_of_a_later_phase_points_at_the_key_that_the_user_wrote(registry, write):
    path = write("\nrms_norm_implementation: liger_kernel\n")
    with pytest.warns(LegacyNameWarning):
        config = OpsConfig.from_yaml(path, registry=registry)
    found = mistakes(lambda: KernelContainer.from_config(config, registry=registry, hardware=CPU))
    assert found[("rms_norm_implementation",)][1].startswith(f"{path}:2:1: rms_norm: liger (named) runs on cuda")

    with pytest.warns(LegacyNameWarning):
        container = KernelContainer.from_config({"moe_implementation": "fused"}, registry=registry, hardware=CPU)
    found = mistakes(lambda: container.bind([Need("rms_norm")], model="M"))
    assert set(found) == {("moe_implementation",)}


def test_an_old_and_a_new_name_that_agree_are_one(registry):
    with pytest.warns(LegacyNameWarning):
        config = load(registry, rms_norm={"impl": "tuned", "scale": 2}, rms_norm_implementation="tuned")
    assert config.choices["rms_norm"].options == {"scale": 2.0}
    with pytest.warns(LegacyNameWarning):
        load(registry, moe_experts=KernelChoice("quack"), moe_implementation="fused")


@pytest.mark.parametrize(
    ("data", "loc", "message"),
    [
        (
            {"rms_norm": "eager", "rms_norm_implementation": "liger_kernel"},
            ("rms_norm_implementation",),
            "rms_norm_implementation: 'liger_kernel' and rms_norm: 'eager' disagree; keep only rms_norm",
        ),
        (
            {"moe_implementation": "fused", "moe_experts": {"impl": "torch"}},
            ("moe_implementation",),
            "moe_implementation: 'fused' and moe_experts: {'impl': 'torch'} disagree; keep only moe_experts",
        ),
        (
            {"moe_implementation": "fused", "moe_experts_implementation": "eager"},
            ("moe_experts_implementation",),
            "moe_experts_implementation: 'eager' and moe_implementation: 'fused' disagree; keep only moe_experts",
        ),
    ],
)
def test_an_old_and_a_new_name_that_disagree_are_an_error(registry, data, loc, message):
    with pytest.warns(LegacyNameWarning):
        assert mistakes(lambda: load(registry, **data)) == {loc: ("conflicting_names", message)}


def test_a_new_name_is_read_without_a_warning(registry):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(registry, rms_norm="torch", moe_experts="quack")
