"""A run's YAML file with the overrides of the command line, and where in them a mistake is."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from kernelkit.containers.yaml_file import YamlFile, error_in_file
from kernelkit.errors import Loc, Problem, problems_in

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class ConfigFile:
    """What was read, and where each part of it is written.

    Attributes:
        file: the YAML file.
        overrides: the text of each override by the loc that it sets.
        data: the file's content with the overrides in it.
        faults: overrides that cannot be read.
    """

    file: YamlFile
    overrides: dict[Loc, str]
    data: dict[str, Any]
    faults: tuple[Problem, ...]

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> ConfigFile:
        """Read the file and put the overrides in.

        Raises:
            ValidationError: where the file cannot be read.
        """
        file = YamlFile.read(path, "DistillConfig", "a mapping with teacher, student, data, train and output")
        data, known, faults = copy.deepcopy(file.data), {}, []
        for text in overrides:
            try:
                loc, value = _parsed(text)
                _put(data, loc, value)
                known[loc] = text
            except ValueError as error:
                faults.append(Problem((), "bad_override", f"{text}: {error}", text, {"line": 0}))
        return cls(file, known, data, tuple(faults))

    def validate(self, model: type[M]) -> M:
        """The data as ``model``.

        Raises:
            ValidationError: for every mistake, located.
        """
        problems = [*self.file.duplicates, *self.faults]
        try:
            config = model.model_validate(self.data)
        except ValidationError as error:
            problems += map(self.located, problems_in(error))
        if problems:
            raise error_in_file(model.__name__, problems)
        return config

    def located(self, problem: Problem) -> Problem:
        """``problem``, led by the place of what it is about: an override, or a line of the file."""
        for depth in range(len(problem.loc), 0, -1):
            if text := self.overrides.get(problem.loc[:depth]):
                return replace(problem, message=f"{text}: {problem.message}", context={**problem.context, "line": 0})
        return self.file.located(problem)

    def error(self, title: str, problems: Iterable[Problem]) -> ValidationError:
        """``problems``, located, as one error."""
        return error_in_file(title, map(self.located, problems))


def _parsed(text: str) -> tuple[Loc, Any]:
    key, sign, value = text.partition("=")
    parts = tuple(key.strip().split("."))
    if not sign or not all(parts):
        raise ValueError("an override is of the form section.key=value")
    try:
        return parts, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{value!r} is not YAML") from None


def _put(data: dict[Any, Any], loc: Loc, value: Any) -> None:
    for depth, key in enumerate(loc[:-1], 1):
        below = data.get(key)
        if below is None:
            below = data[key] = {}
        if not isinstance(below, dict):
            raise ValueError(f"{'.'.join(map(str, loc[:depth]))} is {below!r}, not a section")
        data = below
    data[loc[-1]] = value
