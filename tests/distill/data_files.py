"""Small files, tokenizers and configs, and readers of what comes out of them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kernelkit.distill.data.batch import Batch, BatchId, Step
from kernelkit.distill.data.config import DataConfig
from kernelkit.distill.data.loader import Loader
from kernelkit.distill.data.packing import Piece, Row
from kernelkit.distill.data.pipeline import Data, open_data

WORDS = "the quick brown fox jumps over a lazy dog and says hello to you what is your name my name is fox"


TEXTS = [f"{number:02}" + "x" * (number * 7 % 23) for number in range(60)]
"""More than a few rows of 16 tokens can hold."""


def config(train: Any, **changes: Any) -> DataConfig:
    return DataConfig(**{"train": train, "seq_len": 16, "batch_size": 4, **changes})


def opened(train: Any, *, seed: int = 0, rank: int = 0, world_size: int = 1, **changes: Any) -> Data:
    return open_data(config(train, **changes), seed=seed, rank=rank, world_size=world_size)


def loader(train: Any, **changes: Any) -> Loader:
    return opened(train, **changes).train


def first_steps(loader: Loader, count: int) -> list[tuple[BatchId, list[list[int]]]]:
    """The ids and rows of the next so many steps."""
    return [(step.id, rows_of(step)) for step in islice(loader, count)]


def problems_of(train: Any, *, world_size: int = 1, **changes: Any) -> dict[tuple[int | str, ...], list[str]]:
    """The messages of opening such data, by loc."""
    try:
        open_data(config(train, **changes), seed=0, world_size=world_size)
    except ValidationError as error:
        found: dict[tuple[int | str, ...], list[str]] = {}
        for line in error.errors():
            found.setdefault(line["loc"], []).append(line["msg"])
        return found
    return {}


def text_file(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def jsonl(path: Path, *records: Any) -> str:
    """Each record in a line; a string is written as it is."""
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in records))
    return str(path)


def texts(path: Path, *texts: str) -> str:
    return jsonl(path, *({"text": text} for text in texts))


def said(*turns: str) -> dict[str, Any]:
    """A conversation: ``"u:hello"`` is what the user says, ``"a:hi"`` the assistant, ``"s:..."`` the system."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]}


def bpe_tokenizer(chat_template: str | None = None, *, trim_offsets: bool | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges, with the special tokens of ChatML."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if trim_offsets is not None:
        backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([WORDS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|end|>", chat_template=chat_template
    )


def word_tokenizer(chat_template: str) -> PreTrainedTokenizerFast:
    """Whole words, without the white space between them."""
    vocabulary = {
        word: number
        for number, word in enumerate(["[UNK]", "[END]", *dict.fromkeys(WORDS.split()), "user", "assistant", ":"])
    }
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]", chat_template=chat_template
    )


def documents_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """The ids and labels of each stretch over which positions count up from 0, padding of packed rows among them."""
    found = []
    for row in range(len(batch.input_ids)):
        positions = batch.position_ids[row].tolist()
        starts = [at for at, position in enumerate(positions) if position == 0]
        for start, stop in zip(starts, [*starts[1:], len(positions)], strict=True):
            found.append((batch.input_ids[row, start:stop].tolist(), batch.labels[row, start:stop].tolist()))
    return found


def rows_of(step: Step) -> list[list[int]]:
    """The ids of all of a step's rows on this rank."""
    return [row for batch in step.micro_batches for row in batch.input_ids.tolist()]


def lengths(rows: list[Row]) -> list[list[int]]:
    return [[piece.length for piece in row] for row in rows]


def pieces_of(rows: list[Row]) -> list[Piece]:
    return [piece for row in rows for piece in row]
