"""Opens the data of a run: everything is checked at once, then each rank has its loaders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from kernelkit.distill.data.chat import ChatEncoder
from kernelkit.distill.data.config import BYTES, DataConfig
from kernelkit.distill.data.documents import DataError, Documents
from kernelkit.distill.data.encoding import Encoder, PassageEncoder, byte_encoder
from kernelkit.distill.data.loader import Loader
from kernelkit.distill.data.rows import Rows
from kernelkit.distill.data.sources import open_corpora
from kernelkit.distill.data.tokenizer import open_tokenizer, pad_id, tokenizer_digest
from kernelkit.errors import Problem, validation_error

TRIED = 16


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        tokenizer: to be saved with the student.
        train: training data, epoch after epoch.
        validation: validation data, in order; ``validation.epoch()`` is one pass over them. None where there are none.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Loader
    validation: Loader | None


def open_data(config: DataConfig, *, seed: int, rank: int = 0, world_size: int = 1) -> Data:
    """Open the data of ``config`` for one of ``world_size`` ranks.

    Files are read once, to see that all of them can be; they are tokenised later, as training goes on.

    Args:
        config: what is read.
        seed: of the order of the training data.
        rank, world_size: which share of each batch is dealt out.

    Raises:
        ValidationError: for everything that is wrong with the data, with locs as in ``config``.
    """
    tokenizer, tokenizer_problems = open_tokenizer(config)
    train, validation, data_problems = open_corpora(config)
    problems = [*config.problems(world_size), *tokenizer_problems, *data_problems]
    encoder: Encoder | None = None
    if tokenizer is not None and not tokenizer_problems:
        try:
            encoder = make_encoder(config, tokenizer)
        except ValueError as error:
            problems.append(Problem(("tokenizer",), "unusable_tokenizer", str(error), config.tokenizer))
    if encoder is not None and not data_problems:
        problems += _try_out(encoder, train, "train")
        problems += _try_out(encoder, validation, "validation") if validation is not None else []
    if problems or tokenizer is None or encoder is None:
        raise validation_error(DataConfig.__name__, problems)
    shared = {"pad_id": pad_id(tokenizer), "rank": rank, "world_size": world_size}
    fingerprint = {
        "tokenizer": tokenizer_digest(tokenizer),
        "seed": seed if config.shuffle else None,
        **order_settings(config),
    }

    def loader(documents: Documents, shuffle_seed: int | None) -> Loader:
        rows = Rows(documents, encoder, seq_len=config.seq_len, packing=config.packing, shuffle_seed=shuffle_seed)
        return Loader(rows, config, fingerprint={"documents": documents.digest, **fingerprint}, **shared)

    return Data(
        tokenizer=tokenizer,
        train=loader(train, seed if config.shuffle else None),
        validation=None if validation is None else loader(validation, None),
    )


def make_encoder(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """What turns the documents of ``config`` into tokens."""
    if config.chat:
        return ChatEncoder(tokenizer)
    return byte_encoder(tokenizer) if config.tokenizer == BYTES else PassageEncoder(tokenizer)


def order_settings(config: DataConfig) -> dict[str, Any]:
    """The settings on which it depends which rows are in which step, besides documents, tokenizer and seed."""
    return config.model_dump(include={"seq_len", "batch_size", "packing", "shuffle", "chat"})


def _try_out(encoder: Encoder, documents: Documents, section: str) -> list[Problem]:
    """What is wrong with the first few documents: a chat template that does not fit them is found before training."""
    try:
        encoder([documents[item] for item in range(min(TRIED, len(documents)))])
    except DataError as error:
        return [Problem((section,), "unusable_data", str(error))]
    return []
