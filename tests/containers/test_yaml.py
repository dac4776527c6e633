"""Configs from YAML files and back, and every mistake with its place."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from kernelkit.containers import KernelContainer, Need, OpsConfig
from tests.containers.fakes import CPU, mistakes


def places(call) -> list[tuple[str, int, int]]:
    """Type, line and column of each mistake, in the order in which they are reported."""
    with pytest.raises(ValidationError) as refusal:
        call()
    lines = refusal.value.errors()
    for line in lines:
        context = line["ctx"]
        assert line["msg"].startswith(f"{context['file']}:{context['line']}:{context['column']}: ")
    return [(line["type"], line["ctx"]["line"], line["ctx"]["column"]) for line in lines]


@pytest.mark.parametrize(
    "text",
    [
        "{}\n",
        "rms_norm: eager\n",
        "preset: eager\nrms_norm: torch\nattention: auto\n",
        "moe_experts: torch\nallow_unused: true\npreset: null\nattention: sdpa\n",
        "rms_norm:\n  impl: tuned\n  mode: exact\n  block:\n    rows: 2\n  scale: 2.5\n",
        "rms_norm:\n  impl: tuned\n  note: größer\n  sizes:\n  - 3\n  - 1\n",
    ],
)
def test_a_file_comes_back_as_it_was(registry, write, text):
    config = OpsConfig.from_yaml(write(text), registry=registry)
    assert config.to_yaml() == text
    assert OpsConfig.from_yaml(write(config.to_yaml()), registry=registry) == config


def test_a_path_is_a_string_or_a_path(write):
    path = write("rms_norm: eager")
    assert OpsConfig.load(path) == OpsConfig.load(str(path)) == OpsConfig(rms_norm="eager")


def test_a_config_from_a_file_equals_one_from_keywords(write):
    from_file = OpsConfig.load(write("rms_norm: eager"))
    assert from_file == OpsConfig(rms_norm="eager") and hash(from_file) == hash(OpsConfig(rms_norm="eager"))


BAD = """\
# A comment.
preset: eagre

rms_nrom: eager
attention: sdap
moe_experts: torch
moe_experts: eager
rms_norm:
  impl: tuned
  speed: 1
  block: {rows: 1,   rows: 0}
on: sdpa
"""


def test_every_mistake_of_a_file_is_reported_at_once_from_top_to_bottom(registry, write):
    assert places(lambda: OpsConfig.from_yaml(write(BAD), registry=registry)) == [
        ("unknown_preset", 2, 1),
        ("unknown_op", 4, 1),
        ("unknown_impl", 5, 1),
        ("duplicate_key", 7, 1),
        ("extra_forbidden", 10, 3),
        ("duplicate_key", 11, 22),
        ("greater_than_equal", 11, 11),
        ("unknown_op", 12, 1),
    ]


def test_a_duplicated_key_is_refused_even_if_all_else_is_right(write):
    path = write("rms_norm: eager\nattention: sdpa\n'rms_norm': torch\n")
    assert mistakes(lambda: OpsConfig.load(path)) == {
        ("rms_norm",): ("duplicate_key", f"{path}:3:1: the key 'rms_norm' is given twice, first in line 1; keep one")
    }


def test_a_missing_option_is_located_at_the_mapping_that_lacks_it(registry, write):
    path = write("attention: sdpa\nrms_norm: {impl: needy}\n")
    assert places(lambda: OpsConfig.from_yaml(path, registry=registry)) == [("missing", 2, 1)]


def test_keys_are_text_whatever_yaml_makes_of_them(write):
    found = mistakes(lambda: OpsConfig.load(write("on: a\n1: b\nnull: c\n2024-01-01: d\n1.5: e\n")))
    assert set(found) == {("on",), ("1",), ("null",), ("2024-01-01",), ("1.5",)}


@pytest.mark.parametrize(
    ("content", "line", "column", "reason"),
    [
        ("", 1, 1, "the file is empty; a mapping of op names to implementations is wanted"),
        ("# only a comment\n", 1, 1, "the file is empty; a mapping of op names to implementations is wanted"),
        ("- rms_norm\n", 1, 1, "the file holds list, not a mapping of op names to implementations"),
        ("rms_norm\n", 1, 1, "the file holds str, not a mapping of op names to implementations"),
        (
            "rms_norm: [eager\n",
            2,
            1,
            "the file is not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        ),
        ("a: b: c\n", 1, 5, "the file is not YAML: mapping values are not allowed here"),
        (
            "a: 1\n---\nb: 2\n",
            2,
            1,
            "the file is not YAML: expected a single document in the stream, but found another document",
        ),
        ("? [a]\n: b\n", 1, 3, "the file is not YAML: while constructing a mapping, found unhashable key"),
        (
            "a: !!python/object:os.system {}\n",
            1,
            4,
            "the file is not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("a: !!bool perhaps\n", 1, 4, "the file is not YAML: 'perhaps' is not a valid bool"),
        ("a: !!timestamp soon\n", 1, 4, "the file is not YAML: 'soon' is not a valid timestamp"),
        ("a: 2024-99-99\n", 1, 4, "the file is not YAML: '2024-99-99' is not a valid timestamp"),
        ("a: *b\n", 1, 4, "the file is not YAML: found undefined alias 'b'"),
        ("a: &b {c: *b}\n", 1, 4, "the file is not YAML: an alias stands for what contains it"),
        (
            b"a: \x00\n",
            1,
            1,
            "the file cannot be read as YAML: unacceptable character #x0000: special characters are not allowed",
        ),
        (b"a: \xff\n", 1, 1, "the file is not UTF-8 text: invalid start byte at byte 3"),
        ("rms_norm: eager\n".encode("utf-16"), 1, 1, "the file is not UTF-8 text: invalid start byte at byte 0"),
        ("[" * 600, 1, 1, "the file is nested too deeply"),
        ("a: " + "9" * 5000, 1, 4, "the file is not YAML: '999999"),
    ],
)
def test_what_is_wrong_with_a_file_has_a_sentence_and_a_place(write, content, line, column, reason):
    path = write(content)
    ((kind, message),) = mistakes(lambda: OpsConfig.load(path)).values()
    assert kind == "yaml_file" and message.startswith(f"{path}:{line}:{column}: {reason}")


def test_a_few_lines_of_aliases_do_not_grow_to_any_size(write):
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    path = write("\n".join(lines))
    assert "more than 10000 values" in mistakes(lambda: OpsConfig.load(path))[()][1]


def test_a_file_that_is_not_there_or_not_readable_is_refused(tmp_path):
    missing = mistakes(lambda: OpsConfig.load(tmp_path / "ops.yaml"))
    assert missing[()][1].endswith("ops.yaml:1:1: the file cannot be read: No such file or directory")
    assert "the file cannot be read: Is a directory" in mistakes(lambda: OpsConfig.load(tmp_path))[()][1]
    assert "null byte" in mistakes(lambda: OpsConfig.load("ops\0.yaml"))[()][1]
    assert "No such file" in mistakes(lambda: OpsConfig.load(tmp_path / os.fsdecode(b"\xff.yaml")))[()][1]


def test_a_file_that_one_may_not_read_is_refused(write, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write("rms_norm: eager")
    monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
    assert mistakes(lambda: OpsConfig.load(path))[()][1].endswith("the file cannot be read: Permission denied")


def test_a_byte_order_mark_is_no_part_of_the_first_key(write):
    assert OpsConfig.load(write("rms_norm: torch".encode("utf-8-sig"))) == OpsConfig(rms_norm="torch")
    assert places(lambda: OpsConfig.load(write("rms_nrom: torch".encode("utf-8-sig")))) == [("unknown_op", 1, 1)]


MERGED = """\
rms_norm: &norm
  impl: tuned
  scale: 2.0
  mode: fast
moe_experts: torch
attention:
  <<: *norm
  impl: sdpa
"""


def test_a_mapping_may_merge_another_and_override_its_keys(registry, write):
    config = OpsConfig.from_yaml(write("rms_norm: {<<: {impl: tuned, scale: 2.0}, scale: 3.0}"), registry=registry)
    assert config.choices["rms_norm"].options == {"scale": 3.0}


def test_a_merged_key_is_located_where_it_is_written(registry, write):
    assert places(lambda: OpsConfig.from_yaml(write(MERGED), registry=registry)) == [
        ("unknown_option", 3, 3),
        ("unknown_option", 4, 3),
    ]


def test_an_alias_is_located_where_its_value_is_written(registry, write):
    text = "rms_norm: {impl: tuned, block: &block\n  {rows: 0}}\nmoe_experts: {impl: torch, block: *block}\n"
    assert places(lambda: OpsConfig.from_yaml(write(text), registry=registry)) == [
        ("greater_than_equal", 2, 4),
        ("unknown_option", 3, 28),
    ]


LATER = """\
preset: liger
rms_norm: hopper
attention: narrow
moe_experts: torch
"""


def test_mistakes_that_only_the_machine_or_the_model_shows_are_located_too(registry, write):
    path = write(LATER)
    assert places(lambda: KernelContainer.from_config(path, registry=registry, hardware=CPU)) == [
        ("unavailable_kernel", 2, 1)
    ]
    container = KernelContainer.from_config(write(LATER.replace("hopper", "torch")), registry=registry, hardware=CPU)
    needs = [Need("rms_norm", "fp32_weight"), Need("attention", "causal", {"head_dim": 256})]
    assert places(lambda: container.bind(needs, model="M")) == [
        ("missing_variant", 2, 1),
        ("unavailable_kernel", 3, 1),
        ("unused_op", 4, 1),
    ]


def test_a_member_of_a_preset_is_located_at_the_preset(registry, write):
    container = KernelContainer.from_config(write("\npreset: liger"), registry=registry, hardware=CPU)
    assert places(lambda: container.bind([Need("rms_norm")], model="M")) == [("unavailable_kernel", 2, 1)]


def test_a_config_keeps_its_places_when_it_is_pickled_or_read_again(registry, write):
    config = pickle.loads(pickle.dumps(OpsConfig.from_yaml(write("\n\nrms_norm: hopper"), registry=registry)))
    assert places(lambda: KernelContainer.from_config(config, registry=registry, hardware=CPU)) == [
        ("unavailable_kernel", 3, 1)
    ]
    assert places(lambda: OpsConfig.load(config)) == [("unknown_impl", 3, 1)]
