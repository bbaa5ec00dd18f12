"""The part of OpenAI's chat completions that a vision-language model can keep: requests, answers, errors."""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava.conversation import Conversation, place_images
from llava.errors import UserError

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, strict=True)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]


class ApiError(Exception):
    """What a client is told.

    Args:
        status: of HTTP.
        code: short word that programs compare, or None.
        retry_after: seconds until the client may ask again.
    """

    def __init__(self, status: int, message: str, code: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after

    def body(self) -> dict:
        """In OpenAI's shape."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


class ImageUrl(BaseModel):
    url: str


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        """The text parts, a line each."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def image_urls(self) -> list[str]:
        if isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A body of /v1/chat/completions; `scale_factor`, the compression side of this call, is ours.

    Fields that would change the answer and are not here are refused unless they ask for nothing; others, such
    as `user` and `metadata`, are ignored.
    """

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    scale_factor: Positive | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def image_urls(self) -> list[str]:
        """Of all messages, in order."""
        return [url for message in self.messages for url in message.image_urls]

    def check(self) -> None:
        """Raises UserError for a field that cannot be kept, or messages that make no conversation."""
        neutral: dict[str, tuple[Any, ...]] = {
            "n": (None, 1),
            "frequency_penalty": (None, 0),
            "presence_penalty": (None, 0),
            "logprobs": (None, False),
            "logit_bias": (None, {}),
            "tools": (None, []),
            "functions": (None, []),
            "response_format": (None, {"type": "text"}),
            "audio": (None,),
        }
        for name, values in neutral.items():
            if self.model_extra.get(name) not in values:
                raise UserError(f"{name} is not supported; leave it out.")
        turns = [message for message in self.messages if message.role not in ("system", "developer")]
        if self.messages[len(self.messages) - len(turns) :] != turns:
            raise UserError("system messages must come first.")
        roles = [message.role for message in turns]
        if len(roles) % 2 == 0 or roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
            raise UserError(
                "messages must alternate between user and assistant, the first and last the user's."
            )
        for message in self.messages:
            if message.role != "user" and message.image_urls:
                raise UserError(f"images belong into the user's messages, not the {message.role}'s.")
            if not message.text.strip() and not message.image_urls:
                raise UserError(f"a message of the {message.role} is empty.")

    def prompt(self, template: Conversation, use_im_start_end: bool) -> str:
        """The conversation in the template's words, one <image> for each image.

        Raises:
            UserError: where the template cannot express it.
        """
        system = [m.text for m in self.messages if m.role in ("system", "developer")]
        conversation = template.with_system("\n".join(system)) if system else template.copy()
        for message in self.messages[len(system) :]:
            role = conversation.roles[message.role == "assistant"]
            text = place_images(message.text, len(message.image_urls), template, use_im_start_end)
            conversation.append_message(role, text)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()


class Completion:
    """The bodies that answer one request, as a whole or in pieces."""

    def __init__(self, model: str):
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish: str, usage: dict) -> dict:
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
