"""What a config says of some modules of a model."""

from __future__ import annotations

import copy
import pickle

import pytest

from kernelkit.containers import KernelChoice, KernelContainer, Need, OpsConfig
from kernelkit.containers.override_rules import rules_in
from kernelkit.errors import LegacyNameWarning
from tests.containers import fakes
from tests.containers.fakes import CPU, NORM, bound, mistakes

RULES = {"layers.[0-3]": {"rms_norm": "torch"}, "**.q_norm": {"rms_norm": {"impl": "tuned", "scale": 2.0}}}


def load(data, registry):
    return OpsConfig.load(data, registry=registry)


def only_rule(container):
    (rule,) = rules_in(container.config().overrides)
    return rule


def test_overrides_read_back_as_choices(registry):
    config = load({"overrides": RULES}, registry)
    assert config.overrides["layers.[0-3]"] == {"rms_norm": KernelChoice("torch")}
    assert config.overrides["**.q_norm"]["rms_norm"].options == {"scale": 2.0}
    assert OpsConfig().overrides == {} and OpsConfig().verify is None


def test_a_config_with_overrides_is_a_value_like_any_other(registry, write):
    config = load({"verify": "bind", "overrides": RULES, "preset": "eager"}, registry)
    assert config == load({"preset": "eager", "overrides": dict(reversed(RULES.items())), "verify": "bind"}, registry)
    assert config != load({"preset": "eager", "overrides": RULES}, registry)
    assert config != load({"preset": "eager", "verify": "bind"}, registry)
    assert hash(config) == hash(pickle.loads(pickle.dumps(config))) and copy.deepcopy(config) is config
    assert load(config, registry) == load(write(config.to_yaml()), registry) == config
    assert list(config.model_dump()) == ["verify", "overrides", "preset"]
    changed = config.model_copy(update={"overrides": {"norm": {"rms_norm": "eager"}}}, registry=registry)
    assert changed.model_dump() == {"verify": "bind", "overrides": {"norm": {"rms_norm": "eager"}}, "preset": "eager"}


def test_overrides_do_not_change(registry):
    config = load({"overrides": RULES}, registry)
    with pytest.raises(TypeError, match="immutable"):
        config.overrides["layers.0"] = {}
    with pytest.raises(TypeError, match="immutable"):
        config.overrides["**.q_norm"]["rms_norm"] = KernelChoice("eager")


BAD = """\
verify: always
overrides:
  layers.[0-:
    rms_norm: torch
  layers.0:
    rms_nrom: eager
    preset: eager
    moe_experts: {impl: eager, fast: true}
  layers.1: {}
  layers.2: eager
rms_norm: eagre
"""


def test_every_mistake_is_reported_at_once_with_its_place(registry, write):
    found = mistakes(lambda: load(write(BAD), registry))
    assert {loc: kind for loc, (kind, _) in found.items()} == {
        ("verify",): "literal_error",
        ("overrides", "layers.[0-"): "path_pattern",
        ("overrides", "layers.0", "rms_nrom"): "unknown_op",
        ("overrides", "layers.0", "preset"): "unknown_op",
        ("overrides", "layers.0", "moe_experts", "fast"): "unknown_option",
        ("overrides", "layers.1"): "overrides_type",
        ("overrides", "layers.2"): "overrides_type",
        ("rms_norm",): "unknown_impl",
    }
    assert ":6:5: unknown op 'rms_nrom'. Did you mean 'rms_norm'?" in found["overrides", "layers.0", "rms_nrom"][1]
    assert ":8:32: moe_experts: eager takes no options" in found["overrides", "layers.0", "moe_experts", "fast"][1]
    assert ":9:3: 'layers.1' says {}; give a mapping" in found["overrides", "layers.1"][1]


@pytest.mark.parametrize("value", [None, "layers.0", ["layers.0"]])
def test_overrides_are_a_mapping(registry, value):
    found = mistakes(lambda: load({"overrides": value}, registry))
    assert found["overrides",][1].endswith("give a mapping of module paths to ops and their implementations")


def test_keys_that_are_no_strings_are_mistakes_and_no_traceback(registry):
    data = {"overrides": {3: {"rms_norm": "eager"}, "layers.0": {None: "eager"}, ("a",): {"rms_norm": "eager"}}}
    assert set(mistakes(lambda: load(data, registry))) == {("overrides", "layers.0", "None"), ("overrides", "('a',)")}


def test_legacy_names_are_read_there_too(registry, write):
    text = "overrides:\n  layers.0:\n    rms_norm_implementation: torch\n"
    with pytest.warns(LegacyNameWarning, match=r"ops.yaml:3:5: rms_norm_implementation: 'torch' is VeOmni's"):
        config = load(write(text), registry)
    assert config == load({"overrides": {"layers.0": {"rms_norm": "torch"}}}, registry)
    with pytest.warns(LegacyNameWarning):
        found = mistakes(lambda: load(write(text.replace("torch", "toch")), registry))
    assert set(found) == {("overrides", "layers.0", "rms_norm_implementation")}


# --- bound by a container


def test_a_rule_is_bound_beside_the_op_and_says_that_it_decided(make):
    container = make({"rms_norm": "eager", "overrides": {"layers.0": {"rms_norm": {"impl": "tuned", "scale": 3}}}})
    binding = container.bind_rule(only_rule(container), NORM)
    assert (binding.impl, binding.why, binding.named) == ("tuned", "overrides layers.0", True)
    assert binding.kernel.options.scale == 3.0
    assert binding is container.bind_rule(only_rule(container), NORM)
    assert bound(container)["rms_norm", "standard"].impl == "eager"


def test_auto_in_a_rule_says_both_why_and_by_which_rule(make):
    container = make({"overrides": {"layers.0": {"attention": "auto"}}})
    binding = container.bind_rule(only_rule(container), fakes.ATTENTION)
    assert binding.why.startswith("auto: first of") and binding.why.endswith(" (overrides layers.0)")
    assert not binding.named


def test_a_rule_whose_kernel_cannot_run_is_refused_with_the_container(registry, write):
    path = write("overrides:\n  layers.0:\n    rms_norm: hopper\n")
    found = mistakes(lambda: KernelContainer.from_config(path, registry=registry, hardware=CPU))
    kind, message = found["overrides", "layers.0", "rms_norm"]
    assert kind == "unavailable_kernel"
    assert "ops.yaml:3:5: rms_norm: hopper (overrides layers.0) runs on cuda, not on cpu. Available on cpu" in message


def test_an_overridden_op_is_overridden_in_every_module(make):
    container = make({"overrides": {"layers.0": {"rms_norm": "torch"}}})
    container.override("rms_norm", fakes.unchanged, variant="standard")
    binding = container.bind_rule(only_rule(container), NORM)
    assert (binding.kernel, binding.why) == (fakes.unchanged, "override")
    other = container.bind_rule(only_rule(make({"overrides": {"layers.0": {"rms_norm": "torch"}}})), Need("rms_norm"))
    assert other is not binding and other.kernel is fakes.unchanged
