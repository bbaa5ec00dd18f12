"""Generated ids to words: sub-word tokens are grouped, ends are cut, bytes of a character stay together."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava.visualization.answer import group_words, token_spans

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer():
    """A tokenizer with one token for each byte, and a few longer pieces."""
    vocab = {piece: i for i, piece in enumerate(["</s>", *ALPHABET, "Ġcat", "ar", "ed", "Ġand"])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


TOKENIZER = byte_tokenizer()


def ids(*pieces):
    return [TOKENIZER.convert_tokens_to_ids(piece) for piece in pieces]


def test_sub_word_tokens_join_to_words():
    text, spans = token_spans(ids("ar", "ed", "Ġcat", "s", "Ġand", "Ġ", "ed"), TOKENIZER, None)
    assert text == "ared cats and ed"
    assert group_words(text, spans) == (["ared", "cats", "and", "ed"], [[0, 1], [2, 3], [4], [6]])


def test_an_answer_ends_at_a_special_token_or_at_the_stop_text():
    assert token_spans(ids("ar", "</s>", "ed"), TOKENIZER, None) == ("ar", [(0, 2)])
    text, spans = token_spans(ids("ar", "Ġcat", "#", "#", "ed"), TOKENIZER, "##")
    assert (text, spans) == ("ar cat", [(0, 2), (2, 6)])


def test_all_bytes_of_one_character_belong_to_its_word():
    smile = TOKENIZER("😀")["input_ids"]
    assert len(smile) == 4
    text, spans = token_spans([*ids("ar", "Ġ"), *smile, *ids("Ġcat")], TOKENIZER, None)
    assert group_words(text, spans) == (["ar", "😀", "cat"], [[0], [2, 3, 4, 5], [6]])


def test_an_empty_answer_has_no_words():
    assert token_spans([], TOKENIZER, "###") == ("", [])
    assert group_words("", []) == ([], [])
