"""Files with a JSON object in each line."""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelkit.distill.data.documents import DataError, Document
from kernelkit.distill.data.faults import Faults, place
from kernelkit.distill.data.records import RecordReader


class JsonLines:
    """The documents of one file. Only their places are held; a line is read when it is asked for.

    Build one with :func:`scan_json_lines`.
    """

    def __init__(self, path: Path, reader: RecordReader, spans: NDArray[np.int64], digest: str) -> None:
        self.path, self.reader, self.digest = path, reader, digest
        self._spans = spans  # [documents, 3]: number of the line, first byte, byte after the last

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Document:
        line, start, end = map(int, self._spans[index])
        where = place(str(self.path), "line", line)
        with self.path.open("rb") as file:
            file.seek(start)
            record, fault = parse(file.read(end - start))
        fault = fault or self.reader.fault(record)
        if fault:
            raise DataError(f"{where}: the file has changed since it was opened: {fault}")
        return self.reader.document(record, where)

    def wholes(self) -> NDArray[np.int64]:
        """As in :class:`~kernelkit.distill.data.documents.Documents`."""
        return np.arange(len(self))


def scan_json_lines(path: Path, reader: RecordReader) -> tuple[JsonLines, list[str]]:
    """Read ``path`` once, to find its lines and to see that each holds a document; blank lines are passed over.

    Returns:
        The file, and sentences about the lines that cannot be read.
    """
    faults = Faults(str(path), "line")
    digest = hashlib.blake2b(repr(reader).encode(), digest_size=16)
    spans = array("q")
    start = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    record, fault = parse(line)
                    fault = fault or reader.fault(record)
                    if fault:
                        faults.add(number, fault)
                    elif not reader.is_empty(record):
                        spans.extend((number, start, start + len(line)))
                start += len(line)
    except OSError as error:
        return _lines(path, reader, spans, ""), [f"{path} cannot be read: {error.strerror}"]
    return _lines(path, reader, spans, digest.hexdigest()), faults.sentences()


def _lines(path: Path, reader: RecordReader, spans: array[int], digest: str) -> JsonLines:
    return JsonLines(path, reader, np.array(spans, np.int64).reshape(-1, 3), digest)


def parse(line: bytes) -> tuple[Any, str | None]:
    """The value in a line; or None, and what is wrong with the line."""
    try:
        # With utf-8-sig, the byte order mark of some editors does not spoil the first line.
        return json.loads(line.decode("utf-8-sig").rstrip()), None
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 text: {error.reason} at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return None, f"is not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError):  # a number of thousands of digits, a nesting too deep
        return None, "is not JSON that Python reads"
