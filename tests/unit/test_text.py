"""Text from outside the program: characters that no tokenizer accepts."""

import pytest

from llava.text import replace_surrogates


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", ""),
        ("plain, é, \U0001f418", "plain, é, \U0001f418"),
        ("\ud800", "\ufffd"),
        ("a\ud800b", "a\ufffdb"),
        ("x\udc00", "x\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud800\ud83d\ude00", "\ufffd\U0001f600"),
        ("\ufeffa", "\ufeffa"),
    ],
)
def test_a_lone_surrogate_is_replaced_and_a_pair_is_its_character(text, whole):
    assert replace_surrogates(text) == whole
    assert whole.encode().decode() == whole
