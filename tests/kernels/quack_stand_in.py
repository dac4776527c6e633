"""What we call of quack-kernels 0.6.5, in plain PyTorch: its signatures, what it asserts, and its mathematics.

Sources: ``rmsnorm.py``, ``gemm_interface.py`` with ``gemm.py``, ``epilogue/frontend.py``, ``activation.py``, and
``linear_cross_entropy.py`` of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

FLOATS = {torch.float16, torch.bfloat16, torch.float32}

unlike_autocast = torch.autocast("cpu", enabled=False)
"""Quack multiplies in kernels of its own, of which autocast knows nothing."""


@dataclass(frozen=True)
class GemmConfig:
    tile_m: int = 128
    tile_n: int = 192
    pingpong: bool = True
    is_dynamic_persistent: bool = True
    cluster_m: int = 2
    cluster_n: int = 1


def modules(calls: list[dict[str, Any]]) -> dict[str, ModuleType]:
    """The modules by name. Each call of a product is added to ``calls``."""

    def recorded(product: Any) -> Any:
        def call(A: Tensor, B: Tensor, *args: Any, **keywords: Any) -> Any:  # noqa: N803  # quack's names
            calls.append({"A": A, "B": B, **keywords})
            return product(A, B, *args, **keywords)

        return call

    def recorded_epilogue(**declared: Any) -> Any:
        return lambda function: recorded(gemm_epilogue(function, **declared))

    contents = {
        "quack": {},
        "quack.rmsnorm": {"rmsnorm_fwd": rmsnorm_fwd, "rmsnorm_bwd": rmsnorm_bwd},
        "quack.cute_dsl_utils": {"get_device_capacity": lambda _: (9, 0)},
        "quack.gemm_config": {"GemmConfig": GemmConfig},
        "quack.gemm_interface": {"gemm_tuned": SimpleNamespace(fn=recorded(gemm))},
        "quack.activation": {
            "swiglu": swiglu, "dswiglu": dswiglu, "swiglu_oai": swiglu_oai, "dswiglu_oai": dswiglu_oai,
        },
        "quack.epilogue": {},
        "quack.epilogue.frontend": {"EpiMod": object, "gemm_epilogue": recorded_epilogue},
        "quack.epilogue.math": {"pack": pack, "unpack": unpack},
        "quack.epilogue.ops": {
            "ColVecLoad": named("column"), "ColVecReduce": named("sum"), "RowVecLoad": named("row"),
        },
        "quack.linear_cross_entropy": {
            "scaled_exp_linear_cross_entropy_fwd": scaled_exp_linear_cross_entropy_fwd,
        },
    }  # fmt: skip
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
    A, B, out, *, bias=None, cu_seqlens_m=None, cu_seqlens_k=None, config=None, concat_layout=None,  # noqa: N803  # quack's
):  # fmt: skip
    assert A.dtype == B.dtype and A.dtype in (torch.float16, torch.bfloat16)
    assert (cu_seqlens_m is None) != (cu_seqlens_k is None)
    starts = cu_seqlens_k if cu_seqlens_m is None else cu_seqlens_m
    assert starts.dtype == torch.int32 and starts.is_contiguous() and starts.data_ptr() % 16 == 0
    for tensor in (A, B, out):
        assert_copied_by_tiles(tensor)
    assert concat_layout in (None, ("B",), ("out",))
    right = in_turns(B) if concat_layout == ("B",) else B
    for group, (start, end) in enumerate(groups_of(starts)):
        if cu_seqlens_m is not None:
            assert A.stride(-1) == 1 and out.stride(-1) == 1 and right.ndim == 3 and A.shape[1] == right.shape[1]
            product = A[start:end].float() @ right[group].float() + (0 if bias is None else bias[group].float())
            out[start:end] = product.to(out.dtype)
        else:
            assert A.stride(-2) == right.stride(-1) == 1 and out.shape == (len(starts) - 1, len(A), right.shape[1])
            out[group] = (A[:, start:end].float() @ right[start:end].float()).to(out.dtype)
    if concat_layout == ("out",):
        out.copy_(in_halves(out))


def groups_of(starts: Tensor) -> list[tuple[int, int]]:
    return list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))


def in_turns(matrices: Tensor) -> Tensor:
    """Halves along the direction that is not that of memory, as if they lay there in turns."""
    turned = matrices if matrices.stride(-2) == 1 else matrices.mT
    both = torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)
    return both if matrices.stride(-2) == 1 else both.mT


def in_halves(matrices: Tensor) -> Tensor:
    """What lies in turns along that direction, in halves."""
    turned = matrices if matrices.stride(-2) == 1 else matrices.mT
    both = torch.cat((turned[..., ::2], turned[..., 1::2]), dim=-1)
    return both if matrices.stride(-2) == 1 else both.mT


def pack(first, second):
    return torch.stack((first, second), dim=-1)


def unpack(pair):
    return pair.unbind(-1)


def swiglu(gate, up):
    return torch.nn.functional.silu(gate) * up


def swiglu_oai(gate, up, alpha=1.702, limit=math.inf):
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def dswiglu(gate, up, gradient):
    share = torch.sigmoid(gate)
    of_gate = gradient * up * share * (1 + gate * (1 - share))
    return of_gate, gradient * gate * share, swiglu(gate, up)


def dswiglu_oai(gate, up, gradient, alpha=1.702, limit=math.inf):
    clamped, widened = gate.clamp(max=limit), up.clamp(-limit, limit) + 1
    share = torch.sigmoid(alpha * clamped)
    of_gate = gradient * widened * share * (1 + alpha * clamped * (1 - share)) * (gate <= limit)
    return of_gate, gradient * clamped * share * (up.abs() <= limit), clamped * share * widened


def named(kind):
    return lambda name, *, scaled=False: (kind, name, scaled)


def gemm_epilogue(function, *, outputs, mode, ops=None, reduces=None):
    """A product of variable length in M, of whose tiles ``function`` makes what is stored; here a group is one tile."""
    assert mode in ("acc_pair", "packed_cd_b16x2")

    @unlike_autocast
    def product(
        A, B, C=None, *, out, cu_seqlens_m, config=None, tuned=True, concat_layout=None, **operands  # noqa: N803  # quack's
    ):  # fmt: skip
        assert A.dtype == B.dtype and A.dtype in (torch.float16, torch.bfloat16) and set(operands) == set(ops or {})
        assert set(out) == {"D", *outputs} and cu_seqlens_m.dtype == torch.int32
        for tensor in (A, B, *out.values(), *([] if C is None else [C])):
            assert_copied_by_tiles(tensor)
        assert (C is not None) == (mode == "packed_cd_b16x2") and concat_layout in (None, ("B",))
        sums = {name: A.new_full((len(A),), math.nan, dtype=torch.float32) for name in reduces or {}}
        weights = B if concat_layout is None else in_turns(B)
        for group, (start, end) in enumerate(groups_of(cu_seqlens_m)):
            acc = A[start:end].float() @ weights[group].float()
            pairs = {} if C is None else {"c": C[start:end].float().unflatten(-1, (-1, 2))}
            for name, value in operands.items():
                if ops[name][0] == "row":
                    pairs[name] = value[group].float().unflatten(-1, (-1, 2))
                else:
                    assert value.dtype == torch.float32 and value.shape == (len(A),)
                    pairs[name] = value[start:end, None]
            found = function(acc if C is not None else acc.unflatten(-1, (-1, 2)), **pairs)
            out["D"][start:end] = found["D"].flatten(-2).to(A.dtype)
            for name in outputs:
                out[name][start:end] = found[name].to(A.dtype)
            for name, sum_ in sums.items():
                one, other = found[name]
                sum_[start:end] = (one * other).sum(-1)
        return out | sums

    return product


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
