"""What we call of quack-kernels 0.6.5, in plain PyTorch: its signatures, what it asserts, and its mathematics.

Sources: ``rmsnorm.py``, ``gemm_interface.py`` with ``gemm.py``, and ``linear_cross_entropy.py`` of the package.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

FLOATS = {torch.float16, torch.bfloat16, torch.float32}

unlike_autocast = torch.autocast("cpu", enabled=False)
"""Quack multiplies in kernels of its own, of which autocast knows nothing."""


def modules(calls: list[dict[str, Any]]) -> dict[str, ModuleType]:
    """The modules by name. Each call of a product is added to ``calls``."""

    def recorded(A: Tensor, B: Tensor, **keywords: Any) -> Tensor:  # noqa: N803  # quack's names
        calls.append({"A": A, "B": B, **keywords})
        return gemm(A, B, **keywords)

    contents = {
        "quack": {},
        "quack.rmsnorm": {"rmsnorm_fwd": rmsnorm_fwd, "rmsnorm_bwd": rmsnorm_bwd},
        "quack.gemm_interface": {"gemm": recorded},
        "quack.linear_cross_entropy": {
            "scaled_exp_linear_cross_entropy_fwd": scaled_exp_linear_cross_entropy_fwd,
        },
    }
    found = {name: ModuleType(name) for name in contents}
    for name, functions in contents.items():
        vars(found[name]).update(functions)
    return found


def rmsnorm_fwd(
    x, weight=None, bias=None, residual=None, out_dtype=None, residual_dtype=None, eps=1e-6, store_rstd=False,
    weight_offset=0.0,
):  # fmt: skip
    out = x.new_empty(x.shape, dtype=x.dtype if out_dtype is None else out_dtype)
    assert_rows(x, weight, stored=out)
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out.copy_(wide * rstd * (weight.float() + weight_offset))
    return out, x, rstd[:, 0] if store_rstd else None


def rmsnorm_bwd(x, weight, dout, rstd, dresidual_out=None, has_bias=False, has_residual=False, weight_offset=0.0):
    assert_rows(x, weight, dout)
    assert rstd.shape == x.shape[:1] and rstd.dtype == torch.float32 and dout.shape == x.shape
    normed, wide = x.float() * rstd[:, None], dout.float()
    scaled = wide * (weight.float() + weight_offset)
    dx = rstd[:, None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    return dx.to(x.dtype), (wide * normed).sum(0).to(weight.dtype), None, None


def assert_rows(x: Tensor, weight: Tensor, *more: Tensor, stored: Tensor | None = None) -> None:
    """Rows [M, N] and a weight [N], the rows copied asynchronously in pieces of four bytes at least."""
    width, tensors = weight.shape[0], [x, weight, *more, *([] if stored is None else [stored])]
    piece = math.gcd(width, *(16 // tensor.element_size() for tensor in tensors))
    for tensor in tensors:
        assert tensor.dtype in FLOATS and tensor.shape[-1] == width and tensor.is_contiguous()
        assert tensor.data_ptr() % (piece * tensor.element_size()) == 0
    for rows in (x, *more):
        assert rows.ndim == 2 and piece * rows.element_size() >= 4


@unlike_autocast
def gemm(
    A, B, out=None, bias=None, alpha=1.0, out_dtype=None, out_quant_dim=-1, out_transposed=False,  # noqa: N803  # quack's
    out_per_tensor_scale=None, cu_seqlens_m=None, cu_seqlens_k=None, A_idx=None,  # noqa: N803  # quack's
    batch_idx_permute=None, dynamic_scheduler=False, tuned=True, rounding_mode=0, sr_seed=0, concat_layout=None,
    split_k=1, split_k_mode=0,
):  # fmt: skip
    assert A.dtype == B.dtype and A.dtype in (torch.float16, torch.bfloat16)
    assert (cu_seqlens_m is None) != (cu_seqlens_k is None)
    starts = cu_seqlens_k if cu_seqlens_m is None else cu_seqlens_m
    for integers in (starts, A_idx):
        assert integers is None or (integers.dtype == torch.int32 and integers.is_contiguous())
        assert integers is None or integers.data_ptr() % 16 == 0
    if out is None:
        rows = A.shape[0] if A_idx is None else A_idx.shape[0]
        shape = (rows, B.shape[-1]) if cu_seqlens_k is None else (len(starts) - 1, A.shape[0], B.shape[-1])
        out = A.new_full(shape, math.nan, dtype=out_dtype or A.dtype)
    for tensor in (A, B, out):
        assert_copied_by_tiles(tensor)
    groups = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    for group, (start, end) in enumerate(groups):
        if cu_seqlens_m is not None:
            assert A.stride(-1) == 1 and out.stride(-1) == 1 and B.ndim == 3 and A.shape[1] == B.shape[1]
            rows = A[start:end] if A_idx is None else A[A_idx[start:end].long()]
            out[start:end] = (rows.float() @ B[group].float()).to(out.dtype)
        else:
            assert A.stride(-2) == 1 and B.stride(-1) == 1 and out.shape == (len(starts) - 1, len(A), B.shape[1])
            columns = A[:, start:end] if A_idx is None else A[:, A_idx[start:end].long()]
            out[group] = (columns.float() @ B[start:end].float()).to(out.dtype)
    return out


def assert_copied_by_tiles(tensor: Tensor) -> None:
    """Sixteen bytes at a time, along rows or along columns."""
    step = 16 // tensor.element_size()
    assert tensor.data_ptr() % 16 == 0
    assert 1 in tensor.stride()[-2:]
    assert all(stride % step == 0 for stride in tensor.stride() if stride != 1)


@unlike_autocast
def scaled_exp_linear_cross_entropy_fwd(
    x, weight, target, chunk_size, ignore_index=-100, *, need_dx=True, need_dw=True, grad_scale=None, tile_n1=None
):
    (tokens, hidden), vocabulary = x.shape, weight.shape[0]
    assert x.dtype == weight.dtype == torch.bfloat16 and target.dtype in (torch.int32, torch.int64)
    assert x.is_contiguous() and weight.is_contiguous() and target.shape == (tokens,)
    assert x.data_ptr() % 16 == weight.data_ptr() % 16 == 0 and hidden % 8 == 0
    assert vocabulary % 128 == 0 and chunk_size % 128 == 0 and tokens > 0
    padded = -(-tokens // 128) * 128
    sizes = [chunk_size] * ((tokens - 1) // chunk_size)
    if need_dx and hidden in (*sizes, padded - sum(sizes)):
        raise ValueError("operand 'v': m == n makes row/col inference ambiguous")
    logits, counts = x.float() @ weight.float().t(), target != ignore_index
    log, label = logits.logsumexp(-1), torch.where(counts, target, 0)
    losses = torch.where(counts, log - logits.gather(1, label[:, None])[:, 0], 0)
    # Softmax numerators have the dtype of the head, in powers of two that the row's factor takes back.
    numerators = (logits - log[:, None]).exp()
    numerators.scatter_add_(1, label[:, None], -torch.ones_like(logits[:, :1]))
    gradient = numerators.to(x.dtype).float() * counts[:, None]
    dx = dw = None
    if need_dx:
        dx = x.new_zeros(padded, hidden)
        dx[:tokens] = (gradient @ weight.float()).to(x.dtype)
    if need_dw:
        dw = gradient.t() @ x.float()
    return torch.nn.functional.pad(losses, (0, padded - tokens)), dx, dw
