"""A run's YAML file with the overrides of the command line, and where in them a mistake is."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kernelkit.containers.ops_config import OpsConfig
from kernelkit.containers.yaml_file import YamlFile, error_in_file
from kernelkit.errors import Loc, Problem, problems_in, unknown

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
            problems += (self.located(_named(problem, model)) for problem in problems_in(error))
        if problems:
            raise error_in_file(model.__name__, problems)
        return config

    def located(self, problem: Problem) -> Problem:
        """``problem``, led by the place of what it is about: an override, or a line of the file."""
        texts = [self.overrides.get(problem.loc[:depth]) for depth in range(len(problem.loc), 0, -1)]
        if problem.loc not in self.file.places:
            # A section or name that the file does not have came with what an override puts inside of it.
            texts += [text for loc, text in self.overrides.items() if loc[: len(problem.loc)] == problem.loc]
        for text in filter(None, texts):
            return replace(problem, message=f"{text}: {problem.message}", context={**problem.context, "line": 0})
        return self.file.located(problem)

    def error(self, title: str, problems: Iterable[Problem]) -> ValidationError:
        """``problems``, located, as one error."""
        return error_in_file(title, map(self.located, problems))


def _named(problem: Problem, model: type[BaseModel]) -> Problem:
    """``problem``; of a key that a section does not know or lacks with its name, and with those that there are."""
    if problem.type not in ("extra_forbidden", "missing") or not isinstance(key := problem.loc[-1], str):
        return problem
    section = _section_at(model, problem.loc[:-1])
    if section is None or issubclass(section, OpsConfig):
        return problem
    missing = problem.type == "missing"
    return replace(problem, message=f"{key} is missing" if missing else unknown("key", key, section.model_fields))


def _section_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """The model of the section at ``loc``."""
    found: type[BaseModel] | None = model
    for key in loc:
        field = None if found is None else found.model_fields.get(str(key))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return found


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
