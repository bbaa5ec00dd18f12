"""Tests check the names in a message; they do not fail if only the wording changes."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
QUOTED = re.compile(r"(?<!\w)'[^']*'?")  # a value in a message may be a sentence
MAX_WORDS = 3  # "cannot be read" is the longest term that distinguishes an error from similar ones
SENTENCE = re.compile(rf"(?<![\w.\\-])(?:[A-Za-z]+ ){{{MAX_WORDS},}}[A-Za-z]+(?![\w-])")


def pinned(code: str) -> list[tuple[int, str]]:
    """Line and words of each match= with more than MAX_WORDS plain words in a row."""
    nodes = ast.walk(ast.parse(code))
    asked = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "match"]
    parts = [part for value in asked for part in ast.walk(value) if isinstance(part, ast.Constant)]
    found = ((part.lineno, SENTENCE.search(QUOTED.sub("", str(part.value)))) for part in parts)
    return [(line, words[0]) for line, words in found if words]


def test_no_test_pins_the_sentence_of_an_error():
    found = {str(path.relative_to(TESTS)): pinned(path.read_text()) for path in TESTS.rglob("test_*.py")}
    assert {path: places for path, places in found.items() if places} == {}


def test_a_pinned_sentence_is_found_and_names_are_not():
    assert pinned('raises(E, match="--bits must be a number, got 3")') == [(1, "must be a number")]
    assert pinned('raises(E, match=f"{name} was made with other settings")') == [
        (1, "was made with other settings")
    ]
    for names in ("--bits.*3", "a.json cannot be read", "one, two, three, four", "'what is in it'"):
        assert pinned(f'raises(E, match="{names}")') == []
