"""The JSON schema, by which editors complete and check a config."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, TypeAdapter

from kernelkit import registry as registry_module
from kernelkit.containers import OpsConfig
from kernelkit.containers.presets import PRESET_NAMES
from kernelkit.registry import default_registry


def completions(schema, op):
    """The names that an editor offers for ``op: ``."""
    return schema["properties"][op]["anyOf"][0]["enum"]


def options(schema, op):
    """The keys that an editor offers for ``op: {impl: ...}``, by implementation."""
    forms = schema["properties"][op]["anyOf"][1:]
    return {form["properties"]["impl"]["const"]: set(form["properties"]) - {"impl"} for form in forms}


def test_every_op_and_implementation_is_offered_and_no_other_key():
    schema, registry = OpsConfig.model_json_schema(), default_registry()
    assert set(schema["properties"]) == {"preset", "allow_unused", "overrides", "verify", *registry.ops}
    assert schema["additionalProperties"] is False
    for op in registry.ops:
        assert completions(schema, op) == [*registry.impls(op), "auto"]
        assert set(options(schema, op)) == {*registry.impls(op), "auto"}
        assert schema["properties"][op]["description"]
    assert schema["properties"]["preset"]["enum"] == [*PRESET_NAMES, None]


def test_the_options_of_every_implementation_are_offered():
    schema, registry = OpsConfig.model_json_schema(), default_registry()
    for op in registry.ops:
        for spec in registry.list(op):
            names = set() if spec.options is None else set(spec.options.model_fields)
            assert options(schema, op)[spec.name] == names


@pytest.fixture
def schema(registry, monkeypatch):
    monkeypatch.setattr(registry_module, "_default", [registry])
    return OpsConfig.model_json_schema()


def test_a_kernel_that_must_be_told_something_is_not_offered_as_a_name_alone(schema):
    assert "needy" not in completions(schema, "rms_norm")
    assert options(schema, "rms_norm")["needy"] == {"width"}


def test_models_inside_of_options_are_among_the_definitions(schema):
    form = next(f for f in schema["properties"]["rms_norm"]["anyOf"][1:] if f["properties"]["impl"]["const"] == "tuned")
    reference = form["properties"]["block"]["$ref"]
    assert schema["$defs"][reference.removeprefix("#/$defs/")]["properties"]["rows"]["type"] == "integer"


VALID = [
    {},
    {"preset": "liger", "allow_unused": True},
    {"rms_norm": "auto", "moe_experts": {"impl": "torch"}},
    {"rms_norm": {"impl": "tuned", "scale": 2.0, "block": {"rows": 2}, "sizes": [1, 2]}},
    {"rms_norm": {"impl": "needy", "width": 3}},
    {"verify": "bind", "overrides": {"model.layers.[0-3,5].mlp": {"rms_norm": {"impl": "tuned", "scale": 2.0}}}},
]
INVALID = [
    {"rms_nrom": "eager"},
    {"rms_norm": "needy"},
    {"rms_norm": "eagre"},
    {"rms_norm": ["eager"]},
    {"rms_norm": {"scale": 2.0}},
    {"rms_norm": {"impl": "tuned", "scael": 2.0}},
    {"rms_norm": {"impl": "tuned", "block": {"rows": 0}}},
    {"rms_norm": {"impl": "eager", "scale": 2.0}},
    {"preset": "eagre"},
    {"allow_unused": "yes"},
    {"verify": "always"},
    {"overrides": {"layers.[a-b]": {"rms_norm": "eager"}}},
    {"overrides": {"layers.0": {"rms_norm": "eagre"}}},
    {"overrides": {"layers.0": {"preset": "eager"}}},
    {"overrides": {"layers.0": {}}},
]


@pytest.mark.parametrize("data", VALID + INVALID)
def test_the_schema_accepts_what_a_config_accepts(schema, data):
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator.check_schema(schema)
    assert validator(schema).is_valid(data) == (data in VALID)
    if data in VALID:
        OpsConfig(**data)
    else:
        with pytest.raises(ValueError, match=r"OpsConfig"):
            OpsConfig(**data)


def test_the_schema_is_part_of_that_of_a_model_with_a_config_in_it(schema):
    class Run(BaseModel):
        ops: OpsConfig

    outer = Run.model_json_schema()
    assert outer["$defs"]["OpsConfig"]["properties"] == schema["properties"]
    assert outer["$defs"]["Block"] == schema["$defs"]["Block"]
    assert TypeAdapter(list[OpsConfig]).json_schema()["$defs"]["OpsConfig"] == outer["$defs"]["OpsConfig"]
