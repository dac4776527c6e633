"""From conversations to token ids, and which of them the assistant said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from kernelkit.distill.data.documents import Conversation, DataError, Document
from kernelkit.distill.data.encoding import Tokens, ids_dtype

Message = dict[str, Any]
Span = tuple[int, int]
"""First character of the rendered text, and the one after the last."""

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatEncoder:
    """Turns conversations into tokens, of which only the assistant's are learnt.

    The chat template renders the conversation, and the text is tokenised as a whole. A control token that is written
    out in a message is read as that token, as everywhere in transformers.

    Args:
        tokenizer: a fast tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.template = str(tokenizer.chat_template)
        self.dtype = ids_dtype(tokenizer)
        self.marked = _MARKER.search(self.template) is not None

    def __call__(self, documents: Sequence[Document]) -> list[Tokens]:
        """The tokens of each conversation.

        Raises:
            DataError: where the template fails on a conversation, or does not tell which part the assistant said.
        """
        conversations = [document for document in documents if isinstance(document, Conversation)]
        rendered = list(map(self._render, conversations))
        texts, spans = [text for text, _ in rendered], [spans for _, spans in rendered]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(map(self._tokens, conversations, encoded["input_ids"], encoded["offset_mapping"], spans))

    def _tokens(self, conversation: Conversation, ids: list[int], offsets: list[Span], spans: list[Span]) -> Tokens:
        learnt = inside(np.array(offsets, np.int64).reshape(-1, 2), spans)
        if not learnt.any():
            raise DataError(f"{conversation.place}: the chat template gives the assistant no token")
        return Tokens(np.array(ids, self.dtype), learnt)

    def _render(self, conversation: Conversation) -> tuple[str, list[Span]]:
        # As in apply_chat_template, None is what a data set has in the place of a key that is not there.
        messages = [{k: v for k, v in message.items() if v is not None} for message in conversation.messages]
        try:
            return self._render_marked(messages) if self.marked else self._render_by_turns(messages)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{conversation.place}: the chat template fails: {error}") from error

    def _render_marked(self, messages: list[Message]) -> tuple[str, list[Span]]:
        # apply_chat_template gives a mask of tokens, but loses the end of a span that no token covers.
        special: dict[str, Any] = self.tokenizer.special_tokens_map
        rendered: Any = render_jinja_template(
            conversations=[messages], chat_template=self.template, return_assistant_tokens_mask=True, **special
        )
        texts, spans = rendered
        return texts[0], spans[0]

    def _render_by_turns(self, messages: list[Message]) -> tuple[str, list[Span]]:
        text = self._text(messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._text(messages[:turn], add_generation_prompt=True)
                after = self._text(messages[: turn + 1])
                if not (text.startswith(after) and after.startswith(before)):
                    raise ValueError(
                        f"it renders message {turn + 1} differently as later messages follow, so that what the "
                        "assistant said cannot be told; name a chat_template with {% generation %} markers"
                    )
                spans.append((len(before), len(before) + self._length(after[len(before) :])))
        return text, spans

    def _text(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(rendered)

    def _length(self, said: str) -> int:
        """The length of a turn, without the line break that a template writes after the end token."""
        bare = said.rstrip()
        eos = self.tokenizer.eos_token
        return len(bare) if eos and bare.endswith(eos) else len(said)


def inside(offsets: NDArray[np.int64], spans: list[Span]) -> NDArray[np.bool_]:
    """[tokens] bool, which tokens have a character in one of ``spans``.

    Args:
        offsets: [tokens, 2], first character of each token, and the one after its last.
        spans: likewise.
    """
    first, end = offsets[:, 0], offsets[:, 1]
    # Some tokenizers trim the offsets of white space to nothing at its end; it began where the token before ended.
    first = np.where(first == end, np.concatenate(([0], end[:-1])), first) if len(end) else first
    found = np.zeros(len(offsets), np.bool_)
    for start, stop in spans:
        found |= (end > start) & (first < stop)
    return found
