"""What a config says of one op."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AUTO = "auto"
"""The one name that lets kernelkit choose; it reports what it chose and why."""


@dataclass(frozen=True, slots=True, eq=False)
class KernelChoice:
    """An implementation and its options, immutable and equal by value.

    Attributes:
        impl: name of the implementation, or ``auto``.
        options_json: the options that were set, as JSON in the user's order, so that nothing inside can be changed.
        key: the config key that the user wrote, which errors point at; a legacy name differs from the op's.
    """

    impl: str
    options_json: str = "{}"
    key: str = ""

    @classmethod
    def of(cls, impl: str, options: Mapping[str, Any], key: str = "") -> KernelChoice:
        """A choice with ``options``, which must be JSON values."""
        return cls(impl, json.dumps(options), key)

    @property
    def options(self) -> dict[str, Any]:
        """The options that were set, as a fresh dict."""
        options: dict[str, Any] = json.loads(self.options_json)
        return options

    @property
    def canonical_options(self) -> str:
        """The options as JSON, the same for equal options."""
        return json.dumps(self.options, sort_keys=True)

    def plain(self) -> str | dict[str, Any]:
        """As a config spells it: a name, or a mapping with ``impl`` and the options."""
        return {"impl": self.impl, **self.options} if self.options else self.impl

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelChoice) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def _value(self) -> tuple[str, str]:
        return self.impl, self.canonical_options
