"""Find the option that an answer names, if a letter was asked for: ScienceQA, SEED-Bench, MMBench."""

import re
from collections.abc import Collection


def parse_option_letter(text: str, letters: Collection[str]) -> str | None:
    """Return the letter in "B", "B. a dog" or "... The answer is B."; None unless one option is named so.

    Source: LLaVA's ScienceQA evaluation; in addition, "B." and "The answer is B" without a period count.

    Args:
        letters: the letters of the question's options, e.g. "ABCD".
    """
    text = text.strip()
    if match := re.match(r"([A-Z])(\. |\.?$)", text):
        named = [match[1]]
    else:
        named = re.findall(r"The answer is ([A-Z])\b", text)
    return named[0] if len(named) == 1 and named[0] in letters else None
