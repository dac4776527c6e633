"""From what a config names to files and folders, each with its kind."""

from __future__ import annotations

import glob
import os
import sysconfig
from pathlib import Path
from typing import Literal, NamedTuple

from kernelkit.distill.data.config import PYTHON_STDLIB
from kernelkit.errors import listing

Kind = Literal["text", "jsonl", "dataset"]

PROSE = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml")
CODE = (
    ".py",
    ".pyi",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cu",
    ".cuh",
    ".java",
    ".js",
    ".ts",
    ".go",
    ".rs",
    ".rb",
    ".sh",
)
TEXT_SUFFIXES = frozenset((*PROSE, *CODE))
NOT_LIBRARY = frozenset(("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"))


class Found(NamedTuple):
    """One file, or one folder of HF ``datasets``."""

    path: Path
    kind: Kind


def find(name: str, wanted: Literal["auto", "text", "jsonl", "dataset"]) -> tuple[list[Found], list[str]]:
    """What ``name`` stands for, in the order of the paths, and what is wrong with it.

    Args:
        name: a path, a glob, or ``python-stdlib``.
        wanted: the kind of all files; ``auto`` goes by their names.
    """
    if name == PYTHON_STDLIB:
        files = stdlib_files()
        return [Found(file, "text") for file in files], [] if files else [
            "this Python has its library's sources not in files"
        ]
    path = Path(name).expanduser()
    if path.exists():
        paths = [path]
    elif any(character in name for character in "*?["):
        # A glob like data/** also matches the folders on the way; those that are data sets are meant.
        matches = map(Path, glob.glob(str(path), recursive=True))
        paths = sorted(match for match in matches if match.is_file() or is_dataset(match))
        if not paths:
            return [], [f"no file matches {name}"]
    else:
        return [], [f"{name} does not exist"]
    found, faults = [], []
    for path in paths:
        kind, fault = kind_of(path, wanted)
        if kind is None:
            faults.append(fault)
        else:
            found.append(Found(path, kind))
    return found, faults


def kind_of(path: Path, wanted: Literal["auto", "text", "jsonl", "dataset"]) -> tuple[Kind | None, str]:
    """The kind of an existing path; or None, and why it cannot be read."""
    if path.is_dir():
        if not is_dataset(path):
            return (
                None,
                f"{path} is a folder that HF datasets did not write; for its files name a glob: {path}/**/*.txt",
            )
        if wanted not in ("auto", "dataset"):
            return None, f"{path} is a folder of HF datasets, and format is {wanted!r}"
        return "dataset", ""
    if wanted == "dataset":
        return None, f"{path} is a file; format 'dataset' reads folders that HF datasets wrote by save_to_disk"
    if wanted != "auto":
        return wanted, ""
    if path.suffix == ".jsonl":
        return "jsonl", ""
    if path.suffix.lower() in TEXT_SUFFIXES:
        return "text", ""
    known = listing(sorted(TEXT_SUFFIXES | {".jsonl"}))
    return (
        None,
        f"{path} is of unknown type {path.suffix!r}. Known: {known}. To read it anyhow, set format: text or jsonl.",
    )


def is_dataset(path: Path) -> bool:
    """Whether HF ``datasets`` wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def stdlib_files() -> list[Path]:
    """The source files of the running Python's standard library, without its tests."""
    files: list[Path] = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        # In place, which keeps the walk out of them: there may be many more files among the installed packages.
        subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]
        files += (Path(folder, name) for name in names if name.endswith(".py"))
    return sorted(files)
