"""Conversations: which tokens are the assistant's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernelkit.distill.data.chat import ChatEncoder, inside
from kernelkit.distill.data.documents import Conversation, DataError
from tests.distill.data_files import bpe_tokenizer, jsonl, opened, problems_of, said, text_file, word_tokenizer

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- MARK %}{{- message['content'] + '<|im_end|>' }}{%- ENDMARK %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
MARKED = CHATML.replace("ENDMARK", "endgeneration").replace("MARK", "generation")
UNMARKED = CHATML.replace("{%- MARK %}", "").replace("{%- ENDMARK %}", "")
# Like Qwen3's: the last answer is rendered with a block that earlier ones do not have.
FORGETFUL = UNMARKED.replace(
    "{%- endfor", "{%- if loop.last and message['role'] == 'assistant' %}{{- '<think></think>' }}{%- endif %}{%- endfor"
)
TWO_TURNS = ("s:be kind", "u:what is your name", "a:my name is fox ", "u: hello\n", "a:\n\thello é 🦊 to you")
ANSWERS = ["my name is fox <|im_end|>", "\n\thello é 🦊 to you<|im_end|>"]


def encoded(tokenizer, *turns, template=None):
    if template is not None:
        tokenizer.chat_template = template
    (tokens,) = ChatEncoder(tokenizer)([Conversation(said(*turns)["messages"], "chats.jsonl:7")])
    return tokens


def answers(tokenizer, tokens):
    """The text of each run of tokens that is learnt."""
    runs, last = [], False
    for token, learnt in zip(tokens.ids.tolist(), tokens.learnt.tolist(), strict=True):
        if learnt:
            runs.append([*runs.pop(), token] if last else [token])
        last = learnt
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [MARKED, UNMARKED], ids=["marked", "by turns"])
@pytest.mark.parametrize("trim_offsets", [None, False, True])
def test_only_what_the_assistant_says_is_learnt_with_the_token_that_ends_it(template, trim_offsets):
    tokenizer = bpe_tokenizer(template, trim_offsets=trim_offsets)
    assert answers(tokenizer, encoded(tokenizer, *TWO_TURNS)) == ANSWERS


def test_the_ids_are_those_of_the_chat_template():
    tokenizer = bpe_tokenizer(MARKED)
    messages = said(*TWO_TURNS)["messages"]
    assert encoded(tokenizer, *TWO_TURNS).ids.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]


def test_words_without_the_space_between_them_are_told_apart_too():
    template = (
        "{% for message in messages %}{{ message['role'] + ' : ' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' \n ' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
    )
    tokenizer = word_tokenizer(template)
    tokens = encoded(tokenizer, "u:hello fox", "a:hello you", "u:what is your name", "a:fox")
    assert answers(tokenizer, tokens) == ["hello you", "fox"]


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_line_and_the_remedy():
    tokenizer = bpe_tokenizer(FORGETFUL)
    assert answers(tokenizer, encoded(tokenizer, *TWO_TURNS[1:3])) == ["my name is fox <|im_end|>\n<think></think>"]
    with pytest.raises(DataError, match=r"chats.jsonl:7: .* message 3 differently .* \{% generation %\} markers"):
        encoded(tokenizer, *TWO_TURNS)


def test_a_template_that_fails_is_reported_with_the_line(tmp_path):
    messages = [{"role": "tool", "content": "3"}, *said("u:hi", "a:yes")["messages"]]
    name = jsonl(tmp_path / "a.jsonl", said("u:hi", "a:yes"), {"messages": messages})
    assert "a.jsonl:2: the chat template fails" in problems_of(name, chat=True)["train",][0]


def test_a_template_that_gives_the_assistant_nothing_is_refused():
    silent = "{{ messages[0]['content'] }}{% generation %}{% endgeneration %}"
    with pytest.raises(DataError, match="gives the assistant no token"):
        encoded(bpe_tokenizer(silent), "u:hello", "a:you")


def test_values_that_are_none_count_as_missing():
    tokenizer = bpe_tokenizer(
        MARKED.replace("{{- '\\n' }}\n{%- endfor", "{{- message['name'] if 'name' in message }}\n{%- endfor")
    )
    messages = [{**message, "name": None} for message in said(*TWO_TURNS)["messages"]]
    (tokens,) = ChatEncoder(tokenizer)([Conversation(messages, "a:1")])
    assert "None" not in tokenizer.decode(tokens.ids)


def test_the_byte_tokenizer_has_a_chat_format_of_its_own(tmp_path):
    step = next(opened(jsonl(tmp_path / "a.jsonl", said("u:hi", "a:yes")), chat=True, batch_size=1).train)
    (batch,) = step.micro_batches
    assert bytes(label for label in batch.labels[0].tolist() if 0 <= label < 256) == b"yes"
    assert step.num_targets == batch.num_targets == len("yes") + 1
    assert batch.input_ids[0].tolist() == [257, 260, *b"hi", 258, 261, *b"yes", 258, *[256] * 6]


def test_a_template_of_ones_own_replaces_the_tokenizers_and_is_saved_with_it(tmp_path):
    bpe_tokenizer(FORGETFUL).save_pretrained(tmp_path / "tokenizer")
    changes = {"tokenizer": str(tmp_path / "tokenizer"), "chat": True, "seq_len": 128}
    chats = jsonl(tmp_path / "a.jsonl", said(*TWO_TURNS))
    assert "differently" in problems_of(chats, **changes)["train",][0]
    data = opened(chats, **changes, chat_template=text_file(tmp_path / "marked.jinja", MARKED))
    (batch,) = next(data.train).micro_batches
    learnt = batch.labels[batch.labels >= 0].tolist()
    assert data.tokenizer.decode(learnt) == "".join(ANSWERS)
    data.tokenizer.save_pretrained(tmp_path / "student")
    assert "generation" in Path(tmp_path / "student" / "chat_template.jinja").read_text()


def test_a_tokenizer_without_a_template_cannot_read_chats(tmp_path):
    bpe_tokenizer().save_pretrained(tmp_path / "tokenizer")
    chats = jsonl(tmp_path / "a.jsonl", said("u:hi", "a:yes"))
    found = problems_of(chats, chat=True, tokenizer=str(tmp_path / "tokenizer"))
    assert "has no single chat template" in found["chat",][0]


def test_pieces_of_a_long_chat_without_an_answer_in_them_are_left_out(tmp_path):
    chats = jsonl(tmp_path / "a.jsonl", said(f"u:{'x' * 60}", "a:yes"))
    data = opened(chats, chat=True, batch_size=1, packing=False)
    (step,) = data.train.epoch()
    assert step.num_targets == len("yes") + 1


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([(0, 2), (2, 5), (5, 7)], [False, True, False]),
        ([(0, 3), (3, 4), (4, 7)], [True, True, True]),  # tokens that reach over the ends
        ([(0, 2), (5, 5), (5, 7)], [False, True, False]),  # white space, trimmed to its end
        ([(0, 2), (6, 7)], [False, False]),  # nothing but dropped white space
        ([], []),
    ],
)
def test_a_token_is_inside_a_span_if_one_of_its_characters_is(offsets, expected):
    assert inside(np.array(offsets, np.int64).reshape(-1, 2), [(2, 5)]).tolist() == expected
