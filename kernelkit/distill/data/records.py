"""From a record of a jsonl file or a data set to a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kernelkit.distill.data.documents import Conversation, Document, Passage
from kernelkit.errors import did_you_mean, listing, shown


@dataclass(frozen=True)
class RecordReader:
    """Takes the document out of a record.

    Attributes:
        field: where it is.
        chat: whether it is a conversation, or else a text.
    """

    field: str
    chat: bool

    def fault(self, record: Any) -> str | None:
        """What is wrong with a record, in half a sentence."""
        if not isinstance(record, Mapping):
            return f"holds {shown(record)}, not an object with fields"
        if self.field not in record:
            return self.missing(list(record))
        value = record[self.field]
        if not self.chat and not isinstance(value, str):
            return f"field {self.field!r} is not text: {shown(value)}"
        fault = conversation_fault(value) if self.chat else None
        if fault is None and not all(map(_encodable, _strings(value))):
            fault = "has a lone surrogate, which is no character"
        return fault and f"field {self.field!r} {fault}"

    def missing(self, fields: list[str]) -> str:
        """That there is no such field among ``fields``."""
        return f"has no field {self.field!r}.{did_you_mean(self.field, fields)} Its fields: {listing(fields)}."

    def is_empty(self, record: Mapping[str, Any]) -> bool:
        """Whether a record without fault has nothing to say."""
        return not record[self.field]

    def document(self, record: Mapping[str, Any], place: str) -> Document:
        """The document of a record without fault."""
        value = record[self.field]
        return Conversation(value, place) if self.chat else Passage(value, begins=True, ends=True, place=place)


def conversation_fault(messages: Any) -> str | None:
    """What keeps ``messages`` from being a conversation to learn from, in half a sentence."""
    if not isinstance(messages, list) or not messages:
        return f"is not a list of messages: {shown(messages)}"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return f"has no 'role' in message {number}: {shown(message)}"
    if not any(message["role"] == "assistant" for message in messages):
        return "has no message of the assistant, so that there is nothing to learn"
    return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _encodable(text: str) -> bool:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True
