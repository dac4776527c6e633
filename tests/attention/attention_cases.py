"""Situations that attention meets, and what each kernel must compute in them, by the definition and in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelkit.ops.masks import Visibility, document_ids
from kernelkit.registry import default_registry

HEADS, HEAD_DIM, SCALING = 4, 16, 0.25
ARGUMENTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "sliding_window": {"sliding_window": 4},
    "softcap": {"softcap": 2.0},
}


def real(*rows: str) -> Tensor:
    """A padding mask: ``real("..xx", "xxxx")`` has two tokens of padding at the left of its first row."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


@dataclass(frozen=True)
class Case:
    """Two rows of queries and keys, and who sees whom."""

    q_length: int
    kv_length: int
    facts: dict[str, Any]
    kv_heads: int = 2

    def visibility(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Visibility:
        moved: dict[str, Any] = dict(self.facts)
        moved |= {name: fact.to(device) for name, fact in moved.items() if isinstance(fact, Tensor)}
        return Visibility(2, self.q_length, self.kv_length, **moved, dtype=dtype, device=torch.device(device))

    def tensors(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """Query, key and value."""
        generator = torch.Generator().manual_seed(0)
        # As a projection hands them over: [B, S, H, D] seen through transpose(1, 2).
        shapes = ((self.q_length, HEADS), (self.kv_length, self.kv_heads), (self.kv_length, self.kv_heads))
        made = [torch.randn(2, *shape, HEAD_DIM, generator=generator).transpose(1, 2) for shape in shapes]
        return tuple(tensor.to(device, dtype) for tensor in made)


LONG_PADDING = torch.arange(300).expand(2, -1) >= torch.tensor([[200], [0]])
PACKED = document_ids(torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6, 7]]))
CASES = {
    "square": Case(9, 9, {}),
    "ungrouped": Case(9, 9, {}, kv_heads=4),
    "one_key_head": Case(9, 9, {}, kv_heads=1),
    "longer_than_a_block": Case(150, 150, {}),
    "left_padding": Case(6, 6, {"padding_mask": real("...xxx", "xxxxxx")}),
    "right_padding": Case(6, 6, {"padding_mask": real("xxxx..", "xxxxxx")}),
    "a_row_of_padding": Case(4, 4, {"padding_mask": real("....", "xxxx")}),
    "padding_that_hides_nothing": Case(5, 5, {"padding_mask": real("xxxxx", "xxxxx")}),
    "a_padding_mask_that_ends_early": Case(5, 5, {"padding_mask": real("xxx", "xxx")}),
    "packed": Case(9, 9, {"document_ids": PACKED}),
    "packed_and_padded": Case(9, 9, {"document_ids": PACKED, "padding_mask": real("xxxxxxxxx", "..xxxxxxx")}),
    "packed_in_a_static_buffer": Case(9, 12, {"document_ids": PACKED}),
    "decode": Case(1, 8, {"q_offset": 7}),
    "decode_after_left_padding": Case(1, 8, {"q_offset": 7, "padding_mask": real("...xxxxx", "xxxxxxxx")}),
    "decode_in_a_static_buffer": Case(1, 12, {"q_offset": torch.tensor(7), "padding_mask": real("...xxxxx", "x" * 8)}),
    "decode_from_a_sliding_cache": Case(
        1, 4, {"q_offset": 9, "kv_offset": 6, "padding_mask": real("." + "x" * 9, "x" * 10)}
    ),
    "chunk": Case(3, 9, {"q_offset": 6}),
    "chunk_after_left_padding": Case(3, 9, {"q_offset": 6, "padding_mask": real("....xxxxx", "xxxxxxxxx")}),
    "chunk_of_a_sliding_cache": Case(
        3, 6, {"q_offset": 9, "kv_offset": 6, "padding_mask": real("x" * 12, "." * 8 + "x" * 4)}
    ),
    "prefill_of_a_static_buffer": Case(5, 12, {"q_offset": torch.tensor(0), "padding_mask": real("xxxxx", "xxxxx")}),
    "padded_prefill_of_a_static_buffer": Case(5, 12, {"padding_mask": real("..xxx", "xxxxx")}),
    "padding_across_blocks": Case(300, 300, {"padding_mask": LONG_PADDING}),
}


def sees(case: Case, sliding_window: int | None, row: int, i: int, j: int) -> bool:
    """Whether query i of a row sees the key in slot j, by the definition."""
    visibility = case.visibility()
    query, key = int(visibility.q_offset) + i, visibility.kv_offset + j
    if key > query or (sliding_window is not None and key <= query - sliding_window):
        return False
    if visibility.document_ids is not None and visibility.document_ids[row, i] != visibility.document_ids[row, j]:
        return False
    return key == query or is_real(visibility, row, key)


def is_real(visibility: Visibility, row: int, position: int) -> bool:
    mask = visibility.padding_mask
    return mask is None or (position < mask.shape[1] and bool(mask[row, position]))


def seen_by_definition(case: Case, sliding_window: int | None = None) -> Tensor:
    """[B, 1, Q, K] bool."""
    if case.q_length > 100:  # the same, without its loops
        slots = torch.arange(case.kv_length)
        near = slots.view(1, -1) > slots.view(-1, 1) - (sliding_window or case.kv_length)
        padding: Tensor = case.facts.get("padding_mask", torch.ones(2, case.kv_length, dtype=torch.bool))
        seen = padding[:, None, :] | torch.eye(case.kv_length, dtype=torch.bool)
        return (seen & near & (slots.view(1, -1) <= slots.view(-1, 1)))[:, None]
    rows = [
        [[sees(case, sliding_window, row, i, j) for j in range(case.kv_length)] for i in range(case.q_length)]
        for row in range(2)
    ]
    return torch.tensor(rows)[:, None]


def real_queries(case: Case) -> Tensor:
    """[B, Q], True where a query is not padding."""
    visibility = case.visibility()
    offset = int(visibility.q_offset)
    return torch.tensor([[is_real(visibility, row, offset + i) for i in range(case.q_length)] for row in range(2)])


def reference(inputs: Any, seen: Tensor, softcap: float | None = None) -> Any:
    """[B, Q, H, D] in float64, from query, key and value, and [B, 1 or H, Q, K] bool."""
    query, key, value = inputs
    groups = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(groups, 1), value.double().repeat_interleave(groups, 1)
    scores = query.double() @ key.transpose(-1, -2) * SCALING
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights: Tensor = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


def attention(name: str, variant: str = "causal", **options: Any) -> tuple[Any, str]:
    """A kernel of the default registry, and the form of mask it reads."""
    spec = default_registry().get("attention", variant, name)
    kernel = spec.build(spec.options(**options) if spec.options is not None else None)
    return kernel, spec.traits["mask"]


def with_grad(*tensors: Tensor) -> Any:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
