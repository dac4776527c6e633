"""Launches of the grouped products: with which blocks, and with descriptors or pointers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.tools.ragged_tma import create_ragged_descriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernelkit.kernels.moe_experts import triton_products_kernels as products
from kernelkit.kernels.moe_experts.triton_blocks_kernels import Blocks, blocks_for, takes_tma
from kernelkit.kernels.moe_experts.triton_passes_kernels import schedule
from kernelkit.kernels.triton_launch import blocks_of, processors


class Grouped:
    """The products of one forward or backward, over the rows [S = T * K] of its choices.

    Args:
        order, ends: as ``route`` gives them.
        top_k: choices of a token.
        up, down: the experts' weights.
        clamp: alpha and limit of gpt-oss, whose weights are [E, depth, columns]; empty for the variant ``standard``.
        buffer: [S, H], written where tokens are gathered before a product.
    """

    def __init__(
        self, order: Tensor, ends: Tensor, top_k: int, up: Tensor, down: Tensor, clamp: list[float], buffer: Tensor
    ) -> None:
        self.turned, self.clamp, self.buffer = bool(clamp), clamp or [0.0, 0.0], buffer
        self.order, self.ends, self.tokens = order, ends, order.div(top_k, rounding_mode="floor")
        self.up_weight, self.down_weight = (weight.transpose(1, 2) if clamp else weight for weight in (up, down))
        (self.experts, self.hidden, self.width), self.crowd = self.down_weight.shape, len(order) // len(ends)
        # What the device copies has rows of a multiple of 16 bytes; two halves at a time only along the depth.
        self.tma = self.hidden % 8 == self.width % 8 == 0 and takes_tma(up) and takes_tma(down)
        self.tma = self.tma and (self.turned or up.stride(2) == 1)
        self.processors, self.schedules = processors(order), dict[int, Tensor]()

    def up(self, states: Tensor, bias: Tensor | None, gate_up: Tensor, activated: Tensor) -> None:
        """Write gate and up [S, 2I], gates first or in turns as the weight has them, and the activation [S, I]."""
        blocks = self._blocks("up", self.crowd, 2 * self.width, self.hidden)
        programs = self.processors * blocks.resident
        weight, options = self._weight(self.up_weight, blocks, halves=not self.turned)
        products.up[(programs,)](
            self._left(states, blocks), weight, bias, self.tokens, self._schedule(blocks), self.ends, gate_up,
            activated, self.hidden, self.width, *self.up_weight.stride(), *self.clamp, programs,
            TURNED=self.turned, GATHERED=not blocks.before, **options,
        )  # fmt: skip

    def down(self, activated: Tensor, bias: Tensor | None, output: Tensor) -> None:
        """Write the rows [S, H] of what the experts give."""
        self._product("down", activated, self.down_weight, bias, output)

    def of_rows(self, of_gate_up: Tensor, output: Tensor) -> None:
        """Write the gradient [S, H] of the rows that the experts were given."""
        self._product("of_rows", of_gate_up, self.up_weight.transpose(1, 2), None, output)

    def _product(self, name: str, rows: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> None:
        width, length = weight.shape[1:]
        blocks = self._blocks(name, self.crowd, width, length)
        programs = self.processors * blocks.resident
        right, options = self._weight(weight, blocks)
        left = TensorDescriptor.from_tensor(rows, [blocks.rows, blocks.depth]) if self.tma else rows
        products.down[(programs,)](
            left, right, bias, self._schedule(blocks), self.ends, output, length, width, *weight.stride(), programs,
            BIASED=bias is not None, SPECIALIZE=blocks.specialize, **options,
        )  # fmt: skip

    def down_backward(
        self, gradient: Tensor, weights: Tensor, gate_up: Tensor, of_gate_up: Tensor, activated: Tensor
    ) -> Tensor:
        """Write the gradient of gate and up and the weighted activation.

        Returns:
            [S, blocks] float32, whose sum over the blocks is the gradient of the routing weights, without the bias's.
        """
        blocks = self._blocks("down_backward", self.crowd, self.width, self.hidden)
        programs, turned = self.processors * blocks.resident, self.down_weight.transpose(1, 2)
        weight, options = self._weight(turned, blocks)
        shares = weights.new_empty(len(self.order), blocks_of(blocks.columns, self.width), dtype=torch.float32)
        products.down_backward[(programs,)](
            self._left(gradient, blocks), weight, weights, gate_up, self.order, self.tokens, self._schedule(blocks),
            self.ends, of_gate_up, activated, shares, self.hidden, self.width, *turned.stride(), *self.clamp, programs,
            TURNED=self.turned, GATHERED=not blocks.before, **options,
        )  # fmt: skip
        return shares

    def of_down(self, gradient: Tensor, activated: Tensor, output: Tensor) -> None:
        """Write the gradient of the second weight, from the tokens' gradients and the weighted activation."""
        self._of_weight("of_down", gradient, activated, not self.turned, output)

    def of_up(self, states: Tensor, of_gate_up: Tensor, output: Tensor) -> None:
        """Write the gradient of the first weight."""
        self._of_weight("of_up", states, of_gate_up, self.turned, output)

    def _of_weight(self, name: str, by_token: Tensor, by_row: Tensor, token_first: bool, output: Tensor) -> None:
        height, width = output.shape[1:]
        blocks = self._blocks(name, height, width, self.crowd)
        # Rows that do not begin at multiples of 16 numbers are loaded in other steps, which take more memory.
        blocks = blocks._replace(before=blocks.before or by_token.shape[1] % 16 != 0)
        programs = self.processors * blocks.resident
        if blocks.before:
            by_token = torch.index_select(by_token, 0, self.tokens, out=self.buffer)
        tensors = [by_token, by_row] if token_first else [by_row, by_token]
        gathered = [each is by_token and not blocks.before for each in tensors]
        if self.tma:
            tensors = [
                each if by_pointer else create_ragged_descriptor(each, [blocks.depth, size])
                for each, by_pointer, size in zip(tensors, gathered, blocks[:2], strict=True)
            ]
        # The tokens' numbers are loaded as far ahead as the tokens themselves, and take a stage each.
        stages = blocks.stages if blocks.before else 2 * blocks.stages - 1
        products.of_weight[(programs,)](
            *tensors, self.tokens, self.ends, output, self.experts, height, width, programs,
            LEFT_GATHERED=gathered[0], RIGHT_GATHERED=gathered[1], TMA=self.tma,
            SPECIALIZE=blocks.specialize and blocks.before, **_options(blocks, stages),
        )  # fmt: skip

    def _blocks(self, product: str, rows: int, columns: int, depth: int) -> Blocks:
        return blocks_for(product, self.buffer, rows, columns, depth, self.tma)

    def _schedule(self, blocks: Blocks) -> Tensor:
        if blocks.rows not in self.schedules:
            self.schedules[blocks.rows] = schedule(self.ends, len(self.order), blocks.rows)
        return self.schedules[blocks.rows]

    def _left(self, tensor: Tensor, blocks: Blocks) -> Any:
        """The tokens' rows, to be gathered by the product, or gathered."""
        if not blocks.before:
            return tensor
        rows = torch.index_select(tensor, 0, self.tokens, out=self.buffer)
        return TensorDescriptor.from_tensor(rows, [blocks.rows, blocks.depth]) if self.tma else rows

    def _weight(self, weight: Tensor, blocks: Blocks, halves: bool = False) -> tuple[Any, dict[str, Any]]:
        """A weight [E, columns, depth] of any strides, and the options of its product."""
        along = weight.stride(2) == 1
        options = {"TMA": self.tma, "ALONG": along, "GROUP": blocks.group, "FLATTEN": blocks.flatten}
        if self.tma and halves:
            block = [1, 2, blocks.columns // 2, blocks.depth]
            weight = TensorDescriptor.from_tensor(weight.view(self.experts, 2, self.width, -1), block)
        elif self.tma and along:
            weight = TensorDescriptor.from_tensor(weight, [1, blocks.columns, blocks.depth])
        elif self.tma:
            weight = TensorDescriptor.from_tensor(weight.transpose(1, 2), [1, blocks.depth, blocks.columns])
        return weight, options | _options(blocks, blocks.stages)


def _options(blocks: Blocks, stages: int) -> dict[str, Any]:
    return {
        "ROWS": blocks.rows, "COLUMNS": blocks.columns, "DEPTH": blocks.depth,
        "num_warps": blocks.warps, "num_stages": stages,
    }  # fmt: skip
