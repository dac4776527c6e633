"""Text files: each is a document, and a long one is read in parts."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernelkit.distill.data.documents import DataError, Passage


class TextFiles:
    """The passages of text files. Only their places are held; a text is read when it is asked for.

    Build one with :func:`scan_text_files`.
    """

    def __init__(self, paths: Sequence[Path], spans: NDArray[np.int64], digest: str) -> None:
        self.paths = tuple(paths)
        self.digest = digest
        self._spans = spans  # [passages, 3]: number of the file, first byte, byte after the last
        ends = np.flatnonzero(np.diff(spans[:, 0], append=-1))
        self._sizes = dict(zip(spans[ends, 0].tolist(), spans[ends, 2].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Passage:
        number, start, end = map(int, self._spans[index])
        path = self.paths[number]
        with path.open("rb") as file:
            file.seek(start)
            read = file.read(end - start)
        if len(read) < end - start:
            raise DataError(f"{path} has become shorter since it was opened")
        return Passage(read.decode(), begins=start == 0, ends=end == self._sizes[number], place=str(path))

    def wholes(self) -> NDArray[np.int64]:
        """As in :class:`~kernelkit.distill.data.documents.Documents`."""
        return np.unique(self._spans[:, 0], return_inverse=True)[1]


def scan_text_files(paths: Sequence[Path], passage_bytes: int) -> tuple[TextFiles, list[str]]:
    """Read ``paths`` once, to find their passages and to see that they are text.

    Args:
        paths: the files, in UTF-8.
        passage_bytes: the length at which a file is cut, after a line break in the second half of it if there is one.

    Returns:
        The files, and a sentence for each that cannot be read.
    """
    spans: list[tuple[int, int, int]] = []
    faults: list[str] = []
    digest = hashlib.blake2b(digest_size=16)
    for number, path in enumerate(paths):
        start = 0
        try:
            for text in _cut(path, passage_bytes):
                text.decode()
                digest.update(text)
                spans.append((number, start, start + len(text)))
                start += len(text)
        except UnicodeDecodeError as error:
            faults.append(f"{path} is not UTF-8 text: {error.reason} at byte {start + error.start}")
        except OSError as error:
            faults.append(f"{path} cannot be read: {error.strerror}")
        digest.update(f"\0{start}\0".encode())
    return TextFiles(paths, np.array(spans, np.int64).reshape(-1, 3), digest.hexdigest()), faults


def _cut(path: Path, passage_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = 0
            while start < size:
                end = _end(content, start, passage_bytes)
                yield content[start:end]
                start = end


def _end(content: mmap.mmap, start: int, passage_bytes: int) -> int:
    end = start + passage_bytes
    if end >= len(content):
        return len(content)
    line_break = content.rfind(b"\n", start + passage_bytes // 2, end)
    if line_break >= 0:
        return line_break + 1
    # Bytes 0b10xxxxxx continue a character, of which there are at most three.
    return next((at for at in range(end, end - 4, -1) if content[at] & 0xC0 != 0x80), end)
