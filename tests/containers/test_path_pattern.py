"""Which modules a pattern of paths is about."""

from __future__ import annotations

import pytest

from kernelkit.containers.path_pattern import PathPattern

PATHS = [
    "",
    "model",
    "model.layers.0.mlp",
    "model.layers.2.mlp",
    "model.layers.2.mlp.experts",
    "model.layers.2.self_attn.q_norm",
    "model.layers.10.self_attn.k_norm",
    "model.layers.12.mlp",
    "model.norm",
    "lm_head",
]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("layers.2.mlp", [3, 4]),
        ("model.layers.2.mlp", [3, 4]),
        ("layers.[0-2].mlp", [2, 3, 4]),
        ("layers.[10-12]", [6, 7]),
        ("layers.[0,12].mlp", [2, 7]),
        ("layers.{0,9-10}", [2, 6]),
        ("layers.*.mlp", [2, 3, 4, 7]),
        ("layers.1*", [6, 7]),
        ("layers.*.mlp.experts", [4]),
        ("layers.*.*.*_norm", [5, 6]),
        ("**.q_norm", [5]),
        ("**.mlp", [2, 3, 4, 7]),
        ("layers.**.experts", [4]),
        ("*norm", [8]),
        ("*", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("**", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("layers.[3-9]", []),
        ("layers.[12-0]", []),
        ("layer", []),
        ("experts", []),
    ],
)
def test_a_pattern_covers_the_modules_that_fit_and_what_is_inside_of_them(pattern, paths):
    assert [path for path in PATHS if PathPattern(pattern).covers(path)] == [PATHS[index] for index in paths]


def test_a_model_without_a_head_has_the_same_patterns():
    for pattern in ("layers.0.mlp", "model.layers.0.mlp", "layers.*", "**.mlp"):
        assert PathPattern(pattern).covers("layers.0.mlp")


@pytest.mark.parametrize(
    "text", ["", ".", "layers.", "layers..0", "layers.[a-c]", "layers.[0-]", "a b", "layers.[0", "?"]
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match="is no pattern of module paths, such as"):
        PathPattern(text)
