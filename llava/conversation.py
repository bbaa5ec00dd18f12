"""Prompt templates: what the model reads, and which parts of it the assistant must produce."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, NamedTuple

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.text import replace_surrogates


class SeparatorStyle(Enum):
    """How a template marks turns; the names are those that third-party code compares with."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()
    CHATML = auto()


class Segment(NamedTuple):
    """A part of the prompt; `is_target` if the assistant must produce it."""

    text: str
    is_target: bool


# None means an answer that is still to come, and so does "" in the last message; a tuple is (text, image,
# image process mode).
Message = str | tuple | None


class MarkedPrompt(str):
    """A prompt with the positions of those <image> that are placeholders; every other <image> is plain text.

    In an ordinary string every <image> is a placeholder of an image.

    Attributes:
        marks: positions at which the placeholders start, in rising order.
    """

    marks: tuple[int, ...]

    def __new__(cls, text: str, marks: Iterable[int]) -> MarkedPrompt:
        prompt = super().__new__(cls, text)
        prompt.marks = tuple(marks)
        return prompt


@dataclass
class Conversation:
    """A template and the turns so far: user first, then assistant and user alternately.

    The field names, and messages of (text, image, mode), are those of LLaVA's evaluators.
    """

    system: str
    roles: tuple[str, str]
    messages: list[list] = field(default_factory=list)  # of [role, message]
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    image_mark: str = DEFAULT_IMAGE_TOKEN  # the placeholder of an image in a message

    def append_message(self, role: str, message: Message) -> None:
        """Add a turn; a message of None asks for that role's answer."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """An independent copy, to which turns can be appended."""
        return replace(self, messages=[list(turn) for turn in self.messages])

    def with_system(self, text: str) -> Conversation:
        """A copy with `text` as the system part, between the template's own marks.

        Raises UserError if the template has no system part.
        """
        if self.sep_style is SeparatorStyle.PLAIN:
            raise UserError("A plain template has no system part; choose a chat template.")
        marks = re.match(r"(<\|.*\n+)?", self.system)[0]  # type: ignore[index]  # <|im_start|>system, ... with its line ends
        return replace(self.copy(), system=marks + text)

    @property
    def stop_str(self) -> str | None:
        """The text that ends an answer."""
        return self.sep2 if self.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2) else self.sep

    def image_text(self, use_im_start_end: bool = False) -> str:
        """The placeholder of an image in a message, between <im_start> and <im_end> if so trained."""
        if not use_im_start_end:
            return self.image_mark
        wrapped = f"{DEFAULT_IM_START_TOKEN}{DEFAULT_IMAGE_TOKEN}{DEFAULT_IM_END_TOKEN}"
        return self.image_mark.replace(DEFAULT_IMAGE_TOKEN, wrapped)

    def get_prompt(self) -> str:
        """The whole prompt. Raises UserError where the template cannot express the messages."""
        return "".join(segment.text for segment in self.segments())

    def segments(self) -> list[Segment]:
        """The prompt in parts. The targets are what follows a generation prompt, with the end of the turn.

        Raises UserError if roles do not alternate, the user's first, or the template cannot express the
        messages.
        """
        return [segment for _, segment in self._pieces() if segment.text]

    def _pieces(self) -> Iterator[tuple[int | None, Segment]]:
        """The segments, some of them empty, each with the index of the message whose text it contains."""
        self._check_turns()
        yield None, Segment(self._opening(), False)
        for index, (role, _) in enumerate(self.messages):
            before, spoken, after = self._turn(index, role)
            yield None, Segment(before, False)
            yield index, Segment(spoken, index % 2 == 1)
            yield None, Segment(after, False)

    def _check_turns(self) -> None:
        for index, (role, _) in enumerate(self.messages):
            if role != self.roles[index % 2]:
                raise UserError(
                    f"Message {index} is from {role!r}, expected {self.roles[index % 2]!r}. Roles "
                    "alternate, and the user begins; append messages with conv.roles[0] and conv.roles[1]."
                )
        if self.sep_style is SeparatorStyle.PLAIN and len(self.messages) > 2:
            raise UserError(
                f"A plain template takes one image and its caption, got {len(self.messages)} messages; "
                "choose a chat template."
            )
        if self.sep_style is SeparatorStyle.LLAMA_2 and self.messages and not self._text(0):
            raise UserError(
                "The first message must have words: a Llama-2 template puts the system text there; add some."
            )

    def _opening(self) -> str:
        """The system part, if the template puts it before the first turn; otherwise an empty text."""
        if self.sep_style in (SeparatorStyle.PLAIN, SeparatorStyle.LLAMA_2):
            return ""
        if self.sep_style is SeparatorStyle.CHATML:
            return f"{self.system}{self.sep}\n" if self.system else ""
        return self.system + self.sep if self.system else ""

    def _turn(self, index: int, role: str) -> tuple[str, str, str]:
        """Turn `index` in three parts: what precedes its text, the text and its end of turn, the rest."""
        text, is_assistant = self._text(index), index % 2 == 1
        match self.sep_style:
            case SeparatorStyle.SINGLE | SeparatorStyle.TWO:
                end = self.sep2 if self.sep_style is SeparatorStyle.TWO and is_assistant else self.sep
                before, spoken, after = f"{role}:", f" {text}{end}", ""
            case SeparatorStyle.MPT:
                before, spoken, after = role, f"{text}{self.sep}", ""
            case SeparatorStyle.CHATML:
                before, spoken, after = f"{role}\n", f"{text}{self.sep}", "\n"
            case SeparatorStyle.LLAMA_2 if is_assistant:
                before, spoken, after = "", f" {text} {self.sep2}", ""
            case SeparatorStyle.LLAMA_2:
                system = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system and index == 0 else ""
                start = self.sep if index else ""  # the tokenizer itself adds the first BOS
                before, spoken, after = f"{start}[INST] {system}", f"{text} [/INST]", ""
            case SeparatorStyle.PLAIN if is_assistant:
                before, spoken, after = "", f"{text}{self.sep}", ""
            case SeparatorStyle.PLAIN:
                captioned = len(self.messages) > 1 and self._text(1)
                before, spoken, after = "", text, "" if captioned else self.sep
        is_empty_answer = is_assistant and self.messages[index][1] == "" and index < len(self.messages) - 1
        return (before, spoken, after) if text or is_empty_answer else (before, "", "")

    def _text(self, index: int) -> str:
        """The text of message `index`; for a first message with an image, after the image's placeholder."""
        message = self.messages[index][1]
        if not isinstance(message, tuple):
            return message or ""
        text = message[0] or ""
        if index or len(message) < 2 or message[1] is None:
            return text
        words = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        return f"{self.image_mark}\n{words}".strip()


_V0 = Conversation(
    system="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    roles=("Human", "Assistant"),
    version="v0",
)
_V1 = Conversation(
    system=_V0.system.replace("human", "user"),
    roles=("USER", "ASSISTANT"),
    version="v1",
    sep_style=SeparatorStyle.TWO,
    sep=" ",
    sep2="</s>",
)
_MMTAG: dict[str, Any] = {
    "system": "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>.",
    "image_mark": f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>",
}
_LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_LLAMA_2 = Conversation(
    system="You are a helpful, respectful and honest assistant. "
    "Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, "
    "or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, "
    "explain why instead of answering something not correct. "
    "If you don't know the answer to a question, please don't share false information.",
    roles=("USER", "ASSISTANT"),
    version="llama_v2",
    sep_style=SeparatorStyle.LLAMA_2,
    sep="<s>",
    sep2="</s>",
)
_MPT = Conversation(
    system="<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers.",
    roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
    version="mpt",
    sep_style=SeparatorStyle.MPT,
    sep="<|im_end|>",
)
_CHATML_DIRECT = replace(_MPT, system="<|im_start|>system\nAnswer the questions.")
_QWEN_2 = Conversation(
    system="<|im_start|>system\nYou are a helpful assistant.",
    roles=("<|im_start|>user", "<|im_start|>assistant"),
    version="qwen",
    sep_style=SeparatorStyle.CHATML,
    sep="<|im_end|>",
)
_LLAMA_3 = Conversation(
    system=f"<|start_header_id|>system<|end_header_id|>\n\n{_LLAVA_SYSTEM}",
    roles=(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    version="llama_v3",
    sep_style=SeparatorStyle.MPT,  # marks around a role, then the text; the tokenizer adds <|begin_of_text|>
    sep="<|eot_id|>",
)
_PLAIN = Conversation(system="", roles=("", ""), version="plain", sep_style=SeparatorStyle.PLAIN, sep="\n")

# Copy an entry before appending to it: conv_templates[name].copy().
conv_templates: dict[str, Conversation] = {
    "default": _V0,
    "v0": _V0,
    "v1": _V1,
    "vicuna_v1": _V1,
    "llama_2": _LLAMA_2,
    "mistral_instruct": replace(_LLAMA_2, system="", sep=""),
    "chatml_direct": _CHATML_DIRECT,
    "mistral_direct": _CHATML_DIRECT,
    "qwen_2": _QWEN_2,
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
    "llava_v0": _V0,
    "v0_mmtag": replace(_V0, version="v0_mmtag", **_MMTAG),
    "llava_v1": replace(_V1, system=_V0.system),
    "v1_mmtag": replace(_V1, version="v1_mmtag", **_MMTAG),
    "llava_llama_2": replace(_LLAMA_2, system=_LLAVA_SYSTEM),
    "llava_llama_3": _LLAMA_3,
    "mpt": _MPT,
}
DEFAULT_TEMPLATE = "vicuna_v1"  # for checkpoints whose config.json names none, and runs that are given none


def template_named(name: str, flag: str = "--conv-mode") -> Conversation:
    """A copy of a template.

    Args:
        flag: the flag that gave the name, for the message.
    Raises:
        UserError: if there is no template of that name; the message lists the names.
    """
    if name not in conv_templates:
        raise UserError(f"{flag} must be one of {', '.join(sorted(conv_templates))}, got {name!r}.")
    return conv_templates[name].copy()


def template_of(model_config, name: str | None = None) -> Conversation:
    """A copy of the named template; by default of the one that a checkpoint was trained with."""
    return template_named(name or getattr(model_config, "conv_version", None) or DEFAULT_TEMPLATE)


def place_images(text: str, num_images: int, template: Conversation, use_im_start_end: bool = False) -> str:
    """Return a user's text with the template's placeholder for each image.

    The placeholders come first, each on its own line, unless the text itself has <image> where they belong.
    If there are no images, <image> in the text is plain text and stays unchanged.

    Raises UserError if the text has <image>, but not as many as there are images.
    """
    if num_images == 0:
        return text
    marks = text.count(DEFAULT_IMAGE_TOKEN)
    if marks == 0:
        text = f"{DEFAULT_IMAGE_TOKEN}\n" * num_images + text
    elif marks != num_images:
        raise UserError(
            f"the text contains {marks} {DEFAULT_IMAGE_TOKEN} for {num_images} image(s); write one for each."
        )
    return text.replace(DEFAULT_IMAGE_TOKEN, template.image_text(use_im_start_end))


def chat_prompt(
    turns: Iterable[tuple[str, int, str | None]], template: Conversation, use_im_start_end: bool = False
) -> MarkedPrompt:
    """The prompt of a conversation, in which <image> is a placeholder only in questions that have images.

    Args:
        turns: each question, the number of its images, and its answer. If the last answer is None, the prompt
            ends where that answer begins; otherwise it ends with that answer.
    Raises:
        UserError: as place_images; or if the template cannot express the conversation.
    """
    conversation, with_images = template.copy(), set()
    for question, num_images, answer in turns:
        if num_images:
            with_images.add(len(conversation.messages))
        words = place_images(replace_surrogates(question), num_images, template, use_im_start_end)
        conversation.append_message(conversation.roles[0], words)
        conversation.append_message(conversation.roles[1], answer and replace_surrogates(answer))
    text, marks = "", []
    for message, segment in conversation._pieces():
        if message in with_images:
            found = re.finditer(re.escape(DEFAULT_IMAGE_TOKEN), segment.text)
            marks += [len(text) + match.start() for match in found]
        text += segment.text
    return MarkedPrompt(text, marks)


def question_prompt(
    text: str, num_images: int, template: Conversation, use_im_start_end: bool = False
) -> MarkedPrompt:
    """The prompt of one question, up to the place where the answer begins.

    Raises UserError, as place_images.
    """
    return chat_prompt([(text, num_images, None)], template, use_im_start_end)
