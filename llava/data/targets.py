"""What the model reads and what it learns to say: ids and labels for every template and tokenizer."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, conv_templates, template_named
from llava.data.record import image_files, system_text, turns_of
from llava.errors import UserError
from llava.mm_utils import encode_prompt


def check_template(record: dict, template: str) -> None:
    """Whether a template, a name in `conv_templates`, can lay a valid record out.

    Raises:
        UserError: if the template is plain and the record is not one image and its caption, or
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
            f"the template {template!r} takes one image and one answer, its caption, got {num_images} "
            f"image(s) and {num_turns} turns; choose a chat template with --version, or remove the record."
        )


def conversation_from_record(record: dict, template: str, mm_use_im_start_end: bool = False) -> Conversation:
    """Lay a valid record out in a template.

    A system text of its own stands in the place of the template's, as Conversation.with_system puts it.
    A turn's only image goes ahead of its words, on a line of its own; several stay where they are. `plain`
    keeps the image alone of the human's turn, so that the caption follows it directly.

    Args:
        template: a name in `conv_templates`.
        mm_use_im_start_end: put each image between <im_start> and <im_end>.
    Raises:
        UserError: if the template is unknown, and as check_template.
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
    """Ids as inference makes them, and labels that fall on what the assistant says.

    A token is a target if it lies inside a target segment; one that reaches from an end of turn into the
    next turn, as only marks that the vocabulary lacks can make it, is none. Where one would reach from a
    generation prompt into the answer (two newlines as one token), the prompt is tokenised to its end and the
    answer by itself, since the model, given that prompt, would have to produce it so.

    Returns:
        input_ids and labels, both of length T; labels are IGNORE_INDEX elsewhere, also at <image>.
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
            f"Labels need to know where each token stands in the text, which {type(tokenizer).__name__}, "
            "a slow tokenizer, cannot tell; load a fast one with llava.model.tokenizer.load_tokenizer."
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
    """Whether a token reaches over a position of the text. Tokens are in the order of the text."""
    before = bisect_left(starts, position) - 1
    return before >= 0 and spans[before][1] > position
