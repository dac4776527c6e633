"""AdamW with float32 weights beside a model in bfloat16, and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kernelkit.distill.config import OptimConfig


def learning_rate(config: OptimConfig, peak: float, step: int, steps: int) -> float:
    """The learning rate of ``step``, from 1, of ``steps``.

    It rises linearly over the warm-up, reaches ``peak``, and falls to ``min_lr_ratio * peak`` at the last step: as half
    a cosine (Loshchilov & Hutter, arXiv:1608.03983), or linearly.
    """
    if step <= config.warmup_steps:
        return peak * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    shares = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    least = 1.0 if config.schedule == "constant" else config.min_lr_ratio
    return peak * (least + (1 - least) * shares[config.schedule])


class MasterAdamW:
    """AdamW on float32 copies of the weights, where the model has fewer bits; else on the weights themselves.

    Gradients of several backwards are added up in float32. Parameters may be sharded.

    Args:
        model: whose trainable parameters are optimised.
        config: of AdamW.
    """

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.config = config
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.masters = {name: _master(weight) for name, weight in self.weights.items()}
        decaying = [master for master in self.masters.values() if master.ndim > 1]
        rest = [master for master in self.masters.values() if master.ndim <= 1]
        groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        fused = _has_fused(next(iter(self.masters.values())).device)
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=fused,
        )
        for master in self.masters.values():
            # As AdamW makes it at the first step: there from the beginning, so that a checkpoint can be read into it.
            step = torch.zeros((), device=master.device if fused else "cpu")
            self.adamw.state[master] = {
                "step": step,
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    @torch.no_grad()
    def accumulate(self) -> None:
        """After each backward: add the gradients of the weights to those of the masters."""
        for name, weight in self.weights.items():
            master = self.masters[name]
            if master is weight or weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Clip the gradient.

        Returns:
            Its norm before that, a scalar on the device.
        """
        norm = torch.nn.utils.get_total_norm([m.grad for m in self.masters.values() if m.grad is not None])
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.masters.values(), self.config.clip_norm, norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Step, write the weights, and forget the gradient."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad()
        self.write_weights()

    def state(self) -> dict[str, Any]:
        """Masters and moments by the names of the weights: tensors to be saved, and to be read into."""
        return {name: {"master": master.detach(), **self.adamw.state[master]} for name, master in self.masters.items()}

    @torch.no_grad()
    def write_weights(self) -> None:
        """Round the masters to the weights."""
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])


def _master(weight: nn.Parameter) -> Tensor:
    if weight.dtype in (torch.float32, torch.float64):
        return weight
    return weight.detach().float()


def _has_fused(device: torch.device) -> bool:
    """Whether torch has an AdamW of one kernel for ``device``."""
    probe = torch.zeros(1, device=device, requires_grad=True)
    try:
        torch.optim.AdamW([probe], fused=True)
    except RuntimeError:
        return False
    return True
