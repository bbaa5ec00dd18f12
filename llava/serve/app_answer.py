"""The answer to one chat request, as a whole or as server-sent events, and the errors that end it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import torch
from fastapi.responses import StreamingResponse

from llava.errors import UserError
from llava.serve.engine import Event, Request, ShuttingDown, Ticket
from llava.serve.protocol import ApiError, ChatRequest, Completion, usage

RETRY_AFTER = 2  # seconds that a refused client is asked to wait
GRACE = 5.0  # seconds that an answer may take to end after its deadline


class Chat:
    """One request, from its body to its answer.

    Args:
        server: the llava.serve.app.Server.
        ticket: the request's place in the engine.
    """

    def __init__(self, server, ticket: Ticket):
        self.server, self.ticket, self.metrics = server, ticket, server.metrics
        self.began = time.monotonic()
        self.deadline = self.began + server.limits.seconds
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.request: Request | None = None
        self.num_tokens = 0

    async def start(self, body: bytes) -> ChatRequest:
        """Check and queue a request. Raises ApiError if it is refused."""
        loop = asyncio.get_running_loop()
        prepared = self.server.prepared(body)
        try:
            chat, self.request = await asyncio.wait_for(prepared, max(0, self.deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise too_late() from None

        def emit(event: Event) -> None:
            if not loop.is_closed():  # the server stopped while the model worked
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        self.ticket.start(self.request, emit, self.deadline)
        return chat

    async def answer(self) -> AsyncIterator[Event]:
        """Yield the events of the answer. Raises ApiError if it ends in an error."""
        is_first = True
        while True:
            try:
                event = await asyncio.wait_for(
                    self.events.get(), max(0, self.deadline + GRACE - time.monotonic())
                )
            except asyncio.TimeoutError:
                raise too_late() from None
            self.num_tokens = event.num_tokens
            if event.error is not None:
                raise failure(event.error) from event.error
            if is_first:
                self.metrics.first_token.observe(time.monotonic() - self.began)
                is_first = False
            yield event
            if event.finish is not None:
                return

    def close(self) -> None:
        self.ticket.close()
        self.metrics.duration.observe(time.monotonic() - self.began)
        self.metrics.new_tokens.inc(self.num_tokens)
        if self.request is not None:
            self.metrics.prompt_tokens.inc(self.request.length)

    def usage(self) -> dict:
        return usage(self.request.length, self.num_tokens)  # type: ignore[union-attr]


def failure(error: Exception) -> ApiError:
    """The ApiError to send for an error that ended an answer."""
    if isinstance(error, ShuttingDown):
        return shutting_down()
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, torch.OutOfMemoryError):
        message = "the request needs more memory than the device has; send fewer images or shorter messages."
        return ApiError(503, message, "out_of_memory", RETRY_AFTER)
    return ApiError(500, f"the model failed ({type(error).__name__}).")


def server_failed() -> ApiError:
    return ApiError(500, "the server failed; the reason is in its log.")


def too_late() -> ApiError:
    return ApiError(503, "the server had no time for this request; try again later.", "timeout", RETRY_AFTER)


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down; try again later.", "shutting_down", RETRY_AFTER)


class Stream(StreamingResponse):
    """An answer as server-sent events. It closes its request however it ends, even before its first event."""

    def __init__(self, server, chat: Chat, with_usage: bool):
        super().__init__(self._events(with_usage), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-store"
        self._server, self._chat, self._is_whole = server, chat, False

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            if not self._server.is_ending:
                raise
            # the client does not read, and the process no longer waits for it
        finally:
            self._chat.close()
            if not self._is_whole:
                self._server.metrics.cancelled.inc()

    async def _events(self, with_usage: bool) -> AsyncIterator[str]:
        completion = Completion(self._server.model_name)
        yield _sse(completion.piece({"role": "assistant", "content": ""}))
        try:
            async for event in self._chat.answer():
                if event.text:
                    yield _sse(completion.piece({"content": event.text}))
                if event.finish:
                    yield _sse(completion.piece({}, event.finish))
            if with_usage:
                yield _sse(completion.usage_piece(self._chat.usage()))
        except ApiError as error:
            yield _sse(error.body())
        self._is_whole = True
        yield "data: [DONE]\n\n"


def _sse(body: dict) -> str:
    # only ASCII, as json.dumps writes by default: some clients also break lines at U+0085 and U+2028
    return f"data: {json.dumps(body)}\n\n"
