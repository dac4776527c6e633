"""What a config says of one op."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

AUTO = "auto"
"""The one name that lets kernelkit choose; it reports what it chose and why."""


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """An implementation and its options, immutable and equal by value.

    Attributes:
        impl: name of the implementation, or ``auto``.
        options_json: the options that were set, as canonical JSON, so that nothing inside can be changed.
        key: the config key that the user wrote, which errors point at; a legacy name differs from the op's.
    """

    impl: str
    options_json: str = "{}"
    key: str = field(default="", compare=False)

    @classmethod
    def of(cls, impl: str, options: dict[str, Any], key: str = "") -> KernelChoice:
        """A choice with ``options``, which must be JSON values."""
        return cls(impl, json.dumps(options, sort_keys=True), key)

    @property
    def options(self) -> dict[str, Any]:
        """The options that were set, as a fresh dict."""
        return json.loads(self.options_json)

    def plain(self) -> str | dict[str, Any]:
        """As a config spells it: a name, or a mapping with ``impl`` and the options."""
        return {"impl": self.impl, **self.options} if self.options else self.impl
