"""Launches of the grouped products: with which blocks, and with descriptors or pointers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.tools.ragged_tma import create_ragged_descriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernelkit.kernels.moe_experts import triton_products_kernels as products
from kernelkit.kernels.moe_experts.triton_activation_kernels import of_activation
from kernelkit.kernels.moe_experts.triton_blocks_kernels import Blocks, blocks_for, takes_tma
from kernelkit.kernels.moe_experts.triton_passes_kernels import schedule
from kernelkit.kernels.triton_launch import processors


class Grouped:
    """See ``fused_kernels``. Gate and up have the order of the weight."""

    def __init__(self, choices: int, ends: Tensor, up: Tensor, down: Tensor, clamp: list[float]) -> None:
        self.turned, self.clamp = bool(clamp), clamp
        self.choices, self.ends = choices, ends
        self.up_weight, self.down_weight = (weight.transpose(1, 2) if clamp else weight for weight in (up, down))
        (self.experts, self.hidden, self.width), self.crowd = self.down_weight.shape, choices // len(ends)
        # What the device copies has rows of a multiple of 16 bytes; two halves at a time only along the depth.
        self.tma = self.hidden % 8 == self.width % 8 == 0 and takes_tma(up) and takes_tma(down)
        self.tma = self.tma and (self.turned or up.stride(2) == 1)
        self.processors, self.schedules = processors(ends), dict[int, Tensor]()

    def up(self, rows: Tensor, bias: Tensor | None, gate_up: Tensor, activated: Tensor) -> None:
        """Gate and up [S, 2I] of the rows, and the activation [S, I]."""
        blocks = blocks_for(rows, self.crowd, 2 * self.width, self.hidden)
        if self.turned and self.width % 16:  # pairs of gate and up then go out through twice the memory
            blocks = blocks._replace(stages=max(1, blocks.stages - 1))
        weight, options = self._weight(self.up_weight, blocks, halves=not self.turned)
        products.up[(self.processors,)](
            self._rows(rows, blocks), weight, bias, self._schedule(blocks), self.ends, gate_up, activated, self.hidden,
            self.width, *self.up_weight.stride(), *(self.clamp or [0.0, 0.0]), self.processors,
            TURNED=self.turned, **options,
        )  # fmt: skip

    def down(self, activated: Tensor, bias: Tensor | None, output: Tensor) -> None:
        """What the experts give [S, H]."""
        self._product(activated, self.down_weight, bias, output)

    def of_gate_up(
        self, gradient: Tensor, weights: Tensor, order: Tensor, gate_up: Tensor, of_gate_up: Tensor, activated: Tensor
    ) -> Tensor:
        """The gradient [S, 2I] of gate and up, the weighted activation [S, I], and the routing's gradient [S]."""
        self._product(gradient, self.down_weight.transpose(1, 2), None, activated)
        return of_activation(activated, weights, gate_up, order, self.ends, of_gate_up, self.clamp)

    def of_rows(self, of_gate_up: Tensor, output: Tensor) -> None:
        """The gradient [S, H] of the rows."""
        self._product(of_gate_up, self.up_weight.transpose(1, 2), None, output)

    def _product(self, rows: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> None:
        width, length = weight.shape[1:]
        blocks = blocks_for(rows, self.crowd, width, length)
        right, options = self._weight(weight, blocks)
        products.down[(self.processors,)](
            self._rows(rows, blocks), right, bias, self._schedule(blocks), self.ends, output, length, width,
            *weight.stride(), self.processors, BIASED=bias is not None, **options,
        )  # fmt: skip

    def of_down(self, gradient: Tensor, activated: Tensor, output: Tensor) -> None:
        """The gradient of the second weight."""
        self._of_weight(gradient, activated, not self.turned, output)

    def of_up(self, rows: Tensor, of_gate_up: Tensor, output: Tensor) -> None:
        """The gradient of the first weight."""
        self._of_weight(rows, of_gate_up, self.turned, output)

    def _of_weight(self, of_tokens: Tensor, other: Tensor, tokens_first: bool, output: Tensor) -> None:
        height, width = output.shape[1:]
        blocks = blocks_for(other, height, width, self.crowd)
        pair: Any = (of_tokens, other) if tokens_first else (other, of_tokens)
        if self.tma:
            pair = [
                create_ragged_descriptor(each, [blocks.depth, size])
                for each, size in zip(pair, blocks[:2], strict=True)
            ]
        products.of_weight[(self.processors,)](
            *pair, self.ends, output, self.experts, height, width, self.processors, TMA=self.tma, **_options(blocks)
        )

    def _schedule(self, blocks: Blocks) -> Tensor:
        if blocks.rows not in self.schedules:
            self.schedules[blocks.rows] = schedule(self.ends, self.choices, blocks.rows)
        return self.schedules[blocks.rows]

    def _rows(self, tensor: Tensor, blocks: Blocks) -> Any:
        return TensorDescriptor.from_tensor(tensor, [blocks.rows, blocks.depth]) if self.tma else tensor

    def _weight(self, weight: Tensor, blocks: Blocks, halves: bool = False) -> tuple[Any, dict[str, Any]]:
        """A weight [E, columns, depth] of any strides, and the options of its product."""
        along = weight.stride(2) == 1
        options = {"TMA": self.tma, "ALONG": along, "GROUP": blocks.group}
        if self.tma and halves:
            block = [1, 2, blocks.columns // 2, blocks.depth]
            weight = TensorDescriptor.from_tensor(weight.view(self.experts, 2, self.width, -1), block)
        elif self.tma and along:
            weight = TensorDescriptor.from_tensor(weight, [1, blocks.columns, blocks.depth])
        elif self.tma:
            weight = TensorDescriptor.from_tensor(weight.transpose(1, 2), [1, blocks.depth, blocks.columns])
        return weight, options | _options(blocks)


def _options(blocks: Blocks) -> dict[str, Any]:
    return {
        "ROWS": blocks.rows, "COLUMNS": blocks.columns, "DEPTH": blocks.depth,
        "num_warps": blocks.warps, "num_stages": blocks.stages,
    }  # fmt: skip
