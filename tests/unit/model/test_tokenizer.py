"""Ids of loaded tokenizers, compared with raw SentencePiece, also after saving."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from llava.model.tokenizer import load_tokenizer, separator_ids

texts = st.lists(
    st.sampled_from([" ", "  ", "▁", "\n", "\t", "The", "house", "12", ".", "é", "中", "😀", "<0x41>"])
    | st.text(max_size=4),
    max_size=12,
).map("".join)
without_marks = texts.filter(lambda text: not any(mark in text for mark in ("<s>", "</s>", "<unk>")))


@pytest.fixture(scope="module")
def pieces(sentencepiece_model):
    return SentencePieceProcessor(model_file=str(sentencepiece_model))


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=without_marks)
def test_ids_are_those_of_sentencepiece(sentencepiece_tokenizer, pieces, text):
    assert sentencepiece_tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)


@pytest.mark.parametrize("length", [1, 2, 5, 15, 16, 17, 40])
def test_runs_of_spaces_are_those_of_sentencepiece(sentencepiece_tokenizer, pieces, length):
    text = "x" + " " * length + "y"
    assert sentencepiece_tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)


def test_legacy_decides_on_the_space_after_a_special_token(sentencepiece_folder, sentencepiece_tokenizer):
    legacy = json.loads((sentencepiece_folder / "tokenizer_config.json").read_text())["legacy"]
    tokens = sentencepiece_tokenizer.tokenize("</s>Hi")
    assert tokens == (["</s>", "▁Hi"] if legacy else ["</s>", "Hi"])


@pytest.mark.slow
def test_a_bos_is_added_unless_the_folder_says_otherwise(sentencepiece_model, tmp_path):
    shutil.copy(sentencepiece_model, tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path, "left")("Hi").input_ids[0] == 1
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path, "left")("").input_ids == []


@pytest.mark.slow
def test_saving_and_loading_changes_nothing(sentencepiece_tokenizer, tmp_path):
    sentencepiece_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    again = load_tokenizer(tmp_path, padding_side="left", model_max_length=77)
    assert (again.padding_side, again.model_max_length, again.pad_token) == ("left", 77, "<unk>")
    for text in ["", "Hi", "  Hi </s>USER: x", "\nWhat  is   this?"]:
        assert again(text).input_ids == sentencepiece_tokenizer(text).input_ids


def test_a_tokenizer_json_with_metaspace_keeps_leading_spaces(sentencepiece_folder, pieces, tmp_path):
    LlamaTokenizer.from_pretrained(sentencepiece_folder).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, "left")
    assert (
        tokenizer(" Hi", add_special_tokens=False).input_ids
        != tokenizer("Hi", add_special_tokens=False).input_ids
    )
    assert tokenizer("Hi", add_special_tokens=False).input_ids == pieces.encode("Hi")


def test_byte_level_bpe_is_loaded_as_it_is(bpe_tokenizer, tmp_path):
    bpe_tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, "left")
    text = "<|im_start|>user\n  What?<|im_end|>"
    assert again(text).input_ids == bpe_tokenizer(text).input_ids
    assert again.pad_token == "<|im_end|>"


def test_padding_never_adds_a_row(bpe_tokenizer, tmp_path):
    backend = bpe_tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(
        tmp_path / "eos"
    )
    tokenizer = load_tokenizer(tmp_path / "eos", "left")
    assert (tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", len(bpe_tokenizer))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="end-of-sequence token.*tokenizer_config.json"):
        load_tokenizer(tmp_path / "none", "left")


def test_slices_separators_are_the_pieces_themselves_or_the_unknown_token(sentencepiece_tokenizer, pieces):
    comma, newline = separator_ids(sentencepiece_tokenizer)
    assert pieces.id_to_piece(comma) == ","
    assert newline == pieces.unk_id() == 0  # as in the training of published checkpoints


def test_slices_newline_is_encoded_where_the_vocabulary_spells_it_otherwise(bpe_tokenizer):
    comma, newline = separator_ids(bpe_tokenizer)
    assert bpe_tokenizer.decode([comma, newline]) == ",\n"
