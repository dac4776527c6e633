"""What the Triton kernels of the losses do with one row of logits, block by block.

Logarithms are taken to the base of two, as the hardware takes them.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Where maxima begin: finite, so that it can be subtracted from itself."""


@triton.jit
def tanh(x):
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    positive = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -positive, positive)


@triton.jit
def head_logits(product, bias, columns, mask, scale, cap, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    """The head's logits at ``columns``, of its product with the hidden states; zero or what it becomes off ``mask``."""
    logits = tl.load(product + columns, mask=mask, other=0.0)
    if BIASED:
        logits += tl.load(bias + columns, mask=mask, other=0.0).to(logits.dtype)
    logits = logits * scale
    if CAPPED:
        logits = tanh(logits / cap) * cap
    return logits


@triton.jit
def head_chain(gradient, logits, scale, cap, CAPPED: tl.constexpr):
    """The gradient of that product, from the gradient of the logits."""
    if CAPPED:
        slope = logits / cap
        gradient = gradient * (1.0 - slope * slope)
    return gradient * scale


@triton.jit
def online(maxima, sums, logits, factor):
    """Take in one more block: maxima, and sums of 2^(factor (logits - maxima)), of each lane by itself.

    Of the two exponentials of the textbook one is always 1. Off the row logits are -inf, and count for nothing.
    """
    power = tl.exp2(-tl.abs(logits - maxima) * factor)
    return tl.maximum(maxima, logits), tl.where(logits > maxima, sums * power + 1.0, sums + power)


@triton.jit
def log_sum(maxima, sums, maximum, factor):
    """The logarithm of the sum of 2^(factor (logits - maximum)) over all lanes."""
    return tl.log2(tl.sum(sums * tl.exp2((maxima - maximum) * factor), axis=0))
