"""YAML with the place of every key, so that an error can name file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kernelkit.errors import Problem, validation_error

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlFile:
    """A mapping read from a file.

    Attributes:
        path: the file.
        data: its content.
        places: (line, column), from 1, of the key or item at each loc.
    """

    path: Path
    data: dict[str, Any]
    places: dict[Loc, tuple[int, int]]

    @classmethod
    def read(cls, path: str | Path, title: str) -> YamlFile:
        """Read ``path``, whose top level must be a mapping without duplicated keys.

        Raises:
            ValidationError: headed by ``title``, for anything that is wrong with the file itself.
        """
        path = Path(path)
        try:
            node, data = _parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise _refusal(title, path, f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise _refusal(title, path, f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = (mark.line + 1, mark.column + 1) if mark else None
            reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
            raise _refusal(title, path, f"is not YAML: {reason}", place) from None
        except (ValueError, RecursionError) as error:
            raise _refusal(title, path, f"is not YAML: {error}") from None
        if node is None:
            raise _refusal(title, path, "is empty; a mapping of op names to implementations is wanted")
        if not isinstance(data, dict):
            raise _refusal(title, path, f"is a {type(data).__name__}, not a mapping", _place(node))
        places: dict[Loc, tuple[int, int]] = {}
        duplicates = [_duplicate(path, loc, first, again) for loc, first, again in _walk(node, (), places, set())]
        if duplicates:
            raise validation_error(title, duplicates)
        return cls(path, data, places)

    def locate(self, error: ValidationError) -> ValidationError:
        """``error`` again, each line of it led by ``file:line:column`` of the key that it is about."""
        problems = []
        for line in error.errors(include_url=False):
            loc = line["loc"]
            # An error may point deeper than the file goes: a missing key belongs to the mapping that lacks it.
            known = next((loc[:depth] for depth in range(len(loc), 0, -1) if loc[:depth] in self.places), None)
            problems.append(_at(self.path, self.places.get(known or ()), Problem(loc, line["type"], line["msg"], line["input"])))
        return validation_error(error.title, problems)


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]  # not in the stubs


def _walk(
    node: yaml.Node, loc: Loc, places: dict[Loc, tuple[int, int]], seen: set[int]
) -> Iterator[tuple[Loc, tuple[int, int], tuple[int, int]]]:
    """Note the place of everything below ``node``; yield each duplicated key with its first and second place."""
    if id(node) in seen:  # an alias: its content is at the anchor, and may hold the alias itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*loc, key.value if isinstance(key, yaml.ScalarNode) else str(key.value))
            if below in places and key.tag != "tag:yaml.org,2002:merge":
                yield below, places[below], _place(key)
            places[below] = _place(key)
            yield from _walk(value, below, places, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*loc, index)] = _place(item)
            yield from _walk(item, (*loc, index), places, seen)


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _duplicate(path: Path, loc: Loc, first: tuple[int, int], again: tuple[int, int]) -> Problem:
    message = f"the key {loc[-1]!r} is given twice, first in line {first[0]}; keep one"
    return _at(path, again, Problem(loc, "duplicate_key", message))


def _at(path: Path, place: tuple[int, int] | None, problem: Problem) -> Problem:
    line, column = place or (1, 1)
    context = {"file": str(path), "line": line, "column": column}
    return Problem(problem.loc, problem.type, f"{path}:{line}:{column}: {problem.message}", problem.input, context)


def _refusal(title: str, path: Path, reason: str, place: tuple[int, int] | None = None) -> ValidationError:
    return validation_error(title, [_at(path, place, Problem((), "yaml_file", f"the file {reason}", str(path)))])
