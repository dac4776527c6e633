"""The built-in byte tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kernelkit.distill.data.byte_tokenizer import SPECIAL_TOKENS, byte_ids, byte_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_every_text_comes_back_exactly(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text
    ids = TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == list(text.encode()) and TOKENIZER.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_what_stock_transformers_loads_from_disk_does_the_same(saved, text):
    assert saved.encode(text) == TOKENIZER.encode(text)
    ids = saved.encode(text, split_special_tokens=True)
    assert ids == [saved.bos_token_id, *text.encode()]
    assert saved.decode(ids, skip_special_tokens=True) == text


@given(st.lists(TEXTS, max_size=3))
def test_the_quick_way_gives_the_same_ids(texts):
    assert [ids.tolist() for ids in byte_ids(texts)] == [list(text.encode()) for text in texts]


def test_a_special_token_that_is_written_out_is_read_as_such_only_where_the_tokenizer_reads_it(saved):
    assert saved.encode("a<|eos|>", add_special_tokens=False) == [97, saved.eos_token_id]
    assert byte_ids(["a<|eos|>"])[0].tolist() == list(b"a<|eos|>")


def test_every_byte_has_a_token_of_its_own_and_the_special_ones_follow(saved):
    assert len(saved) == 256 + len(SPECIAL_TOKENS)
    assert saved.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(256, 256 + len(SPECIAL_TOKENS)))
    assert (saved.pad_token_id, saved.bos_token_id, saved.eos_token_id) == (256, 257, 258)
    assert sorted(saved.get_vocab().values()) == list(range(len(saved)))


def test_text_is_not_tidied_when_decoded(saved):
    text = " a , b .\r\n\t don 't  \n"
    assert saved.decode(saved.encode(text), skip_special_tokens=True) == text


def test_special_tokens_are_left_out_on_request(saved):
    ids = [saved.bos_token_id, *b"hi", saved.eos_token_id, saved.pad_token_id]
    assert saved.decode(ids) == "<|bos|>hi<|eos|><|pad|>"
    assert saved.decode(ids, skip_special_tokens=True) == "hi"


def test_padding_batches_works_as_with_any_tokenizer(saved):
    batch = saved(["abc", "a"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[257, 97, 98, 99], [257, 97, 256, 256]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_the_chat_template_is_saved_and_marks_the_assistants_part(saved):
    messages = [{"role": "user", "content": " hi\n"}, {"role": "assistant", "content": " yes "}]
    text = saved.apply_chat_template(messages, tokenize=False)
    assert text == "<|bos|><|user|> hi\n<|eos|><|assistant|> yes <|eos|>"
    assert text.startswith(saved.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True))
    encoded = saved.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    assistants = [token for token, mine in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mine]
    assert saved.decode(assistants) == " yes <|eos|>"


def test_an_unknown_role_is_refused(saved):
    with pytest.raises(Exception, match="not tool"):
        saved.apply_chat_template([{"role": "tool", "content": "3"}], tokenize=False)
