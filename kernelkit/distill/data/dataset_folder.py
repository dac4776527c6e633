"""Folders that HF ``datasets`` wrote by ``save_to_disk``."""

from __future__ import annotations

import hashlib
import importlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelkit.distill.data.documents import Document
from kernelkit.distill.data.faults import Faults, place
from kernelkit.distill.data.records import RecordReader

INSTALL = "HF datasets is not installed: pip install 'kernelkit[distill]', or pip install datasets"


class DatasetFolder:
    """The rows of one data set, which stays on disk.

    Build one with :func:`open_dataset`.
    """

    def __init__(self, path: Path, reader: RecordReader, rows: Any, kept: NDArray[np.int64], digest: str) -> None:
        self.path, self.reader, self.digest = path, reader, digest
        self._rows = rows
        self._kept = kept  # [documents], numbers of the rows that are not empty

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Document:
        row = int(self._kept[index])
        return self.reader.document(self._rows[row], place(str(self.path), "row", row))

    def wholes(self) -> NDArray[np.int64]:
        """As in :class:`~kernelkit.distill.data.documents.Documents`."""
        return np.arange(len(self))


def open_dataset(path: Path, reader: RecordReader) -> tuple[DatasetFolder | None, list[str]]:
    """Open the data set in ``path`` and see that each row holds a document.

    Returns:
        The data set, or None if there is none; and sentences about what cannot be read.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        return None, [f"{path} is a folder of HF datasets, and {INSTALL}"]
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, fsspec and datasets each raise their own
        return None, [f"{path} cannot be read by datasets: {error}"]
    if isinstance(loaded, datasets.DatasetDict):
        splits = " or ".join(str(path / split) for split in loaded)
        return None, [f"{path} holds several data sets; name one: {splits}"]
    if reader.field not in loaded.column_names:
        return None, [f"{path}: {reader.missing(loaded.column_names)}"]
    rows = loaded.select_columns([reader.field])
    kept, faults = _check(rows, path, reader)
    return DatasetFolder(path, reader, rows, kept, _digest(path, reader)), faults


def _check(rows: Any, path: Path, reader: RecordReader) -> tuple[NDArray[np.int64], list[str]]:
    faults, kept = Faults(str(path), "row"), array("q")
    for number, row in enumerate(rows):
        fault = reader.fault(row)
        if fault:
            faults.add(number, fault)
        elif not reader.is_empty(row):
            kept.append(number)
    return np.array(kept, np.int64), faults.sentences()


def _digest(path: Path, reader: RecordReader) -> str:
    """A hash of what datasets says of the content, and of the sizes of the files, which may be too large to read."""
    digest = hashlib.blake2b(repr(reader).encode(), digest_size=16)
    for file in sorted(path.iterdir()):
        described = file.suffix == ".json"
        digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes() if described else b"")
    return digest.hexdigest()
