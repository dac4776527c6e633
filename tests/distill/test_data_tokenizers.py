"""Any HF tokenizer by its folder, and what stands around a document."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from kernelkit.distill.data import encoding
from kernelkit.distill.data.byte_tokenizer import byte_tokenizer
from kernelkit.distill.data.documents import Passage
from kernelkit.distill.data.encoding import PassageEncoder, byte_encoder, ids_dtype, special_ids
from kernelkit.distill.data.tokenizer import pad_id, tokenizer_digest
from tests.distill.data_files import bpe_tokenizer, documents_of, opened, problems_of, text_file


def whole(text):
    return Passage(text, begins=True, ends=True, place="here")


def with_frame(single):
    """A tokenizer that puts special tokens around a text, like Llama's or BERT's."""
    tokenizer = bpe_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")


def test_a_tokenizer_in_a_folder_reads_text(tmp_path):
    bpe_tokenizer().save_pretrained(tmp_path / "tokenizer")
    text = "the quick brown fox says hello"
    data = opened(text_file(tmp_path / "a.txt", text), tokenizer=str(tmp_path / "tokenizer"), seq_len=64, batch_size=1)
    (batch,) = next(data.train).micro_batches
    ids, _ = documents_of(batch)[0]
    assert data.tokenizer.decode(ids) == text + "<|im_end|>"
    assert len(ids) < len(text)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    name = text_file(tmp_path / "a.txt", "text")
    assert "is no folder" in problems_of(name, tokenizer="Qwen/Qwen3-0.6B")["tokenizer",][0]
    assert "no tokenizer that transformers can load" in problems_of(name, tokenizer=str(tmp_path))["tokenizer",][0]


@pytest.mark.parametrize(
    ("single", "before", "after"),
    [
        ("$A", [], ["<|im_end|>"]),
        ("<|im_start|> $A", ["<|im_start|>"], ["<|im_end|>"]),
        ("<|im_start|> $A <|im_end|>", ["<|im_start|>"], ["<|im_end|>"]),
    ],
)
def test_a_document_stands_between_what_the_tokenizer_adds_and_ends_with_eos(single, before, after):
    tokenizer = with_frame(single)
    prefix, suffix = special_ids(tokenizer)
    assert (tokenizer.convert_ids_to_tokens(prefix), tokenizer.convert_ids_to_tokens(suffix)) == (before, after)


def test_a_part_of_a_document_has_its_frame_only_where_the_document_begins_and_ends():
    encode = byte_encoder(byte_tokenizer())
    parts = [Passage("a", begins, ends, "here") for begins, ends in ((True, False), (False, False), (False, True))]
    assert [tokens.ids.tolist() for tokens in encode(parts)] == [[257, 97], [97], [97, 258]]


def test_the_quick_way_for_bytes_agrees_with_the_tokenizer():
    tokenizer = byte_tokenizer()
    some = [whole("héllo"), whole(""), whole("\r\n\t🦊")]
    quick, slow = byte_encoder(tokenizer)(some), PassageEncoder(tokenizer)(some)
    assert [each.ids.tolist() for each in quick] == [each.ids.tolist() for each in slow]
    assert {each.ids.dtype for each in (*quick, *slow)} == {np.dtype(np.uint16)}


def test_text_is_handed_to_the_tokenizer_in_portions(monkeypatch):
    monkeypatch.setattr(encoding, "CHARACTERS_AT_ONCE", 10)
    some = ["abc" * 7, "def", "ghi", "jkl", "mno"]
    assert list(encoding._portions(some)) == [some[:1], some[1:4], some[4:]]
    tokenizer = bpe_tokenizer()
    ids = encoding.tokenizer_ids(tokenizer, some, np.uint16)
    assert [tokenizer.decode(each) for each in ids] == some


def test_large_vocabularies_have_wider_ids():
    tokenizer = bpe_tokenizer()
    assert ids_dtype(tokenizer) is np.uint16
    tokenizer.add_tokens([f"<{number}>" for number in range(2**16)])
    assert ids_dtype(tokenizer) is np.int32


def test_a_tokenizer_without_pad_token_pads_with_eos():
    assert pad_id(bpe_tokenizer()) == 0
    tokenizer = with_frame("$A")
    assert tokenizer.pad_token_id is None and pad_id(tokenizer) == tokenizer.eos_token_id


def test_the_digest_of_a_tokenizer_is_that_of_what_it_does():
    assert tokenizer_digest(bpe_tokenizer()) == tokenizer_digest(bpe_tokenizer())
    others = [bpe_tokenizer("{{ messages }}"), with_frame("<|im_start|> $A"), byte_tokenizer()]
    assert len({tokenizer_digest(each) for each in (bpe_tokenizer(), *others)}) == 4


def test_using_a_tokenizer_does_not_change_its_digest():
    tokenizer = bpe_tokenizer()
    tokenizer(["one", "three"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(bpe_tokenizer())
