"""Globs on the dotted paths of a model's modules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NUMBERS = r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*"
_PART = rf"(?:[\w*]+|\[{_NUMBERS}\]|\{{{_NUMBERS}\}})"
SYNTAX = rf"^{_PART}(?:\.{_PART})*$"
"""Regular expression of a valid pattern, for the JSON schema as well."""


@dataclass(frozen=True, slots=True)
class PathPattern:
    """Which modules a rule is about: those whose path fits, and everything inside of them.

    Between dots stand a name, in which ``*`` is any run of characters; numbers in brackets, ``[0-3,7]``, both ends
    included, or in the braces that the kernel report writes; or ``**``, any number of names, none included. A leading
    ``model.`` may be left out, of a pattern as of a path.

    Raises:
        ValueError: for anything else.
    """

    text: str
    _parts: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.match(SYNTAX, self.text):
            examples = "layers.[0-3].mlp, layers.*.self_attn or **.q_norm"
            raise ValueError(f"{self.text!r} is no pattern of module paths, such as {examples}")
        object.__setattr__(self, "_parts", _without_root(self.text.split(".")))

    def covers(self, path: str) -> bool:
        """Whether the module at ``path`` fits, or is inside of one that does."""
        names = tuple(path.split(".")) if path else ()
        return _fits(self._parts, names) or _fits(self._parts, _without_root(names))


def _without_root(names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(names[1:] if len(names) > 1 and names[0] == "model" else names)


def _fits(parts: tuple[str, ...], names: tuple[str, ...]) -> bool:
    if not parts:
        return True
    if parts[0] == "**":
        return any(_fits(parts[1:], names[skipped:]) for skipped in range(len(names) + 1))
    return bool(names) and _is_named(parts[0], names[0]) and _fits(parts[1:], names[1:])


def _is_named(part: str, name: str) -> bool:
    if part[0] not in "[{":
        return re.fullmatch(part.replace("*", ".*"), name) is not None
    spans = (tuple(map(int, span.split("-"))) for span in part[1:-1].split(","))
    return name.isdecimal() and any(span[0] <= int(name) <= span[-1] for span in spans)
