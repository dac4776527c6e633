"""The tokenizer that a config names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kernelkit.distill.data.byte_tokenizer import byte_tokenizer
from kernelkit.distill.data.config import BYTES, DataConfig
from kernelkit.errors import Problem


def open_tokenizer(config: DataConfig) -> tuple[PreTrainedTokenizerBase | None, list[Problem]]:
    """The tokenizer with the chat template of ``config``; or None, and why there is none. Nothing is downloaded."""
    problems = []
    tokenizer: PreTrainedTokenizerBase | None = None
    if config.tokenizer == BYTES:
        tokenizer = byte_tokenizer()
    elif not (path := Path(config.tokenizer).expanduser()).is_dir():
        message = f"{config.tokenizer} is no folder. It is {BYTES!r} or a folder that a tokenizer was saved in."
        problems.append(Problem(("tokenizer",), "missing_tokenizer", message, config.tokenizer))
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # transformers and tokenizers raise all kinds, bare Exception among them
            reason, _, _ = str(error).partition("\n")
            message = f"{config.tokenizer} holds no tokenizer that transformers can load: {reason}"
            problems.append(Problem(("tokenizer",), "unreadable_tokenizer", message, config.tokenizer))
    template, more = _template(config)
    problems += more
    if tokenizer is not None:
        if template is not None:
            tokenizer.chat_template = template
        problems += _chat_problems(config, tokenizer)
    return tokenizer, problems


def _template(config: DataConfig) -> tuple[str | None, list[Problem]]:
    if config.chat_template is None:
        return None, []
    try:
        return Path(config.chat_template).expanduser().read_text(encoding="utf-8"), []
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"{config.chat_template} cannot be read: {reason}"
        return None, [Problem(("chat_template",), "unreadable_template", message, config.chat_template)]


def _chat_problems(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    if not config.chat:
        return []
    problems = []
    if not tokenizer.is_fast:
        message = f"{config.tokenizer} does not say where in a text its tokens are, as the fast tokenizers do"
        problems.append(Problem(("chat",), "slow_tokenizer", message, True))
    if not isinstance(tokenizer.chat_template, str) and config.chat_template is None:
        message = f"{config.tokenizer} has no single chat template; name a Jinja file with chat_template"
        problems.append(Problem(("chat",), "no_chat_template", message, True))
    return problems


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything by which a tokenizer turns text into ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(content, dict):
        # What the last call asked for, which the next one changes.
        content = {name: part for name, part in content.items() if name not in ("padding", "truncation")}
    described = json.dumps(
        [content, sorted(tokenizer.special_tokens_map.items()), tokenizer.chat_template], default=str
    )
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills up rows. No position attends to it or predicts it, so that any will do where there is none."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(each) for each in ids if each is not None)
