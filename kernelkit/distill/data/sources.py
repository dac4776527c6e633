"""From the ``train`` and ``validation`` of a config to collections of documents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from kernelkit.distill.data.config import DataConfig
from kernelkit.distill.data.dataset_folder import open_dataset
from kernelkit.distill.data.documents import DataError, Documents, Joined, hold_out
from kernelkit.distill.data.json_lines import scan_json_lines
from kernelkit.distill.data.paths import Found, find
from kernelkit.distill.data.records import RecordReader
from kernelkit.distill.data.text_files import scan_text_files
from kernelkit.errors import Loc, Problem

LEAST_PASSAGE = 2**16
PASSAGE_ROWS = 16


class Corpora(NamedTuple):
    """The documents to train on, those to validate on, if any, and what is wrong with either."""

    train: Documents
    validation: Documents | None
    problems: list[Problem]


def open_corpora(config: DataConfig) -> Corpora:
    """Open all data that ``config`` names. Each file is read once, to report all that is wrong with it."""
    train_files, problems = _find_all("train", config.train, config)
    train = _open(train_files, config, "train", problems)
    if config.holds_out:
        if problems:
            return Corpora(train, None, problems)
        try:
            return Corpora(*hold_out(train, config.validation_fraction), problems)
        except DataError as error:
            return Corpora(train, None, [Problem(("validation",), "nothing_to_hold_out", str(error))])
    if config.validation is None:
        return Corpora(train, None, problems)
    files, faults = _find_all("validation", config.validation, config)
    problems += [*faults, *_shared(train_files, files)]
    return Corpora(train, _open(files, config, "validation", problems), problems)


def _find_all(section: str, names: tuple[str, ...], config: DataConfig) -> tuple[dict[Path, Found], list[Problem]]:
    """The files by their real paths, and what is wrong with the names."""
    files: dict[Path, Found] = {}
    problems: list[Problem] = []
    for index, name in enumerate(names):
        loc: Loc = (section, index) if len(names) > 1 else (section,)
        found, faults = find(name, config.format)
        problems += (Problem(loc, "unreadable_source", fault, name) for fault in faults)
        for file in found:
            if files.setdefault(file.path.resolve(), file) is not file:
                problems.append(Problem(loc, "named_twice", f"{file.path} is named twice", name))
    return files, problems


def _open(files: dict[Path, Found], config: DataConfig, section: str, problems: list[Problem]) -> Documents:
    """The documents of ``files``; what is wrong with them is added to ``problems``."""
    parts: list[Documents] = []
    faults: list[str] = []
    for kind, group in groupby(files.values(), key=lambda file: file.kind):
        for part, wrong in _open_kind(kind, [file.path for file in group], config):
            faults += wrong
            if part is not None:
                parts.append(part)
    documents = Joined(parts)
    if files and not faults and not len(documents):
        faults.append("holds no text: every file is empty")
    problems += (Problem((section,), "unusable_data", fault) for fault in faults)
    return documents


def _open_kind(kind: str, paths: list[Path], config: DataConfig) -> Iterator[tuple[Documents | None, list[str]]]:
    reader = RecordReader(config.messages_field if config.chat else config.text_field, config.chat)
    if kind == "text" and config.chat:
        yield None, [f"{path} is text, and chat reads conversations from .jsonl files and data sets" for path in paths]
    elif kind == "text":
        # Parts much longer than a row lose little at their ends, and are short enough to be shuffled and tokenised.
        yield scan_text_files(paths, max(LEAST_PASSAGE, PASSAGE_ROWS * config.seq_len))
    else:
        for path in paths:
            yield scan_json_lines(path, reader) if kind == "jsonl" else open_dataset(path, reader)


def _shared(train: dict[Path, Found], validation: dict[Path, Found]) -> list[Problem]:
    shared = [str(file.path) for path, file in validation.items() if path in train]
    if not shared:
        return []
    more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
    message = f"{shared[0]}{more} is training data too; name other data, or held-out for a part of the training data"
    return [Problem(("validation",), "shared_data", message)]
