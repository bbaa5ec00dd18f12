"""The HTTP application over an engine: OpenAI's chat completions, and what operators ask for."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llava.decoding import Decoding
from llava.errors import UserError
from llava.serve.engine import Engine, Event, QueueFull, Request, Ticket
from llava.serve.images import ImageLimits, is_data, read_images
from llava.serve.metrics import Metrics
from llava.serve.protocol import ApiError, ChatRequest, Completion, usage
from llava.serve.threads import Threads

logger = logging.getLogger(__name__)

RETRY_AFTER = 2  # seconds that a refused client is asked to wait
GRACE = 5.0  # seconds past its time that an answer may take to notice it
READING_THREADS = 2  # that read requests and their pictures while the model works
FETCHING_THREADS = 8  # that also wait for pictures at addresses
COLDEST = 1e-4  # temperature below which the likeliest token is certain, and its division overflows


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Args:
        max_body_bytes: of the JSON, pictures in base64 included.
        max_images: pictures a request.
        max_prompt_tokens: positions of a prompt, visual tokens included; None: the model's context.
        max_new_tokens: longest answer that may be asked for.
        default_new_tokens: longest answer of a request that does not say.
        seconds: from a request's head to its answer's end.
        image: what one picture may be.
    """

    max_body_bytes: int = 32 * 2**20
    max_images: int = 8
    max_prompt_tokens: int | None = None
    max_new_tokens: int = 1024
    default_new_tokens: int = 512
    seconds: float = 120.0
    image: ImageLimits = field(default_factory=ImageLimits)


class Chat:
    """One request from its body to its answer."""

    def __init__(self, server: "Server", ticket: Ticket):
        self.server, self.ticket, self.metrics = server, ticket, server.metrics
        self.began = time.monotonic()
        self.deadline = self.began + server.limits.seconds
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.request: Request | None = None
        self.num_tokens = 0

    async def start(self, body: bytes) -> ChatRequest:
        """Check and queue a request.

        Raises:
            ApiError: if it is refused.
        """
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
        """The answer's events.

        Raises:
            ApiError: if it ends in an error.
        """
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
                raise ApiError(500, f"the model failed ({type(event.error).__name__}).") from event.error
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
        return usage(self.request.length, self.num_tokens)


def too_late() -> ApiError:
    return ApiError(503, "the server had no time for this request; try again later.", "timeout", RETRY_AFTER)


class Server:
    """An engine, and the rules under which it is offered."""

    def __init__(self, engine: Engine, model_name: str, limits: Limits, api_key: str | None = None):
        self.engine, self.model_name, self.limits = engine, model_name, limits
        self._api_key = api_key
        self.metrics = Metrics(engine)
        self.reading, self.fetching = Threads(READING_THREADS), Threads(FETCHING_THREADS)

    def check_key(self, request: HttpRequest) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        # a header's bytes come as latin-1
        if not hmac.compare_digest(given.encode("latin-1"), self._api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong.", "invalid_api_key")

    async def prepared(self, body: bytes) -> tuple[ChatRequest, Request]:
        """Read a body, in threads.

        Raises:
            ApiError: if it is refused.
        """
        try:
            chat = await self.reading.run(self.parse, body)
            threads = self.reading if all(map(is_data, chat.image_urls)) else self.fetching
            return chat, await threads.run(self.prepare, chat)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ApiError(400, f"{place}: {first['msg']}" if place else first["msg"]) from error
        except UserError as error:
            raise ApiError(400, str(error)) from error

    def parse(self, body: bytes) -> ChatRequest:
        """Raises UserError for what is no request, ApiError for another model's."""
        chat = ChatRequest.model_validate_json(body)
        chat.check()
        if chat.model != self.model_name:
            message = f"the model {chat.model!r} is not here; {self.model_name!r} is."
            raise ApiError(404, message, "model_not_found")
        return chat

    def prepare(self, chat: ChatRequest) -> Request:
        """Read the images and tokenize.

        Raises:
            UserError: if something is beyond a limit, or cannot be read.
        """
        limits, engine = self.limits, self.engine
        longest = chat.max_completion_tokens or chat.max_tokens or limits.default_new_tokens
        if longest > limits.max_new_tokens:
            raise UserError(f"max_tokens may be up to {limits.max_new_tokens} here, got {longest}.")
        urls = chat.image_urls
        if len(urls) > limits.max_images:
            raise UserError(f"a request may hold {limits.max_images} images here, got {len(urls)}.")
        temperature = chat.temperature or 0.0
        if temperature < COLDEST:
            temperature = 0.0
        wrap = getattr(engine.model.config, "mm_use_im_start_end", False)
        prompt = chat.prompt(engine.template, wrap)
        request = engine.prepare(
            prompt,
            read_images(urls, limits.image),
            Decoding(temperature, chat.top_p, max_new_tokens=longest),
            stop=chat.stop_texts,
            scale_factor=chat.scale_factor,
            seed=chat.seed,
        )
        if limits.max_prompt_tokens is not None and request.length > limits.max_prompt_tokens:
            raise UserError(
                f"a prompt may take {limits.max_prompt_tokens} tokens here, visual ones included; this one "
                f"takes {request.length}."
            )
        return request

    async def chat(self, http: HttpRequest) -> Response:
        """Answer one request; its place is free again when this ends, or the stream it returns."""
        try:
            chat = Chat(self, self.engine.admit())
        except QueueFull:
            raise ApiError(429, "the server is busy; try again later.", "queue_full", RETRY_AFTER) from None
        try:
            body = await self._body(http, chat.deadline)
            asked = await self._unless_gone(http, chat.start(body))
            if asked.stream:
                with_usage = asked.stream_options is not None and asked.stream_options.include_usage
                return Stream(self, chat, with_usage)
            response = await self._unless_gone(http, self._whole(chat))
        except BaseException:
            chat.close()
            raise
        chat.close()
        return response

    async def _whole(self, chat: Chat) -> Response:
        texts, finish = [], None
        async for event in chat.answer():
            texts.append(event.text)
            finish = event.finish
        return JSONResponse(Completion(self.model_name).whole("".join(texts), finish, chat.usage()))

    async def _body(self, http: HttpRequest, deadline: float) -> bytes:
        """Read a body, no further than the limits."""
        limit = self.limits.max_body_bytes
        too_large = ApiError(413, f"the body is larger than {limit} bytes, this server's limit.")
        declared = http.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large

        async def read() -> bytes:
            body = bytearray()
            async for chunk in http.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
            return bytes(body)

        try:
            return await asyncio.wait_for(read(), max(0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise ApiError(408, "the body did not come in time.") from None
        except ClientDisconnect:
            raise self._gone() from None

    async def _unless_gone(self, http: HttpRequest, work: Awaitable):
        """What `work` gives; it is cancelled if the client leaves meanwhile."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_disconnected(http))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise self._gone()
        finally:
            working.cancel()
            leaving.cancel()

    def _gone(self) -> ApiError:
        self.metrics.cancelled.inc()
        return ApiError(499, "the client left.")


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class Stream(StreamingResponse):
    """An answer as server-sent events; closes its request however it ends, before its first event too."""

    def __init__(self, server: Server, chat: Chat, with_usage: bool):
        super().__init__(self._events(with_usage), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-store"
        self._server, self._chat, self._is_whole = server, chat, False

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
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
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def create_app(
    engine: Engine, model_name: str, limits: Limits | None = None, api_key: str | None = None
) -> FastAPI:
    """The application; closes the engine when it shuts down.

    Args:
        model_name: what clients call the model.
        api_key: asked for below /v1, or None.
    """
    server = Server(engine, model_name, limits or Limits(), api_key)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        await asyncio.to_thread(engine.close)
        server.reading.shutdown()
        server.fetching.shutdown()

    app = FastAPI(title="LLaVA", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())
    key = [Depends(server.check_key)]

    @app.post("/v1/chat/completions", dependencies=key)
    async def chat_completions(request: HttpRequest) -> Response:
        status = 500
        try:
            response = await server.chat(request)
            status = response.status_code
            return response
        except ApiError as error:
            status = error.status
            raise
        finally:
            server.metrics.requests.labels(status).inc()

    @app.get("/v1/models", dependencies=key)
    async def models() -> dict:
        model = {"id": model_name, "object": "model", "created": created, "owned_by": "local"}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> Response:
        if not engine.is_alive:
            raise ApiError(503, "the model's thread has ended.")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    _shape_errors(app)
    return app


def _shape_errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def refused(request: HttpRequest, error: ApiError) -> Response:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def not_there(request: HttpRequest, error: HTTPException) -> Response:
        body = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.").body()
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: HttpRequest, error: Exception) -> Response:
        return JSONResponse(ApiError(500, "the server failed; its log says why.").body(), 500)
