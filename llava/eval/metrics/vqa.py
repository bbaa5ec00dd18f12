"""Compare short open answers with those of ten people: TextVQA, VQAv2, VizWiz.

Answers are normalised as on the EvalAI server. Its oddities are kept, because published scores include them.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from llava.errors import UserError

KNOWN_ANSWERS = 2**14  # size of the cache of processed answers: the same short answers are very frequent
NUM_ANSWERS = 10  # people asked for each question
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
NUMBERS = "zero one two three four five six seven eight nine ten"
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS.split())}
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""


def _missing_apostrophe() -> dict[str, str]:
    """Map each spelling that leaves exactly one apostrophe out of a contraction to the contraction."""
    table = {"somebody'd": "somebodyd"}  # the wrong way round in the official table, too
    for word in CONTRACTIONS.split():
        for match in re.finditer("'", word):
            table[word[: match.start()] + word[match.end() :]] = word
    return table


APOSTROPHES = _missing_apostrophe()


def normalize_vqa_answer(raw: str) -> str:
    """Normalise as the EvalAI server does: lower case, digits for number words, no punctuation or articles.

    Source: the answer processor of the TextVQA challenge (Singh et al., "Towards VQA models that can read",
    2019), which follows the VQA evaluation (Antol et al., "VQA: visual question answering", 2015).
    """
    text = raw.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _processed(_one_line(text))


def vqa_soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return TextVQA's accuracy: min(1, matches / 3), averaged over the ten ways to leave one person out.

    Source: Singh et al., "Towards VQA models that can read", 2019. Both sides are
    normalised by `normalize_vqa_answer`.

    Args:
        answers: the answers of the ten people.
    Returns:
        0..1.
    Raises:
        UserError: unless there are ten answers.
    """
    return _leave_one_out(normalize_vqa_answer(prediction), [normalize_vqa_answer(a) for a in answers])


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return VQAv2's and VizWiz's accuracy of a submitted answer.

    It averages as `vqa_soft_accuracy` does, but normalises differently: there is no special rule for commas
    and "'s", and if all ten people gave the same answer, both sides are compared without normalisation.

    Source: the VQA evaluation tool (Goyal et al., "Making the V in VQA matter", 2017); VizWiz uses it too
    (Gurari et al., "VizWiz grand challenge", 2018).

    Args:
        prediction: the answer as submitted; LLaVA submits `normalize_vqa_answer` of the model's answer.
        answers: the answers of the ten people.
    Returns:
        0..1.
    Raises:
        UserError: unless there are ten answers.
    """
    texts = [_one_line(text) for text in (prediction, *answers)]
    if len(set(texts[1:])) > 1:
        texts = [_processed(text) for text in texts]
    return _leave_one_out(texts[0], texts[1:])


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    if len(answers) != NUM_ANSWERS:
        raise UserError(
            f"soft accuracy needs the answers of {NUM_ANSWERS} people, got {len(answers)}; "
            "check the annotation file."
        )
    matches = [prediction == answer for answer in answers]
    num = sum(matches)
    return sum(min(1.0, (num - own) / 3) for own in matches) / NUM_ANSWERS


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(KNOWN_ANSWERS)
def _processed(text: str) -> str:
    return _process_words(_process_punctuation(text))


def _process_punctuation(text: str) -> str:
    """Drop marks that occur beside a space, turn others into spaces; drop periods that precede no digit."""
    in_number = re.search(r"(?<=\d),+(?=\d)", text)
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or in_number else " ")
    return re.sub(r"\.(?!\d)", "", result, count=32)  # the tool passes a flag of value 32 as the count


def _process_words(text: str) -> str:
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)
