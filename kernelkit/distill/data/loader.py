"""Deals out the rows of each epoch to steps, ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Self

from kernelkit.distill.data.batch import Batch, BatchId, Step, collate
from kernelkit.distill.data.config import DataConfig
from kernelkit.distill.data.documents import DataError
from kernelkit.distill.data.packing import Row
from kernelkit.distill.data.rows import Cursor, Rows
from kernelkit.errors import shown

Fingerprint = Mapping[str, Any]


class Position(NamedTuple):
    """Which batch is next, and where its rows begin."""

    epoch: int = 0
    step: int = 0
    item: int = 0
    row: int = 0


class Loader:
    """An endless iterator over the steps of one rank, epoch after epoch.

    The rows of a step are the same whatever the number of ranks and the size of a micro-batch: rank r takes the r-th
    share of them. It can go on from :meth:`state_dict` in the middle of an epoch.

    Args:
        rows: the rows of each epoch.
        config: how many rows a step takes.
        pad_id: what fills up rows.
        rank, world_size: which share of the rows is dealt out.
        fingerprint: what the order of rows depends on, by name; plain values.
    """

    def __init__(
        self,
        rows: Rows,
        config: DataConfig,
        *,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        if rank not in range(world_size):
            raise ValueError(f"there is no rank {rank} among {world_size}")
        if problems := config.problems(world_size):
            raise ValueError(problems[0].message)
        self.rows, self.config, self.pad_id = rows, config, pad_id
        self.rank, self.world_size = rank, world_size
        self.fingerprint = dict(fingerprint or {})
        self._position = Position()
        self._steps: Iterator[tuple[Step, Position]] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        if self._steps is None:
            self._steps = self._endless(self._position)
        try:
            step, self._position = next(self._steps)
        except DataError:
            # An iterator that has raised is at its end, and data that cannot be read are no end of the data.
            self._steps = None
            raise
        return step

    def epoch(self, epoch: int = 0) -> Iterator[Step]:
        """The steps of one epoch from its beginning. The iteration of the loader itself is not touched."""
        return (step for step, _ in self._epoch(Position(epoch)))

    def state_dict(self) -> dict[str, Any]:
        """Which step is next, in plain values; the same on every rank, and good for any number of ranks."""
        return {**self._position._asdict(), "fingerprint": dict(self.fingerprint)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the step that was next when ``state`` was taken.

        Raises:
            ValueError: if it was taken of other data, or with settings that make other rows of them.
        """
        names = (*Position._fields, "fingerprint")
        if set(state) != set(names) or not isinstance(state["fingerprint"], Mapping):
            raise ValueError(f"this is no state of a data loader: {shown(state)}")
        theirs = dict(state["fingerprint"])
        differing = [name for name in {**self.fingerprint, **theirs} if theirs.get(name) != self.fingerprint.get(name)]
        if differing:
            changes = "; ".join(
                f"{name} was {shown(theirs.get(name))} and is {shown(self.fingerprint.get(name))}" for name in differing
            )
            raise ValueError(f"the run cannot go on with other data than it began with: {changes}")
        self._position = Position(*(int(state[name]) for name in Position._fields))
        self._steps = None

    def _endless(self, position: Position) -> Iterator[tuple[Step, Position]]:
        while True:
            yield from self._epoch(position)
            position = Position(position.epoch + 1)

    def _epoch(self, position: Position) -> Iterator[tuple[Step, Position]]:
        epoch, number, *cursor = position
        rows = self.rows.epoch(epoch, Cursor(*cursor))
        while some := list(islice(rows, self.config.batch_size)):
            _, cursor_after = some[-1]
            yield (
                self._step([row for row, _ in some], BatchId(epoch, number)),
                Position(epoch, number + 1, *cursor_after),
            )
            number += 1
        if number == 0:
            raise DataError("the data have no token to predict")

    def _step(self, rows: list[Row], batch_id: BatchId) -> Step:
        pieces = [piece for row in rows for piece in row]
        # Every rank computes as many rows as the others, or they would wait for each other for ever.
        rows = rows + [()] * (self.config.batch_size - len(rows))
        share, size = self.config.rows_per_rank(self.world_size), self.config.rows_per_forward(self.world_size)
        first = self.rank * share
        return Step(
            id=batch_id,
            micro_batches=tuple(
                self._batch(rows[at : at + size], batch_id) for at in range(first, first + share, size)
            ),
            num_targets=sum(piece.num_targets for piece in pieces),
            num_tokens=sum(piece.length for piece in pieces),
        )

    def _batch(self, rows: list[Row], batch_id: BatchId) -> Batch:
        packed = self.config.packing
        return collate(rows, self.config.seq_len, self.pad_id, packed=packed, batch_id=batch_id)
