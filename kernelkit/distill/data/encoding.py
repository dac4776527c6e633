"""From documents to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from kernelkit.distill.data.byte_tokenizer import byte_ids
from kernelkit.distill.data.documents import Document, Passage

Ids = NDArray[Any]
"""[tokens], uint16 where the vocabulary allows it, else int32."""

CHARACTERS_AT_ONCE = 2**20
"""Tokenizers keep about a hundred bytes for each token that they return."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One document, or a part of it.

    Attributes:
        ids: [tokens].
        learnt: [tokens] bool, which of them are to be predicted; None for all.
    """

    ids: Ids
    learnt: NDArray[np.bool_] | None = None


class Encoder(Protocol):
    """Turns documents into tokens."""

    def __call__(self, documents: Sequence[Document]) -> list[Tokens]:
        """The tokens of each document, which is of the kind that this encoder is for."""


class PassageEncoder:
    """Turns passages into tokens.

    Around a whole document stands what the tokenizer puts around a text; ``eos`` ends it in any case, where there is
    one.

    Args:
        tokenizer: whose special tokens are used.
        to_ids: the ids of texts without special tokens, where there is a quicker way than the tokenizer's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, to_ids: Callable[[list[str]], list[Ids]] | None = None
    ) -> None:
        self.dtype = ids_dtype(tokenizer)
        prefix, suffix = special_ids(tokenizer)
        self._prefix, self._suffix = np.array(prefix, self.dtype), np.array(suffix, self.dtype)
        self._to_ids = to_ids or (lambda texts: tokenizer_ids(tokenizer, texts, self.dtype))

    def __call__(self, documents: Sequence[Document]) -> list[Tokens]:
        """The tokens of each passage."""
        passages = [document for document in documents if isinstance(document, Passage)]
        ids = self._to_ids([passage.text for passage in passages])
        return [Tokens(self._complete(passage, body)) for passage, body in zip(passages, ids, strict=True)]

    def _complete(self, passage: Passage, body: Ids) -> Ids:
        parts = [self._prefix] * passage.begins + [body] + [self._suffix] * passage.ends
        return np.concatenate(parts)


def byte_encoder(tokenizer: PreTrainedTokenizerBase) -> PassageEncoder:
    """The encoder of the built-in byte tokenizer."""
    return PassageEncoder(tokenizer, byte_ids)


def tokenizer_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], dtype: type[np.generic]) -> list[Ids]:
    """The ids that ``tokenizer`` gives to each text, without special tokens."""
    ids: list[Ids] = []
    for some in _portions(texts):
        encoded = tokenizer(
            some, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        ids += (np.array(each, dtype) for each in encoded["input_ids"])
    return ids


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What stands before and after the tokens of a document.

    Raises:
        ValueError: for a tokenizer that changes a text's own tokens when it adds special ones.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    at = next((start for start in range(len(full)) if full[start : start + len(bare)] == bare), None)
    if at is None:
        raise ValueError("the tokenizer gives a text other tokens when it adds special ones")
    prefix, suffix = full[:at], full[at + len(bare) :]
    eos = tokenizer.eos_token_id
    return prefix, suffix if eos is None or eos in suffix else [*suffix, eos]


def ids_dtype(tokenizer: PreTrainedTokenizerBase) -> type[np.generic]:
    """The smallest integers that hold every id."""
    return np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.int32


def _portions(texts: list[str]) -> Iterator[list[str]]:
    portion: list[str] = []
    characters = 0
    for text in texts:
        if portion and characters + len(text) > CHARACTERS_AT_ONCE:
            yield portion
            portion, characters = [], 0
        portion.append(text)
        characters += len(text)
    if portion:
        yield portion
