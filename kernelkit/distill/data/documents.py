"""Documents, and collections of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """The data cannot be used, which shows only once they are read."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, or a part of a long one.

    Attributes:
        text: its words.
        begins, ends: whether it is the beginning, and the end, of its document.
        place: where it is from, such as ``"books/emma.txt"``.
    """

    text: str
    begins: bool
    ends: bool
    place: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What several roles said to each other.

    Attributes:
        messages: each with ``role`` and, as a rule, ``content``.
        place: where it is from, such as ``"chats.jsonl:17"``.
    """

    messages: Sequence[Mapping[str, Any]]
    place: str


Document = Passage | Conversation


class Documents(Protocol):
    """A collection that is read piecemeal. Its items are conversations, or passages of which documents consist.

    Attributes:
        digest: a hash of all that it holds.
    """

    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...

    def wholes(self) -> NDArray[np.int64]:
        """[items], the document that each item is a part of; never decreasing, from 0."""


class Joined:
    """Several collections, one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self.parts = tuple(parts)
        self.digest = hashed(part.digest for part in parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def __getitem__(self, index: int) -> Document:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - (int(self._ends[part - 1]) if part else 0)]

    def wholes(self) -> NDArray[np.int64]:
        """As in :class:`Documents`."""
        joined: list[NDArray[np.int64]] = []
        first = 0
        for part in self.parts:
            if len(part):
                joined.append(part.wholes() + first)
                first = int(joined[-1][-1]) + 1
        return np.concatenate(joined) if joined else np.empty(0, np.int64)


class Selected:
    """Some items of a collection."""

    def __init__(self, documents: Documents, items: NDArray[np.int64]) -> None:
        self.documents, self.items = documents, items
        self.digest = hashed((documents.digest, hashlib.blake2b(items.tobytes()).hexdigest()))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Document:
        return self.documents[int(self.items[index])]

    def wholes(self) -> NDArray[np.int64]:
        """As in :class:`Documents`."""
        return np.unique(self.documents.wholes()[self.items], return_inverse=True)[1]


def hold_out(documents: Documents, fraction: float) -> tuple[Selected, Selected]:
    """Divide documents into those for training and those, about ``fraction`` of them, for validation.

    Which ones is drawn from their number alone, so that neither a seed nor an order moves a document from one side to
    the other. Documents stay whole, unless ``fraction`` of them is less than one: then their passages are divided.

    Raises:
        DataError: if there is nothing to divide.
    """
    wholes = documents.wholes()
    count = int(wholes[-1]) + 1 if len(wholes) else 0
    if count * fraction < 1 and len(wholes) > count:
        wholes, count = np.arange(len(wholes)), len(wholes)
    if count < 2:
        raise DataError("a single short document cannot be divided; name validation data of their own")
    drawn = np.random.RandomState(0).permutation(count)[: min(max(round(fraction * count), 1), count - 1)]
    held = np.isin(wholes, drawn)
    return Selected(documents, np.flatnonzero(~held)), Selected(documents, np.flatnonzero(held))


def hashed(parts: Iterable[str]) -> str:
    """One hash for several."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
