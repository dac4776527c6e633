"""What a config may say, and that it is a value."""

from __future__ import annotations

import copy
import enum
import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from kernelkit.containers import PRESETS, KernelChoice, KernelContainer, Need, OpsConfig
from kernelkit.errors import LegacyNameWarning
from kernelkit.hardware import Hardware
from kernelkit.registry import default_registry
from tests.containers.fakes import mistakes

CHOICES = {"rms_norm": "torch", "swiglu_mlp": {"impl": "compile", "dynamic": True}, "preset": "eager"}


def load(data, registry):
    return OpsConfig.load(data, registry=registry)


def test_an_op_is_named_by_keyword_mapping_or_choice():
    by_keyword = OpsConfig(rms_norm="torch")
    assert by_keyword == OpsConfig.load({"rms_norm": "torch"}) == OpsConfig(rms_norm={"impl": "torch"})
    assert by_keyword == OpsConfig(rms_norm=KernelChoice("torch")) == OpsConfig.model_validate({"rms_norm": "torch"})
    assert by_keyword == OpsConfig.model_validate_json('{"rms_norm": "torch"}') == OpsConfig.load(by_keyword)
    assert by_keyword.rms_norm == by_keyword.choices["rms_norm"] == KernelChoice("torch")


def test_a_config_of_nothing_is_the_default():
    assert OpsConfig() == OpsConfig.load(None) == OpsConfig.load({}) == OpsConfig(preset=None, allow_unused=False)
    assert OpsConfig().choices == {} and OpsConfig().preset is None


def test_options_are_read_by_the_kernels_own_model(registry):
    config = load({"rms_norm": {"impl": "tuned", "scale": "2", "sizes": [1, 2]}}, registry)
    assert config.choices["rms_norm"].options == {"scale": 2.0, "sizes": [1, 2]}


def test_an_enum_that_is_a_string_names_an_implementation_too():
    class Impl(str, enum.Enum):  # noqa: UP042  # what users have, and not a StrEnum
        TORCH = "torch"

    config = OpsConfig(rms_norm=Impl.TORCH)
    assert config == OpsConfig(rms_norm="torch")
    assert config.to_yaml() == "rms_norm: torch\n"


# --- what is wrong


KEYS = "Valid: rms_norm, attention, moe_experts, preset, allow_unused, overrides, verify."
IMPLS = "Valid: eager, torch, auto."
FORMS = f"give a name, or a mapping with the key 'impl'. {IMPLS}"
TUNED = " (options of rms_norm: tuned are scale, mode, block, sizes, note)"


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"rms_nrom": "eager"}, "unknown_op", f"unknown op 'rms_nrom'. Did you mean 'rms_norm'? {KEYS}"),
        ({"presets": "eager"}, "unknown_op", f"unknown op 'presets'. Did you mean 'preset'? {KEYS}"),
        ({"ops": {}}, "unknown_op", "the key 'ops' is kept for a later version and means nothing yet"),
        ({"3": "eager"}, "unknown_op", f"unknown op '3'. {KEYS}"),
        ({"moe_experts": "Eger"}, "unknown_impl", "unknown implementation 'Eger' of moe_experts. Did you mean 'eager'? "
         + IMPLS),
        ({"moe_experts": "fused"}, "unknown_impl", f"unknown implementation 'fused' of moe_experts. {IMPLS}"),
        ({"moe_experts": None}, "impl_type", f"moe_experts is None; {FORMS}"),
        ({"moe_experts": {"a": 1}}, "impl_type", f"moe_experts is {{'a': 1}}; {FORMS}"),
        ({"preset": "eagre"}, "unknown_preset", "unknown preset 'eagre'. Did you mean 'eager'? Valid: eager, torch, "
         "compile, triton, liger, deterministic, liger_npu, fastest-training, fastest-inference."),
        ({"preset": 3}, "string_type", "Input should be a valid string"),
        ({"allow_unused": "yes"}, "bool_type", "Input should be a valid boolean"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_own_sentence(registry, data, kind, message):
    assert mistakes(lambda: load(data, registry)) == {tuple(data): (kind, message)}


@pytest.mark.parametrize(
    ("choice", "loc", "kind", "message"),
    [
        ({"impl": "torch", "scale": 1}, ("scale",), "unknown_option", "rms_norm: torch takes no options"),
        ({"impl": "auto", "scale": 1}, ("scale",), "unknown_option", "rms_norm: auto takes no options"),
        ({"impl": "tuned", "scael": 1}, ("scael",), "extra_forbidden", f"Extra inputs are not permitted{TUNED}"),
        ({"impl": "tuned", "scale": "x"}, ("scale",), "float_parsing", "Input should be a valid number, unable to "
         f"parse string as a number{TUNED}"),
        ({"impl": "tuned", "scale": 0}, ("scale",), "value_error", f"a scale of zero gives nothing{TUNED}"),
        ({"impl": "tuned", "block": {"rows": 0}}, ("block", "rows"), "greater_than_equal", "Input should be greater "
         f"than or equal to 1{TUNED}"),
        ("needy", ("width",), "missing", "Field required (options of rms_norm: needy are width)"),
    ],
)  # fmt: skip
def test_each_mistake_in_options_has_its_own_sentence(registry, choice, loc, kind, message):
    assert mistakes(lambda: load({"rms_norm": choice}, registry)) == {("rms_norm", *loc): (kind, message)}


def test_a_value_of_veomni_is_answered_with_ours():
    found = mistakes(lambda: OpsConfig(rms_norm="liger_kernel"))
    assert found[("rms_norm",)][1].startswith(
        "unknown implementation 'liger_kernel' of rms_norm. Did you mean 'liger'?"
    )


def test_a_key_that_is_no_string_is_an_unknown_op(registry):
    found = mistakes(lambda: load({3: "eager", None: "eager", ("a",): "eager"}, registry))
    assert set(found) == {("3",), ("None",), ("('a',)",)} and {kind for kind, _ in found.values()} == {"unknown_op"}


def test_all_mistakes_are_reported_at_once(registry):
    data = {
        "rms_nrom": "eager",
        "attention": "sdap",
        "moe_experts": ["eager"],
        "rms_norm": {"impl": "tuned", "scale": "x", "mode": "slow", "speed": 1},
        "preset": "eagre",
        "allow_unused": "maybe",
        "attn_implementation": "sdpa",
    }
    with pytest.warns(LegacyNameWarning):
        found = mistakes(lambda: load(data, registry))
    assert set(found) == {
        ("rms_nrom",),
        ("attention",),
        ("moe_experts",),
        ("rms_norm", "scale"),
        ("rms_norm", "mode"),
        ("rms_norm", "speed"),
        ("preset",),
        ("allow_unused",),
        ("attn_implementation",),
    }


@pytest.mark.parametrize("source", [[], 3, b"rms_norm: eager", {"rms_norm"}, object()])
def test_what_is_no_config_at_all_is_refused(source):
    assert mistakes(lambda: OpsConfig.load(source))[()][0] == "model_type"


def test_an_option_that_json_cannot_write_is_refused(registry):
    ring = []
    ring.append(ring)
    for note in (object(), ring, "\ud800", 10**5000, b"\xff"):
        data = {"rms_norm": {"impl": "tuned", "note": note}}
        assert mistakes(lambda data=data: load(data, registry))[("rms_norm",)][0] == "option_type"


def test_the_names_are_those_of_the_registry_that_is_given(registry):
    with pytest.raises(ValidationError, match="unknown implementation 'hopper'"):
        OpsConfig(rms_norm="hopper")
    config = load({"rms_norm": "hopper"}, registry)
    with pytest.raises(ValidationError, match="unknown implementation 'hopper'"):
        OpsConfig.load(config, registry=default_registry())
    assert config.model_copy(update={"attention": "auto"}, registry=registry).choices["attention"].impl == "auto"


# --- a value


def test_a_config_does_not_change():
    config = OpsConfig(**CHOICES)
    for change in (
        lambda: setattr(config, "preset", "torch"),
        lambda: setattr(config, "rms_norm", KernelChoice("eager")),
        lambda: setattr(config, "attention", KernelChoice("eager")),
        lambda: delattr(config, "rms_norm"),
        lambda: config.choices.update(rms_norm=KernelChoice("eager")),
        lambda: config.choices.pop("rms_norm"),
        lambda: config.__pydantic_extra__.__setitem__("rms_norm", KernelChoice("eager")),
        lambda: setattr(config.choices["rms_norm"], "impl", "eager"),
        lambda: PRESETS["eager"].update(rms_norm="torch"),
    ):
        with pytest.raises((TypeError, AttributeError, ValidationError)):
            change()
    config.choices["swiglu_mlp"].options["dynamic"] = False
    config.model_dump()["swiglu_mlp"]["dynamic"] = False
    assert config == OpsConfig(**CHOICES)


def test_an_op_that_a_plugin_adds_is_as_immutable_as_the_others(registry):
    config = load({"rms_norm": {"impl": "tuned", "block": {"rows": 2}}}, registry)
    with pytest.raises(ValidationError, match="frozen"):
        config.rms_norm = KernelChoice("eager")
    config.rms_norm.options["block"]["rows"] = 3
    assert config.rms_norm.options == {"block": {"rows": 2}}


@pytest.mark.parametrize(
    "twin",
    [
        lambda config: pickle.loads(pickle.dumps(config)),
        copy.copy,
        copy.deepcopy,
        lambda config: config.model_copy(),
        lambda config: config.model_copy(deep=True),
        lambda config: OpsConfig(**config.model_dump()),
        lambda config: OpsConfig.model_validate(config.model_dump()),
        lambda config: OpsConfig.model_validate_json(config.model_dump_json()),
        OpsConfig.load,
    ],
)
def test_a_copy_is_equal_and_hashes_the_same(twin):
    config = OpsConfig(**CHOICES)
    assert twin(config) == config and hash(twin(config)) == hash(config)
    assert twin(config).model_dump() == config.model_dump()
    with pytest.raises((TypeError, ValidationError)):
        twin(config).choices.clear()


def test_configs_that_differ_in_anything_are_not_equal(registry):
    sources = [
        {},
        {"preset": "eager"},
        {"allow_unused": True},
        {"rms_norm": "eager"},
        {"rms_norm": "tuned"},
        {"rms_norm": {"impl": "tuned", "scale": 2}},
        {"rms_norm": {"impl": "tuned", "block": {"rows": 2}}},
    ]
    assert len({load(source, registry) for source in sources}) == len(sources)
    assert OpsConfig() != "OpsConfig()"


def test_order_does_not_matter_for_equality(registry):
    one = load({"attention": "sdpa", "rms_norm": {"impl": "tuned", "scale": 2, "mode": "exact"}}, registry)
    other = load({"rms_norm": {"mode": "exact", "scale": 2.0, "impl": "tuned"}, "attention": "sdpa"}, registry)
    assert one == other and hash(one) == hash(other)


def test_nan_is_an_option_like_any_other(registry):
    one, other = (load({"rms_norm": {"impl": "tuned", "scale": float("nan")}}, registry) for _ in range(2))
    assert one == other and hash(one) == hash(other)


def test_a_changed_copy_is_validated_like_a_new_config():
    config = OpsConfig(rms_norm="torch", preset="eager")
    assert config.model_copy(update={"rms_norm": "eager"}) == OpsConfig(rms_norm="eager", preset="eager")
    assert mistakes(lambda: config.model_copy(update={"rms_norm": "x"}))[("rms_norm",)][0] == "unknown_impl"


def test_a_config_shows_what_was_written():
    assert repr(OpsConfig(rms_norm="torch", preset="eager")) == "OpsConfig(rms_norm='torch', preset='eager')"


class Run(BaseModel):
    ops: OpsConfig = OpsConfig()
    teacher_ops: OpsConfig | None = None


def test_a_config_is_a_field_of_another_model():
    run = Run(ops={"rms_norm": "torch"}, teacher_ops=OpsConfig(preset="eager"))
    assert run.ops == OpsConfig(rms_norm="torch")
    assert Run.model_validate(run.model_dump()) == run == Run.model_validate_json(run.model_dump_json())
    assert run.model_dump() == {"ops": {"rms_norm": "torch"}, "teacher_ops": {"preset": "eager"}}


def test_in_another_model_a_mistake_is_located_below_the_field():
    data = {"ops": {"rms_norm": "x", "swiglu_mlp": {"impl": "compile", "dynamic": 3}}, "teacher_ops": {"preset": "x"}}
    found = mistakes(lambda: Run.model_validate(data, context="a context that is not ours"))
    assert set(found) == {("ops", "rms_norm"), ("ops", "swiglu_mlp", "dynamic"), ("teacher_ops", "preset")}


# --- presets


def test_a_preset_of_ours_names_ops_and_implementations_that_exist():
    registry = default_registry()
    for members in PRESETS.values():
        assert all(impl in registry.impls(op) for op, impl in members.items())
    assert set(PRESETS["eager"].values()) == {"eager"}


def test_with_the_preset_deterministic_every_kernel_declares_it_and_runs_anywhere():
    container = KernelContainer.from_config({"preset": "deterministic"}, hardware=Hardware.detect("cpu"))
    needs = [Need(op.name, variant) for op in default_registry().ops.values() for variant in op.variants]
    bindings = container.bind(needs, model="M")
    assert len(bindings) == len(needs)
    assert [binding for binding in bindings.values() if not binding.spec.deterministic] == []


def test_the_files_under_configs_are_valid():
    files = sorted((Path(__file__).parents[2] / "configs" / "ops").glob("*.yaml"))
    assert files
    assert all(OpsConfig.load(path) for path in files)
