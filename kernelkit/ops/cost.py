"""What the costs of ops are made of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def memory(*tensors: Tensor) -> int:
    """Bytes of all ``tensors``, which may be on the meta device."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def rows(sizes: Mapping[str, int]) -> tuple[int, int]:
    """``batch`` and ``length`` of sized samples, by default two rows of 32."""
    return sizes.get("batch", 2), sizes.get("length", 32)
