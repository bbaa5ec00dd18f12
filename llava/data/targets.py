"""Input ids and labels of a conversation, for every template and tokenizer."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, conv_templates, template_named
from llava.data.record import image_files, system_text, turns_of
from llava.errors import UserError
from llava.mm_utils import encode_prompt


def check_template(record: dict, template: str) -> None:
    """Check that a template, a name in `conv_templates`, can express a valid record.

    Raises:
        UserError: if the template is plain and the record is not one image with its caption, or
            has a system text.
    """
    conversation = conv_templates[template]
    if conversation.sep_style is not SeparatorStyle.PLAIN:
        return
    if (system := system_text(record)) is not None:
        conversation.with_system(system)
    num_turns, num_images = len(turns_of(record)), len(image_files(record))
    if (num_turns, num_images) != (2, 1):
        raise UserError(
            f"the template {template!r} takes one image and one answer, the caption, got {num_images} "
            f"image(s) and {num_turns} turns; choose a chat template with --version, or remove the record."
        )


def conversation_from_record(record: dict, template: str, mm_use_im_start_end: bool = False) -> Conversation:
    """Put a valid record into a template.

    The record's own system text replaces the template's (Conversation.with_system). If a turn has one image,
    the image moves before the words, on a line of its own; several images stay where they are. With `plain`,
    only the image of the human's turn is kept, so that the caption follows it directly.

    Args:
        template: a name in `conv_templates`.
        mm_use_im_start_end: put each image between <im_start> and <im_end>.
    Raises:
        UserError: if the template is unknown; also like check_template.
    """
    conversation = template_named(template, "--version")
    check_template(record, template)
    if (system := system_text(record)) is not None:
        conversation = conversation.with_system(system)
    is_plain = conversation.sep_style is SeparatorStyle.PLAIN
    mark = conversation.image_text(mm_use_im_start_end)
    for index, turn in enumerate(turns_of(record)):
        words = turn["value"]
        if words.count(DEFAULT_IMAGE_TOKEN) == 1:
            rest = "" if is_plain else words.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            words = f"{DEFAULT_IMAGE_TOKEN}\n{rest}".strip()
        words = words.replace(DEFAULT_IMAGE_TOKEN, mark)
        conversation.append_message(conversation.roles[index % 2], words)
    return conversation


def build_targets(conversation: Conversation, tokenizer) -> tuple[list[int], list[int]]:
    """Make the ids that inference would make, and labels for the tokens of the assistant's answers.

    A token is a target if it lies inside a target segment. A token that reaches from an end of turn into the
    next turn is no target; this happens only if the vocabulary lacks the template's marks. If a token would
    reach from a generation prompt into the answer (two newlines as one token), the answer is tokenised apart
    from the prompt, since the model has to produce the answer after exactly that prompt.

    Returns:
        input_ids and labels, both of length T; labels are IGNORE_INDEX for other tokens and at <image>.
    Raises:
        UserError: if the tokenizer is a slow one, or the template cannot express the conversation.
    """
    segments = conversation.segments()
    prompt = "".join(segment.text for segment in segments)
    ends = list(accumulate(len(segment.text) for segment in segments))
    targets = [
        (end - len(segment.text), end)
        for segment, end in zip(segments, ends, strict=True)
        if segment.is_target
    ]
    ids, spans = encode_prompt(prompt, tokenizer)
    if spans is None:
        raise UserError(
            f"Labels need each token's position in the text, but {type(tokenizer).__name__}, a slow "
            "tokenizer, does not give it; load a fast one with llava.model.tokenizer.load_tokenizer."
        )
    starts = [start for start, _ in spans]
    crossed = [answer for answer, _ in targets if _crosses(answer, starts, spans)]
    if crossed:
        ids, spans = encode_prompt(prompt, tokenizer, cuts=crossed)
        starts = [start for start, _ in spans]  # type: ignore[union-attr]
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in targets:
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        while last > first and spans[last - 1][1] > end:  # type: ignore[index]
            last -= 1
        labels[first:last] = [
            IGNORE_INDEX if token == IMAGE_TOKEN_INDEX else token for token in ids[first:last]
        ]
    return ids, labels


def _crosses(position: int, starts: list[int], spans: list[tuple[int, int]]) -> bool:
    """Whether a token starts before a position of the text and ends after it. Tokens are in text order."""
    before = bisect_left(starts, position) - 1
    return before >= 0 and spans[before][1] > position
