"""The forms of mask against the definition, and against transformers' own masks."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils

from kernelkit.ops.masks import Visibility, build_mask, document_ids
from tests.attention.attention_cases import CASES, real, real_queries, seen_by_definition

WINDOWS = [None, 3]


def transformers_mask(make, case, sliding_window, **keywords):
    """What transformers builds from the same facts; document ids have no part in it."""
    visibility = case.visibility()
    causal = masking_utils.causal_mask_function
    window = None if sliding_window is None else masking_utils.sliding_window_causal_mask_function(sliding_window)
    return make(
        batch_size=2,
        q_length=visibility.q_length,
        kv_length=visibility.kv_length,
        q_offset=visibility.q_offset,
        kv_offset=visibility.kv_offset,
        mask_function=window or causal,
        attention_mask=visibility.padding_mask,
        local_size=sliding_window,
        **keywords,
    )


UNPACKED = [name for name, case in CASES.items() if "document_ids" not in case.facts]


@pytest.mark.parametrize("sliding_window", WINDOWS)
@pytest.mark.parametrize("name", CASES)
def test_a_bool_mask_is_true_where_a_query_sees_a_key(name, sliding_window):
    case = CASES[name]
    mask = build_mask("bool", case.visibility(), sliding_window)
    seen = seen_by_definition(case, sliding_window)
    if mask is None:
        slots, queries = torch.arange(case.kv_length), torch.arange(case.q_length)
        mask = (slots <= queries[:, None]) if case.q_length > 1 else torch.ones(1, case.kv_length, dtype=torch.bool)
    assert torch.equal(mask.expand(2, 1, -1, -1), seen)


@pytest.mark.parametrize("sliding_window", WINDOWS)
@pytest.mark.parametrize("name", CASES)
def test_an_additive_mask_is_the_lowest_number_where_a_query_sees_no_key(name, sliding_window):
    case = CASES[name]
    mask = build_mask("additive", case.visibility(dtype=torch.bfloat16), sliding_window)
    seen = seen_by_definition(case, sliding_window)
    if mask is None:
        assert seen.all()
    else:
        assert mask.dtype == torch.bfloat16
        assert torch.equal(mask == 0, seen)
        assert (mask[~seen] == torch.finfo(torch.bfloat16).min).all()


@pytest.mark.parametrize("sliding_window", WINDOWS)
@pytest.mark.parametrize("name", UNPACKED)
def test_real_queries_see_what_they_see_in_transformers(name, sliding_window):
    case = CASES[name]
    rows = real_queries(case)[:, None]
    theirs = transformers_mask(masking_utils.sdpa_mask, case, sliding_window, allow_is_causal_skip=False)
    assert torch.equal(seen_by_definition(case, sliding_window)[rows], theirs[rows])
    theirs = transformers_mask(masking_utils.eager_mask, case, sliding_window, dtype=torch.float32)
    ours = build_mask("additive", case.visibility(), sliding_window)
    assert torch.equal(torch.zeros_like(theirs)[rows] if ours is None else ours[rows], theirs[rows])


def test_packed_documents_are_told_apart_as_in_transformers():
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6, 7], [5, 6, 7, 8, 9, 10, 11, 12, 3]])
    ours, theirs = document_ids(positions), masking_utils.find_packed_sequence_indices(positions)
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)


def test_rows_of_one_document_have_no_document_ids():
    assert document_ids(torch.arange(4, 9).expand(2, -1)) is None
    assert document_ids(torch.zeros(2, 1, dtype=torch.int64)) is None


def test_document_ids_are_returned_unlooked_at_while_a_graph_is_traced():
    ids = torch.compile(document_ids, fullgraph=True, backend="eager")(torch.arange(5)[None])
    assert ids is not None
    assert ids.tolist() == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize("sliding_window", [None, 3, 5, 9, 100])
@pytest.mark.parametrize("name", UNPACKED)
def test_sdpa_needs_no_mask_wherever_stock_transformers_needs_none(name, sliding_window):
    case = CASES[name]
    static_decode = case.q_length == 1 and isinstance(case.facts.get("q_offset"), torch.Tensor)
    # transformers skips no mask while decoding with a static cache: its models pass allow_is_causal_skip=False then.
    theirs = transformers_mask(masking_utils.sdpa_mask, case, sliding_window, allow_is_causal_skip=not static_decode)
    if theirs is None:
        assert build_mask("bool", case.visibility(), sliding_window) is None


def test_decoding_with_a_static_cache_waits_for_no_value(monkeypatch):
    monkeypatch.setattr(Visibility, "known_shift", lambda self: pytest.fail("read an offset from the device"))
    monkeypatch.setattr(Visibility, "has_padding", lambda self, slots: pytest.fail("read a mask from the device"))
    assert build_mask("bool", CASES["decode_in_a_static_buffer"].visibility()) is not None


def test_a_window_as_wide_as_the_sequence_needs_no_mask():
    assert build_mask("bool", Visibility(2, 9, 9), sliding_window=9) is None
    assert build_mask("bool", Visibility(2, 9, 9), sliding_window=8) is not None


def test_one_query_at_the_start_of_a_static_buffer_does_not_see_the_rest_of_it():
    assert build_mask("bool", Visibility(1, 1, 4)).tolist() == [[[[True, False, False, False]]]]


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_what_every_row_shares_is_stored_once(kind):
    assert build_mask(kind, Visibility(64, 5, 5), sliding_window=2).stride(0) == 0


def test_a_kernel_without_masks_serves_plainly_causal_inputs():
    assert build_mask("none", Visibility(2, 9, 9)) is None
    assert build_mask("none", Visibility(2, 1, 9, q_offset=8)) is None
    assert build_mask("none", CASES["padding_that_hides_nothing"].visibility()) is None


@pytest.mark.parametrize("name", ["left_padding", "packed", "chunk", "prefill_of_a_static_buffer"])
def test_a_kernel_without_masks_refuses_every_other_input(name):
    with pytest.raises(ValueError, match="takes no mask, and the input needs one"):
        build_mask("none", CASES[name].visibility())


def test_a_kernel_without_masks_refuses_an_effective_window():
    with pytest.raises(ValueError, match="sliding window"):
        build_mask("none", Visibility(2, 9, 9), sliding_window=4)


def test_a_custom_bool_mask_is_the_whole_truth():
    custom = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    custom[..., 0] = True
    visibility = Visibility(2, 6, 6, padding_mask=real("...xxx", "xxxxxx"), custom_mask=custom)
    assert torch.equal(build_mask("bool", visibility, sliding_window=2), custom)
    assert torch.equal(build_mask("additive", visibility, sliding_window=2) == 0, custom)


def test_a_custom_float_mask_is_added_as_it_is():
    custom = torch.randn(1, 1, 6, 6)
    for kind in ("bool", "additive"):
        assert torch.equal(build_mask(kind, Visibility(2, 6, 6, custom_mask=custom)), custom)


@pytest.mark.parametrize("empty_row", [torch.zeros(1, 1, 6, 6, dtype=torch.bool), torch.full((1, 1, 6, 6), -torch.inf)])
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_an_empty_row_of_a_custom_mask_becomes_finite(kind, empty_row):
    mask = build_mask(kind, Visibility(2, 6, 6, custom_mask=empty_row, dtype=torch.float16))
    scores = torch.full((6,), -20.0, dtype=torch.float16)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    assert scores.softmax(-1).isfinite().all()


@pytest.mark.parametrize("kind", ["none", "block", "varlen"])
def test_a_custom_mask_is_refused_by_forms_that_cannot_hold_it(kind):
    with pytest.raises(ValueError, match="mask"):
        build_mask(kind, Visibility(2, 6, 6, custom_mask=torch.ones(2, 1, 6, 6, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("custom", "complaint"),
    [
        (
            torch.ones(2, 1, 6, 5, dtype=torch.bool),
            r"\[2 or 1, 1 or heads, 6, 6\] here, and this one is \[2, 1, 6, 5\]",
        ),
        (torch.ones(3, 1, 6, 6, dtype=torch.bool), r"this one is \[3, 1, 6, 6\]"),
        (torch.ones(2, 1, 6, 6, dtype=torch.int64), "bool or floating, and this one is torch.int64"),
    ],
)
def test_a_custom_mask_of_a_wrong_form_says_what_it_should_be(custom, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_mask("bool", Visibility(2, 6, 6, custom_mask=custom))


@pytest.mark.parametrize("kind", ["bool", "additive", "block", "varlen"])
def test_documents_behind_cached_keys_are_refused(kind):
    visibility = Visibility(1, 3, 7, q_offset=4, document_ids=torch.tensor([[0, 1, 1]]))
    with pytest.raises(ValueError, match="first query has slot 4"):
        build_mask(kind, visibility)


def test_an_unknown_kind_is_named_with_its_nearest_neighbour():
    with pytest.raises(ValueError, match=r"unknown kind of mask 'boolean'\. Did you mean 'bool'"):
        build_mask("boolean", Visibility(1, 1, 1))


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("name", ["left_padding", "padding_that_hides_nothing", "packed", "decode_in_a_static_buffer"])
def test_a_traced_mask_shows_the_same_as_one_that_is_not(kind, name, fresh_compiler):
    case = CASES[name]
    tensors = {fact: value for fact, value in case.facts.items() if isinstance(value, torch.Tensor)}

    def build(tensors):
        return build_mask(kind, Visibility(2, case.q_length, case.kv_length, **{**case.facts, **tensors}), 4)

    mask = torch.compile(build, fullgraph=True, backend="aot_eager")(tensors)
    assert torch.equal(mask if kind == "bool" else mask == 0, seen_by_definition(case, 4))
