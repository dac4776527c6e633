"""Whatever a config holds, the answer is a config or a ValidationError that can be shown."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kernelkit.containers import KernelContainer, Need, OpsConfig
from kernelkit.registry import default_registry
from tests.containers import fakes
from tests.containers.fakes import CPU

REGISTRY = fakes.make_registry()
OPS = [*REGISTRY.ops]
IMPLS = [*{impl for op in OPS for impl in REGISTRY.impls(op)}, "auto"]

often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.sampled_from(
    [
        *OPS,
        *IMPLS,
        "impl",
        "preset",
        "allow_unused",
        "overrides",
        "eager",
        "scale",
        "block",
        "rows",
        "<<",
        "{file}",
        "\ud800",
        "rms_norm_implementation",
        "attn_implementation",
        "moe_implementation",
        "_implementation",
        "liger_kernel",
        "fused",
    ]
)
# Made when it is drawn: hypothesis shows what it is given, and this has too many digits to be shown.
huge = st.builds(pow, st.just(10), st.just(5000))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    huge,
    st.floats(),
    st.text(max_size=8),
    names,
    st.binary(max_size=4),
)
keys = st.one_of(names, scalars, st.tuples(st.integers()))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
valid = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(["eager", "torch", "liger", None]),
        "allow_unused": st.booleans(),
        "attention": st.sampled_from(["eager", "sdpa", "auto", "narrow"]),
        "rms_norm": st.sampled_from(["eager", "torch", "auto"])
        | st.fixed_dictionaries(
            {"impl": st.just("tuned")},
            optional={
                "scale": st.floats(allow_nan=False).filter(bool),
                "mode": st.sampled_from(["fast", "exact"]),
                "block": st.fixed_dictionaries({}, optional={"rows": st.integers(1, 9)}),
                "sizes": st.lists(st.integers(-9, 9), max_size=3),
                "note": st.text(max_size=5).filter(lambda text: text.isprintable()),
            },
        ),
    },
)


def read(call):
    """The config that ``call`` reads; None where it raises a ValidationError, which must be one that can be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except ValidationError as error:
            found = error
    assert str(found) and found.errors()
    return None


def check(config):
    """A config that is read is a value, comes back from YAML, and can be resolved or refused."""
    assert config == copy.deepcopy(config) and isinstance(hash(config), int)
    assert OpsConfig.load(yaml.safe_load(config.to_yaml()), registry=REGISTRY) == config
    assert OpsConfig.load(config, registry=REGISTRY) == config
    container = read(lambda: KernelContainer.from_config(config, registry=REGISTRY, hardware=CPU))
    if container is not None:
        read(lambda: container.bind([Need("rms_norm"), Need("attention", "causal")], model="M"))


@often
@given(st.dictionaries(keys, values, max_size=5))
@example({"\ud800": "\ud800", "preset": "\ud800"})
def test_any_mapping_gives_a_config_or_a_validation_error(data):
    config = read(lambda: OpsConfig.load(data, registry=REGISTRY))
    if config is not None:
        check(config)


@often
@given(st.dictionaries(st.text(max_size=8) | names, values, max_size=4))
def test_any_keywords_give_a_config_or_a_validation_error(data):
    read(lambda: OpsConfig(**data))


@often
@given(values)
def test_any_value_gives_a_config_or_a_validation_error(data):
    if not isinstance(data, str):  # a string is a path
        read(lambda: OpsConfig.load(data, registry=REGISTRY))
    read(lambda: OpsConfig.model_validate(data))


def mutate(data, path, value):
    """``data`` with ``value`` where ``path`` leads, as far as it leads anywhere."""
    data = copy.deepcopy(data)
    inside = data
    for step in path:
        below = list(inside)[step % len(inside)] if isinstance(inside, dict) and inside else None
        if below is None or not isinstance(inside[below], dict):
            break
        inside = inside[below]
    below = list(inside)[path[-1] % len(inside)] if inside else "rms_norm"
    inside[below] = value
    return data


@often
@given(valid)
def test_every_valid_config_is_accepted_and_comes_back(data):
    config = OpsConfig.load(data, registry=REGISTRY)
    assert config.model_dump().keys() == data.keys()
    check(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ops.yaml")
        path.write_text(config.to_yaml(), encoding="utf-8")
        again = OpsConfig.from_yaml(path, registry=REGISTRY)
    assert again == config and again.to_yaml() == config.to_yaml()


@often
@given(valid, st.lists(st.integers(0, 5), min_size=1, max_size=3), values)
def test_a_valid_config_with_something_else_in_one_place_gives_a_config_or_a_validation_error(data, path, value):
    config = read(lambda: OpsConfig.load(mutate(data, path, value), registry=REGISTRY))
    if config is not None:
        check(config)


def read_file(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ops.yaml")
        path.write_bytes(content)
        return read(lambda: OpsConfig.from_yaml(path, registry=REGISTRY))


yaml_like = st.lists(
    st.sampled_from(
        [
            "rms_norm",
            "attention",
            "preset",
            ": ",
            ":",
            "eager",
            "sdpa",
            "\n",
            "\n  ",
            "- ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "&a ",
            "*a",
            "<<: ",
            "? ",
            "!!int ",
            "!!bool ",
            "!!timestamp ",
            "!!binary ",
            "!!set ",
            "!!omap ",
            "!!python/name:x ",
            "|\n",
            "'",
            '"',
            "#",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "\t",
            "0x",
            "1e400",
            ".nan",
            "9" * 4400,
            "\ufeff",
            "\\ud800",
            "null",
            "2024-13-01",
            "1:60:60",
            "@",
            "`",
            "=",
            "~",
        ]
    ),
    max_size=14,
).map("".join)


@often
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_file_of_anything_gives_a_config_or_a_validation_error(content):
    read_file(content)


@settings(often, max_examples=400)
@given(yaml_like)
@example("rms_norm: &a {impl: eager, <<: *a}")
@example("rms_norm: !!set {a, b}\n")
@example("? |\n  rms_norm\n: eager")
@example('"\\ud800": "\\ud800"')
def test_a_file_of_pieces_of_yaml_gives_a_config_or_a_validation_error(text):
    config = read_file(text.encode())
    if config is not None:
        check(config)


@often
@given(
    valid,
    st.integers(0, 200),
    st.sampled_from([b"", b"\xff", b"\x00", b"\t", b"  ", b":", b"{", b"- ", b"rms_norm: x\n"]),
)
def test_a_valid_file_that_is_cut_or_has_something_inserted_gives_a_config_or_a_validation_error(data, at, piece):
    content = yaml.safe_dump(data, sort_keys=False).encode()
    read_file(content[:at] + piece + content[at:])
    read_file(content[:at])


@pytest.mark.parametrize("depth", [10, 200, 1000])
@pytest.mark.parametrize("piece", ["{a: ", "[", "- ", "? "])
def test_any_depth_of_nesting_gives_a_validation_error(depth, piece):
    assert read_file(f"rms_norm: {piece * depth}".encode()) is None
    assert read_file((piece * depth).encode()) is None


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
def test_any_depth_of_a_mapping_gives_a_validation_error(depth):
    data = {"impl": "tuned"}
    for _ in range(depth):
        data = {"note": data}
    for each in ({"rms_norm": data}, {"rms_norm": {"impl": "tuned", "note": data}}, data):
        config = read(lambda each=each: OpsConfig.load(each, registry=REGISTRY))
        assert config is None or depth == 10


def test_the_real_ops_are_as_safe():
    default = default_registry()
    for op in default.ops:
        for impl in default.impls(op):
            read(lambda op=op, impl=impl: OpsConfig.load({op: {"impl": impl, "nonsense": {1: [2]}, "mode": 10**5000}}))
