"""The ``data:`` section of a distillation config."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from kernelkit.errors import Problem, validation_error

HELD_OUT = "held-out"
"""In place of validation data: a part of the training data that is kept from training."""

PYTHON_STDLIB = "python-stdlib"
"""In place of a path: the source files of the running Python's standard library, without its tests."""

BYTES = "bytes"
"""In place of a tokenizer's path: the built-in byte tokenizer."""


def _listed(value: Any) -> Any:
    """One path as a list of one; paths as strings."""
    if isinstance(value, (str, os.PathLike)):
        value = [value]
    if isinstance(value, (list, tuple)):
        return tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in value)
    return value


Sources = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
"""A path, a glob (``**`` goes into folders), ``python-stdlib``, or a list of these."""

Count = Annotated[int, Field(strict=True, ge=1)]


class DataConfig(BaseModel):
    """What is read, how it becomes rows of tokens, and how many rows a step takes.

    A text file is one document; so is a line of a ``.jsonl`` file, and a row of a folder that HF ``datasets`` wrote by
    ``save_to_disk``. Empty documents are passed over. Paths are relative to the current folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    train: Sources
    """Training data: a path, a glob, ``python-stdlib``, or a list of these."""

    validation: Sources | None = None
    """Validation data, likewise; or ``held-out`` for a part of the training data; or none."""

    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The share of the training documents that ``validation: held-out`` keeps from training. Which ones depends on
    nothing but their number. Where that would be less than one document, parts of long text files are held out."""

    format: Literal["auto", "text", "jsonl", "dataset"] = "auto"
    """What the files are. ``auto`` goes by their names: ``.jsonl``, a folder of HF ``datasets``, or the usual endings
    of text and source code."""

    text_field: Annotated[str, Field(min_length=1)] = "text"
    """The field of a record that holds its text."""

    chat: StrictBool = False
    """Records are conversations, and only what the assistant says is learnt. Its tokens are those between
    ``{% generation %}`` and ``{% endgeneration %}`` of the chat template; where it has no such markers, those that a
    rendering gains by the assistant's turn."""

    messages_field: Annotated[str, Field(min_length=1)] = "messages"
    """The field of a record that holds its conversation, a list of ``{"role": ..., "content": ...}``."""

    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """A Jinja file in place of the tokenizer's own chat template. It is saved with the student."""

    tokenizer: Annotated[str, Field(min_length=1)] = BYTES
    """``bytes``, or the folder of a tokenizer that transformers saved."""

    seq_len: Annotated[int, Field(strict=True, ge=2)]
    """Tokens in a row. A longer document is split into pieces that overlap by one token, so that every token but the
    document's first is predicted once; in a chat, pieces in which nothing is to be predicted are left out."""

    batch_size: Count
    """Rows in one step of the optimizer, over all ranks. Rows without tokens fill up the last batch of an epoch."""

    micro_batch_size: Count | None = None
    """Rows in one forward pass. None: all rows of a rank at once."""

    packing: StrictBool = True
    """Put several documents into a row. ``position_ids`` start again at each, and they do not see each other. Without
    packing, each row is one document (or a piece of it), padded on the right, with an ``attention_mask``."""

    shuffle: StrictBool = True
    """Read the training documents in an order drawn from the seed, a new one for each epoch."""

    @model_validator(mode="after")
    def _special_words(self) -> Self:
        problems = []
        if HELD_OUT in self.train:
            problems.append(Problem(("train",), "held_out", f"{HELD_OUT!r} is for validation data only", self.train))
        if self.validation and HELD_OUT in self.validation and len(self.validation) > 1:
            message = f"{HELD_OUT!r} stands alone; it cannot be mixed with other validation data"
            problems.append(Problem(("validation",), "held_out", message, self.validation))
        if self.chat and PYTHON_STDLIB in (*self.train, *(self.validation or ())):
            problems.append(Problem(("chat",), "no_conversations", f"{PYTHON_STDLIB!r} holds no conversations", True))
        if problems:
            raise validation_error(type(self).__name__, problems)
        return self

    @property
    def holds_out(self) -> bool:
        """Whether the validation data are a part of the training data."""
        return self.validation == (HELD_OUT,)

    def rows_per_rank(self, world_size: int) -> int:
        """Rows of a step that each rank computes."""
        return self.batch_size // world_size

    def rows_per_forward(self, world_size: int) -> int:
        """Rows of a micro-batch."""
        return self.micro_batch_size or self.rows_per_rank(world_size)

    def problems(self, world_size: int = 1) -> list[Problem]:
        """Why a step's rows cannot be divided evenly over ``world_size`` ranks and their micro-batches, if so."""
        unit = world_size * (self.micro_batch_size or 1)
        if self.batch_size % unit == 0:
            return []
        parts = f"{world_size} rank{'s' * (world_size != 1)}"
        if self.micro_batch_size is not None:
            parts += f" in micro-batches of {self.micro_batch_size}"
        nearest = max(unit, self.batch_size - self.batch_size % unit)
        message = f"{self.batch_size} rows cannot be divided over {parts}; a multiple of {unit} can, such as {nearest}"
        return [Problem(("batch_size",), "indivisible_batch", message, self.batch_size)]
