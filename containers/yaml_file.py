"""YAML with the place of every key, so that an error can name file, line and column."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kernelkit.errors import Loc, Problem, problems_in, shown, validation_error

Place = tuple[int, int]
"""Line and column, from 1."""

MOST_NODES = 10_000
"""A file with more than this, aliases followed, is refused: nested aliases grow a few lines to any size."""

_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class YamlFile:
    """A mapping read from a file.

    Attributes:
        path: the file.
        data: its content.
        places: the place of the key or item at each loc.
        duplicates: a problem, already located, for each key that a mapping gives twice.
    """

    path: Path
    data: dict[str, Any]
    places: dict[Loc, Place]
    duplicates: tuple[Problem, ...]

    @classmethod
    def read(cls, path: str | Path, title: str, wanted: str = "a mapping of op names to implementations") -> YamlFile:
        """Read ``path``, whose top level must be a mapping; ``wanted`` says in errors of what.

        Raises:
            ValidationError: headed by ``title``, where there is nothing to read or it is no mapping.
        """
        path = Path(path)
        places = _Places()
        try:
            # With utf-8-sig a byte order mark, as Windows editors write it, is no part of the first key.
            data = _parse(path.read_text(encoding="utf-8-sig"), places)
        except OSError as error:
            raise _refusal(title, path, f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise _refusal(title, path, f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
        except yaml.MarkedYAMLError as error:
            reason = ", ".join(part for part in (error.context, error.problem) if part)
            mark = error.problem_mark or error.context_mark
            raise _refusal(title, path, f"is not YAML: {reason}", _place(mark) if mark else None) from None
        except RecursionError:
            raise _refusal(title, path, "is nested too deeply") from None
        except (yaml.YAMLError, ValueError) as error:  # unprintable characters; a path that no file can have
            reason, _, _ = str(error).partition("\n")
            raise _refusal(title, path, f"cannot be read as YAML: {reason}") from None
        if data is None:
            raise _refusal(title, path, f"is empty; {wanted} is wanted")
        if not isinstance(data, dict):
            raise _refusal(title, path, f"holds {type(data).__name__}, not {wanted}")
        duplicates = (_at(path, again, problem) for again, problem in places.duplicates)
        return cls(path, data, places.known, tuple(duplicates))

    def below(self, key: str) -> YamlFile:
        """The mapping at ``key`` as if it were a file of its own, with the places that it has in this one."""
        within = {loc[1:]: place for loc, place in self.places.items() if len(loc) > 1 and loc[0] == key}
        return replace(self, data=self.data[key], places=within)

    def place(self, *loc: str | int) -> str:
        """``"file:line:column: "`` of a loc."""
        return _prefix(self.path, self.places.get(loc))

    def located(self, problem: Problem) -> Problem:
        """``problem`` led by ``file:line:column`` of the key that it is about."""
        # A problem may lie deeper than the file goes: a missing key belongs to the mapping that lacks it.
        depths = range(len(problem.loc), 0, -1)
        loc = next((problem.loc[:depth] for depth in depths if problem.loc[:depth] in self.places), ())
        return _at(self.path, self.places.get(loc), problem)

    def locate(self, error: ValidationError) -> ValidationError:
        """``error`` again, every line of it located, from the top of the file to its end."""
        return error_in_file(error.title, map(self.located, problems_in(error)))


def error_in_file(title: str, located: Iterable[Problem]) -> ValidationError:
    """Problems that are located, from the top of the file to its end, as one error."""
    return validation_error(title, sorted(located, key=lambda problem: problem.context["line"]))


@dataclass
class _Places:
    """Where everything is in a YAML document, found by walking its nodes once."""

    known: dict[Loc, Place] = field(default_factory=dict)
    duplicates: list[tuple[Place, Problem]] = field(default_factory=list)
    visited: int = 0

    def walk(self, node: yaml.Node, loc: Loc = (), above: tuple[yaml.Node, ...] = ()) -> None:
        self.visited += 1
        if node in above:
            raise yaml.MarkedYAMLError(problem="an alias stands for what contains it", problem_mark=node.start_mark)
        if self.visited > MOST_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_NODES} values", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            self._walk_mapping(node, loc, (*above, node))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.known.setdefault((*loc, index), _place(item.start_mark))
                self.walk(item, (*loc, index), (*above, node))

    def _walk_mapping(self, node: yaml.MappingNode, loc: Loc, above: tuple[yaml.Node, ...]) -> None:
        first: dict[str, Place] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if isinstance(key, yaml.ScalarNode):
                # Names are text: YAML would read the keys `on` and `1` as a bool and a number.
                key.tag = "tag:yaml.org,2002:str"
                below, place = (*loc, key.value), _place(key.start_mark)
                if first.setdefault(key.value, place) != place:
                    message = f"the key {key.value!r} is given twice, first in line {first[key.value][0]}; keep one"
                    self.duplicates.append((place, Problem(below, "duplicate_key", message)))
                self.known.setdefault(below, place)
                self.walk(value, below, above)
        # Last, and never in the place of what is known: a mapping's own keys win over those that it merges in.
        for source in merged:
            self.walk(source, loc, above)


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # PyYAML's constructors raise KeyError, IndexError and more for a bad scalar
            reason = f"{shown(node.value)} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark) from error


def _parse(text: str, places: _Places) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Before construction, which writes merged keys into the nodes.
        places.walk(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _place(mark: yaml.Mark) -> Place:
    return mark.line + 1, mark.column + 1


def _at(path: Path, place: Place | None, problem: Problem) -> Problem:
    line, column = place or (1, 1)
    context = {**problem.context, "file": str(path), "line": line, "column": column}
    return replace(problem, message=_prefix(path, place) + problem.message, context=context)


def _prefix(path: Path, place: Place | None) -> str:
    line, column = place or (1, 1)
    return f"{path}:{line}:{column}: "


def _refusal(title: str, path: Path, reason: str, place: Place | None = None) -> ValidationError:
    return validation_error(title, [_at(path, place, Problem((), "yaml_file", f"the file {reason}", str(path)))])
