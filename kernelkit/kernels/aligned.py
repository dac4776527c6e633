"""Tensors as kernels that copy sixteen bytes at a time must have them."""

from __future__ import annotations

from torch import Tensor

BYTES = 16


def aligned(tensor: Tensor) -> Tensor:
    """``tensor``, contiguous and at an address that sixteen bytes divide; a copy where it is not.

    A view may begin anywhere in the memory of another tensor, and such kernels trust that it does not.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % BYTES == 0 else tensor.clone()
