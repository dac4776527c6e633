"""The divergences of the distillation loss with their gradients, in as few passes over [N, V] as PyTorch allows.

Each function takes the log-probabilities of teacher and student, log_p and log_q [N, V], which it overwrites, and
``share``. It returns the sum over the N positions, and the gradient of ``share`` times that sum with respect to the
student's logits (those whose log-softmax log_q is), in one of the tensors at hand. Row sums are taken of products and
not by a matrix product, which would round to TF32 where the user allows that for the model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def divergence_(log_p: Tensor, log_q: Tensor, beta: float, share: float) -> tuple[Tensor, Tensor]:
    """The generalised Jensen-Shannon divergence, of which the two KL are the ends."""
    if beta == 0:
        return _forward_kl_(log_p, log_q, share)
    if beta == 1:
        return _reverse_kl_(log_p, log_q, share)
    return _jsd_(log_p, log_q, beta, share)


def _forward_kl_(log_p: Tensor, log_q: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """KL(P||Q) has the gradient Q - P."""
    difference = log_p - log_q
    p = log_p.exp_()
    total = difference.mul_(p).sum()
    return total, _times_(log_q.exp_().sub_(p), share)


def _reverse_kl_(log_p: Tensor, log_q: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """KL(Q||P) has the gradient Q (log(Q/P) - KL)."""
    difference = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    terms = difference.mul_(q)
    kl = terms.sum(-1, keepdim=True)
    return kl.sum(), _times_(terms.addcmul_(q, kl, value=-1), share)


def _jsd_(log_p: Tensor, log_q: Tensor, beta: float, share: float) -> tuple[Tensor, Tensor]:
    """The JSD has the gradient (1 - beta) Q (log(Q/M) - KL(Q||M)).

    log(M/Q) = log(beta P/Q + 1 - beta) is taken of the difference log(P/Q), so that it vanishes with it: taken from
    log(M) and log(Q), what is left of two equal models would be rounding errors.
    """
    difference = log_p - log_q
    m_over_q = difference + math.log(beta)
    torch.logaddexp(m_over_q, m_over_q.new_full((), math.log(1 - beta)), out=m_over_q)
    p_over_m = difference.sub_(m_over_q)
    kl_p = p_over_m.mul_(log_p.exp_()).sum()
    q = log_q.exp_()
    terms = m_over_q.mul_(q)
    minus_kl_q = terms.sum(-1, keepdim=True)
    total = beta * kl_p - (1 - beta) * minus_kl_q.sum()
    return total, _times_(terms.addcmul_(q, minus_kl_q, value=-1), (beta - 1) * share)


def _times_(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1 else tensor.mul_(factor)
