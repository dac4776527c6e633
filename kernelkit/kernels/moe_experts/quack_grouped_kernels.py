"""Launches of quack's grouped products: of variable length in M, and in K for the gradients of weights."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from quack.cute_dsl_utils import get_device_capacity
from quack.gemm_config import GemmConfig
from quack.gemm_interface import gemm_tuned
from torch import Tensor
from torch.nn import functional as F

from kernelkit.kernels.aligned import aligned
from kernelkit.kernels.moe_experts.quack_epilogues_kernels import activation, of_activation


class Tiles(NamedTuple):
    """The tile and cluster of each kind of product; None for quack's own."""

    forward: GemmConfig | None = None
    of_gate_up: GemmConfig | None = None
    of_rows: GemmConfig | None = None
    of_weights: GemmConfig | None = None


_hopper = functools.partial(GemmConfig, tile_m=128, pingpong=True, cluster_m=1, is_dynamic_persistent=False)

HOPPER = Tiles(
    forward=_hopper(tile_n=192),
    of_gate_up=_hopper(tile_n=128, cluster_n=2),  # a wider one has no registers left for its epilogue
    of_rows=_hopper(tile_n=256, cluster_n=2, pingpong=False),
    of_weights=_hopper(tile_n=192, cluster_n=2),
)
"""Of a dozen for each kind, alone and then in turn with all six on an H200, none was faster by more than runs differ.

Clusters go along columns: of two tiles of rows one would often be empty, since each expert begins with a new pair.
"""


class Grouped:
    """See ``fused_kernels``. Gate and up are in turns.

    Raises:
        ValueError: for sizes that are no multiples of 8, which quack's copies need.
    """

    def __init__(self, choices: int, ends: Tensor, up: Tensor, down: Tensor, clamp: list[float]) -> None:
        sizes = (*up.shape[1:], *down.shape[1:])
        if any(size % 8 for size in sizes):
            raise ValueError(
                f"moe_experts: quack takes sizes that are multiples of 8, not {sizes}; name torch or triton"
            )
        self.turned, self.clamp, self.starts = bool(clamp), tuple(clamp), F.pad(ends, (1, 0))
        self.up_weight, self.down_weight = (weight.mT if clamp else weight for weight in map(aligned, (up, down)))
        self.tiles = HOPPER if get_device_capacity(up)[0] == 9 else Tiles()

    def up(self, rows: Tensor, bias: Tensor | None, gate_up: Tensor, activated: Tensor) -> None:
        """Gate and up [S, 2I] of the rows, and the activation [S, I]."""
        biases = {} if bias is None else {"bias": aligned(bias)}
        activation(self.clamp)(
            rows, self.up_weight.mT, out={"D": gate_up, "activated": activated}, cu_seqlens_m=self.starts,
            tuned=False, config=self.tiles.forward, **biases, **self._halves("B"),
        )  # fmt: skip

    def down(self, activated: Tensor, bias: Tensor | None, output: Tensor) -> None:
        """What the experts give [S, H]."""
        bias = None if bias is None else aligned(bias)
        self._of_rows(activated, self.down_weight.mT, output, self.tiles.forward, bias=bias)

    def of_gate_up(
        self, gradient: Tensor, weights: Tensor, order: Tensor, gate_up: Tensor, of_gate_up: Tensor, activated: Tensor
    ) -> Tensor:
        """The gradient [S, 2I] of gate and up, the weighted activation [S, I], and the routing's gradient [S]."""
        found: dict[str, Tensor] = of_activation(self.clamp)(
            gradient, self.down_weight, gate_up, out={"D": of_gate_up, "activated": activated},
            weight=weights.flatten().index_select(0, order).float(), cu_seqlens_m=self.starts,
            tuned=False, config=self.tiles.of_gate_up,
        )  # fmt: skip
        return found["shares"]

    def of_down(self, gradient: Tensor, activated: Tensor, output: Tensor) -> None:
        """The gradient of the second weight."""
        self._of_weight(gradient, activated, output.mT if self.turned else output)

    def of_up(self, rows: Tensor, of_gate_up: Tensor, output: Tensor) -> None:
        """The gradient of the first weight."""
        self._of_weight(rows, of_gate_up, output if self.turned else output.mT, **self._halves("out"))

    def of_rows(self, of_gate_up: Tensor, output: Tensor) -> None:
        """The gradient [S, H] of the rows."""
        self._of_rows(of_gate_up, self.up_weight, output, self.tiles.of_rows, **self._halves("B"))

    def _of_rows(self, rows: Tensor, weight: Tensor, output: Tensor, tile: GemmConfig | None, **options: Any) -> None:
        # What is under quack's search, which its interface has no argument for.
        gemm_tuned.fn(rows, weight, output, cu_seqlens_m=self.starts, config=tile, **options)

    def _of_weight(self, of_tokens: Tensor, other: Tensor, output: Tensor, **options: Any) -> None:
        tile = self.tiles.of_weights
        gemm_tuned.fn(of_tokens.t(), other, output, cu_seqlens_k=self.starts, config=tile, **options)

    def _halves(self, name: str) -> dict[str, Any]:
        """Says which of the weights' tensors has gate and up in halves, and not in turns."""
        return {} if self.turned else {"concat_layout": (name,)}
