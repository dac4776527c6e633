"""Files and folders that a kill cannot leave half written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a whole file so that, whenever the process is killed, either the old or the new one is there."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(draft: Path, final: Path) -> None:
    """Give a finished folder its name; after a loss of power it is there whole, or not at all."""
    for path in draft.iterdir():
        sync(path)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    sync(final.parent)
