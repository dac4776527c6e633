"""The BlockMask of flex_attention: every visible pair is in a block, and what needs no mask_mod is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from kernelkit.ops.masks import Visibility, build_mask, document_ids
from tests.attention.attention_cases import CASES, SCALING, Case, reference, seen_by_definition

BLOCK = 128


def lengths_of_documents(*lengths):
    return document_ids(torch.cat([torch.arange(length) for length in lengths])[None])


MASKS = {
    "causal": (Visibility(1, 512, 512), None),
    "ragged": (Visibility(1, 300, 450, q_offset=150), None),
    "window": (Visibility(1, 640, 640), 130),
    "documents": (Visibility(1, 512, 512, document_ids=lengths_of_documents(256, 100, 156)), None),
    "documents_in_a_buffer": (Visibility(1, 300, 520, document_ids=lengths_of_documents(200, 100)), 60),
    "padding": (Visibility(2, 512, 512, padding_mask=torch.arange(512) >= torch.tensor([[300], [0]])), None),
    "static": (
        Visibility(1, 2, 400, q_offset=torch.tensor(200), padding_mask=torch.ones(1, 202, dtype=torch.bool)),
        140,
    ),
}


def blocks(num_blocks, indices):
    """[B, Q blocks, K blocks] bool, from a BlockMask's counts and indices."""
    found = torch.zeros(indices.shape[0], *indices.shape[2:], dtype=torch.bool)
    for batch, row in torch.cartesian_prod(torch.arange(len(indices)), torch.arange(indices.shape[2])).tolist():
        found[batch, row, indices[batch, 0, row, : num_blocks[batch, 0, row]].long()] = True
    return found


def tiles(dense):
    """[B, Q blocks, K blocks, 128, 128] of a [B, 1, Q, K] mask; what lies outside it is hidden."""
    padding = (0, -dense.shape[3] % BLOCK, 0, -dense.shape[2] % BLOCK)
    padded = torch.nn.functional.pad(dense[:, 0], padding)
    return padded.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)


@pytest.mark.parametrize("name", MASKS)
def test_blocks_are_as_torch_finds_them_by_looking_at_every_pair(name):
    visibility, window = MASKS[name]
    ours = build_mask("block", visibility, window)
    shape = (visibility.batch_size, 1, visibility.q_length, visibility.kv_length)
    dense = tiles(create_mask(ours.mask_mod, *shape, device="cpu"))
    partial = blocks(ours.kv_num_blocks, ours.kv_indices)
    full = blocks(ours.full_kv_num_blocks, ours.full_kv_indices)

    assert torch.equal((partial | full).expand(len(dense), -1, -1), dense.flatten(3).any(-1))
    assert torch.equal(full.expand(len(dense), -1, -1), dense.flatten(3).all(-1))
    theirs = create_block_mask(ours.mask_mod, *shape, device="cpu")
    assert theirs.shape[2:] == ours.shape[2:]
    assert theirs.BLOCK_SIZE == ours.BLOCK_SIZE


@pytest.mark.parametrize("sliding_window", [None, 4])
@pytest.mark.parametrize("name", CASES)
def test_its_mask_mod_follows_the_definition(name, sliding_window):
    case = CASES[name]
    mask = build_mask("block", case.visibility(), sliding_window)
    seen = seen_by_definition(case, sliding_window)
    if mask is None:
        assert seen.all()
    else:
        assert torch.equal(create_mask(mask.mask_mod, 2, 1, case.q_length, case.kv_length, device="cpu"), seen)


@pytest.mark.parametrize(
    "name", ["padding_across_blocks", "longer_than_a_block", "packed", "decode_after_left_padding"]
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_torchs_flex_attention_reads_it(name):
    case: Case = CASES[name]
    inputs = case.tensors()
    query, key, value = inputs
    mask = build_mask("block", case.visibility())
    output = flex_attention(query, key, value, block_mask=mask, scale=SCALING, enable_gqa=True)
    wanted = reference(inputs, seen_by_definition(case))
    assert torch.allclose(output.transpose(1, 2).double(), wanted, atol=2e-6)
