"""Which option an answer names, where a letter is asked for: ScienceQA, SEED-Bench, MMBench."""

import re
from collections.abc import Collection


def parse_option_letter(text: str, letters: Collection[str]) -> str | None:
    """The letter of "B", "B. a dog" or "... The answer is B."; None if no one option is named so.

    Source: LLaVA's ScienceQA evaluation; besides, "B." counts, and so does "The answer is B" with no period.

    Args:
        letters: those that the question offers, e.g. "ABCD".
    """
    text = text.strip()
    if match := re.match(r"([A-Z])(\. |\.?$)", text):
        named = [match[1]]
    else:
        named = re.findall(r"The answer is ([A-Z])\b", text)
    return named[0] if len(named) == 1 and named[0] in letters else None
