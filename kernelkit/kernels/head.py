"""The linear head of a language model, as loss kernels need it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernelkit.kernels.matmul import mm, product_dtype


@dataclass(frozen=True, eq=False)
class Head:
    """logits = softcap * tanh(logit_scale * (rows @ weight.T + bias) / softcap).

    Attributes:
        weight: [V, H].
        bias: [V], or None.
        softcap: None for none.
        logit_scale: factor of the logits.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    logit_scale: float

    @property
    def parts(self) -> tuple[Tensor | None, float | None, float | None]:
        """Bias, scale and softcap, each None where it changes nothing: a Triton kernel is compiled without it."""
        return self.bias, None if self.logit_scale == 1.0 else self.logit_scale, self.softcap

    def ready(self) -> Head:
        """This head with its weight in the dtype of the product and its bias contiguous, for use on several chunks."""
        bias = None if self.bias is None else self.bias.contiguous()
        return Head(self.weight.to(product_dtype(self.weight)), bias, self.softcap, self.logit_scale)

    def logits(self, rows: Tensor) -> Tensor:
        """[N, V] in at least float32, of ``rows`` [N, H]: a new tensor, filled in place."""
        logits = mm(rows, self.weight.t())
        if self.bias is not None:
            logits.add_(self.bias)
        if self.logit_scale != 1.0:
            logits.mul_(self.logit_scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def chain_(self, gradient: Tensor, logits: Tensor | None) -> Tensor:
        """Turn the gradient of the logits [N, V] into that of rows @ weight.T + bias, in place, and return it.

        ``logits`` is what the softcap gave, and is overwritten; without a softcap it is not looked at.
        """
        if self.softcap is not None and logits is not None:
            slope = logits.div_(self.softcap)
            gradient.addcmul_(gradient, slope.square_(), value=-1)
        if self.logit_scale != 1.0:
            gradient.mul_(self.logit_scale)
        return gradient
