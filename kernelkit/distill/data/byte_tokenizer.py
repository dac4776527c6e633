"""A tokenizer without training: a token for each of the 256 bytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES))
"""The tokens after the bytes, from id 256 upwards."""

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception("the byte tokenizer knows the roles system, user and assistant, not " + message['role']) }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""
"""``<|user|>...<|eos|><|assistant|>...<|eos|>``: generation stops by itself at the end of a turn."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids 0 to 255 are the bytes of a text in UTF-8, followed by :data:`SPECIAL_TOKENS`.

    Decoding gives back every text exactly. Like any other, it can be saved, and is then loaded by the ``AutoTokenizer``
    of stock transformers. ``encode`` puts ``<|bos|>`` first.
    """
    vocabulary = {character: byte for byte, character in enumerate(_visible_bytes())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # Without the regex a text is not cut into words, which a model without merges has no use for.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=list(SPECIAL_TOKENS[3:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def byte_ids(texts: Iterable[str]) -> list[NDArray[np.uint16]]:
    """What :func:`byte_tokenizer` makes of each text, without special tokens, about a thousand times as fast.

    A special token that is written out in a text stays the bytes that it is written in.
    """
    return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]


def _visible_bytes() -> list[str]:
    """The character by which ``ByteLevel`` writes each byte: its own in Latin-1 if that is visible, else one above."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    above = iter(range(256, 512))
    return [chr(byte if byte in visible else next(above)) for byte in range(256)]
