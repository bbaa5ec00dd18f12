"""The part of OpenAI's chat completions that this server supports: requests, answers, errors."""

import json
import re
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from llava.conversation import Conversation, MarkedPrompt, chat_prompt
from llava.errors import UserError
from llava.text import replace_surrogates

MAX_MESSAGE = 1000  # characters of an error's message
MAX_ECHO = 100  # characters of a client's own text in an error's message


def neutral(names: str, *values: Any) -> dict[str, tuple[Any, ...]]:
    """Maps each field name to its neutral values, which ask for nothing; None (null) is always one."""
    return dict.fromkeys(names.split(), (None, *values))


# Fields of OpenAI, vLLM, SGLang, transformers, Text Generation Inference and llama.cpp that would change the
# answer or its form, but are not supported. Such a field is refused if its value is not neutral. All other
# fields that are not in ChatRequest are ignored.
NEUTRAL = {
    **neutral(
        "allowed_token_ids audio chat_template custom_logit_processor do_sample ebnf grammar guided_choice "
        "guided_decoding_backend guided_grammar guided_json guided_regex guided_whitespace_pattern input_ids "
        "json_schema lora_path max_length max_new_tokens n_predict prediction prompt_logprobs regex "
        "repetition_detection structural_tag structured_outputs truncate_prompt_tokens web_search_options"
    ),
    **neutral(
        "dry_multiplier dynatemp_range epsilon_cutoff eta_cutoff frequency_penalty min_new_tokens min_tokens "
        "mirostat no_repeat_ngram_size penalty_alpha presence_penalty top_a top_logprobs xtc_probability",
        0,
    ),
    **neutral("top_n_sigma", 0, -1),
    **neutral("best_of length_penalty n num_beams repeat_penalty tfs_z typ_p typical_p", 1),
    **neutral(
        "add_special_tokens continue_final_message early_stopping echo ignore_eos include_stop_str_in_output "
        "logprobs no_stop_trim return_hidden_states return_token_ids return_tokens_as_token_ids "
        "use_beam_search",
        False,
    ),
    **neutral("add_generation_prompt skip_special_tokens", True),
    **neutral("parallel_tool_calls", True, False),
    **neutral("bad_words documents functions logits_processors stop_regex stop_token_ids tools", []),
    **neutral("chat_template_kwargs logit_bias mm_processor_kwargs reasoning vllm_xargs", {}),
    **neutral("function_call tool_choice", "none", "auto"),
    **neutral("modalities", ["text"]),
    **neutral("reasoning_effort", "none"),
    **neutral("response_format", {"type": "text"}),
    **neutral("verbosity", "medium"),
}
# The same for the fields of a message
NEUTRAL_IN_MESSAGE = {
    **neutral("audio function_call"),
    **neutral("partial prefix", False),
    **neutral("refusal", ""),
    **neutral("tool_calls", []),
}

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]


def tagged(tag: str, kind) -> Any:
    """One choice of a union. The tag's brackets show `explain` that it is not the name of a field."""
    return Annotated[kind, Tag(f"({tag})")]


def text_or_list(value: Any) -> str | None:
    return "(text)" if isinstance(value, str) else "(list)" if isinstance(value, list) else None


def part_type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"({kind})" if isinstance(kind, str) else None


class ApiError(Exception):
    """An error that is sent to the client.

    Args:
        status: the HTTP status.
        code: a short word that programs compare, or None.
        retry_after: seconds until the client may ask again.
    """

    def __init__(self, status: int, message: str, code: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after

    def body(self) -> dict:
        """The response body, in OpenAI's format."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        message = cut(self.message, MAX_MESSAGE)
        return {"error": {"message": message, "type": kind, "param": None, "code": self.code}}


def cut(text: str, most: int = MAX_ECHO) -> str:
    """Cut a text for a message after `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


class ImageUrl(BaseModel):
    url: str


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[tagged("text", TextPart) | tagged("image_url", ImagePart), Discriminator(part_type)]  # type: ignore[valid-type]
Parts = Annotated[list[Part], Field(fail_fast=True)]  # type: ignore[valid-type]
StopTexts = Annotated[list[StopText], Field(max_length=4)]


class Message(BaseModel):
    """One message. If the assistant's message has no content, it is an empty answer."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[tagged("text", str) | tagged("list", Parts), Discriminator(text_or_list)] | None = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        """The text parts, joined by line breaks."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if isinstance(part, TextPart))

    @property
    def image_urls(self) -> list[str]:
        if isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content or () if isinstance(part, ImagePart)]

    def check(self, place: str) -> None:
        """Raise UserError for anything that its role may not send; `place` names the message."""
        refuse_unsupported(self.model_extra or {}, NEUTRAL_IN_MESSAGE, f"{place}.")
        if self.content is None and self.role != "assistant":
            raise UserError(f"{place}.content must be a text or a list of parts.")
        if self.role != "user" and self.image_urls:
            raise UserError(f"{place}: only the user's messages may have images, not the {self.role}'s.")
        if self.role == "user" and not self.text.strip() and not self.image_urls:
            raise UserError(f"{place} is empty, but it comes from the user; write a text.")


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A body of /v1/chat/completions.

    `scale_factor`, the side in patches of the square that one visual token represents, is our own field.
    `top_k`, `min_p` and `repetition_penalty` are those of vLLM.
    """

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**63, strict=True)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[tagged("text", StopText) | tagged("list", StopTexts), Discriminator(text_or_list)] | None  # type: ignore[valid-type]
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    scale_factor: Positive | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def image_urls(self) -> list[str]:
        """The image URLs of all messages, in order."""
        return [url for message in self.messages for url in message.image_urls]

    def check(self) -> None:
        """Raise UserError for an unsupported field, or for messages that do not form a conversation."""
        refuse_unsupported(self.model_extra or {}, NEUTRAL)
        turns = [message for message in self.messages if message.role not in ("system", "developer")]
        if self.messages[len(self.messages) - len(turns) :] != turns:
            raise UserError("system messages must come first.")
        roles = [message.role for message in turns]
        if len(roles) % 2 == 0 or roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
            raise UserError(
                "messages must alternate between user and assistant, and begin and end with the user."
            )
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]")

    def prompt(self, template: Conversation, use_im_start_end: bool) -> MarkedPrompt:
        """The prompt of the conversation. Raises UserError if the template cannot express it."""
        system = [m.text for m in self.messages if m.role in ("system", "developer")]
        if system:
            template = template.with_system("\n".join(system))
        questions, answers = self.messages[len(system) :: 2], self.messages[len(system) + 1 :: 2]
        said = [*(answer.text for answer in answers), None]
        turns = [
            (question.text, len(question.image_urls), answer)
            for question, answer in zip(questions, said, strict=True)
        ]
        return chat_prompt(turns, template, use_im_start_end)


def refuse_unsupported(fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]], place: str = "") -> None:
    """Raise UserError if a field of the table `neutral` has a value that is not neutral."""
    for name, values in neutral.items():
        if fields.get(name) not in values:
            raise UserError(f"{place}{name} is not supported; leave it out.")


def read_request(body: bytes) -> ChatRequest:
    """Parse and check a request's body; lone surrogates are replaced by U+FFFD.

    Raises UserError if it is not a valid request; the message names the first error's place.
    """
    try:
        try:
            chat = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            if error.errors(include_url=False)[0]["type"] != "json_invalid":
                raise
            # a lone surrogate is valid JSON, but pydantic refuses it
            chat = ChatRequest.model_validate_json(_replaced(body) or body)
    except ValidationError as error:
        raise UserError(explain(error)) from error
    chat.check()
    return chat


def _replaced(body: bytes) -> str | None:
    """A JSON text with its lone surrogates replaced by U+FFFD; None if it is not JSON."""
    try:
        return replace_surrogates(json.dumps(json.loads(body), ensure_ascii=False))
    except (ValueError, RecursionError):
        return None


def explain(error: ValidationError) -> str:
    """The first error of a body, as a sentence."""
    first = error.errors(include_url=False)[0]
    kind, value, place = first["type"], first["input"], ""
    for step in first["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("("):  # not a tag made by `tagged`
            place += f".{step}" if place else step
    place = place or "the body"
    if kind == "json_invalid":
        return f"the body is not JSON ({first['ctx']['error']})."
    if kind == "missing":
        return f"{place} is missing."
    if kind in ("model_type", "model_attributes_type"):
        return f"{place} must be an object."
    if kind == "too_long":
        return f"{place} may have at most {first['ctx']['max_length']} items, got {len(value)}."
    if kind.startswith("union_tag"):
        if not place.endswith("]"):
            return f"{place} must be a text or a list."
        if (tag := part_type(value)) is None:
            return f'{place} must be an object of type "text" or "image_url".'
        return f'{place}: unknown type "{cut(tag[1:-1])}"; use "text" or "image_url".'
    words = re.sub(r"^(Input|Value|List|String)\b", place, first["msg"])
    return words.replace(" after validation", "") + "."


class Completion:
    """The response bodies for one request, as a whole or in pieces."""

    def __init__(self, model: str):
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish: str | None, usage: dict) -> dict:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def piece(self, delta: dict, finish: str | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_piece(self, usage: dict) -> dict:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


def usage(prompt_tokens: int, completion_tokens: int) -> dict:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
