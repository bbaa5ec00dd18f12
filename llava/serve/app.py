"""The HTTP application for an engine: OpenAI's chat completions, and /health and /metrics for operators."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from llava.decoding import Decoding
from llava.errors import UserError
from llava.serve.app_answer import RETRY_AFTER, Chat, Stream, server_failed, shutting_down
from llava.serve.engine import Engine, QueueFull, Request, ShuttingDown
from llava.serve.images import ImageLimits, is_data, read_images
from llava.serve.metrics import Metrics
from llava.serve.protocol import ApiError, ChatRequest, Completion, cut, read_request
from llava.serve.threads import Threads

logger = logging.getLogger(__name__)

READING_THREADS = 2  # threads that read requests and their pictures while the model works
FETCHING_THREADS = 8  # threads that also wait for pictures at addresses
COLDEST = 1e-4  # temperature below which the likeliest token is certain, and division by it overflows


@dataclass(frozen=True)
class Limits:
    """The limits of one request.

    Args:
        max_body_bytes: the most bytes of the JSON, pictures in base64 included.
        max_images: the most pictures in a request.
        max_prompt_tokens: the most positions of a prompt, visual tokens included; None: the model's context.
        max_new_tokens: the most tokens of an answer that a request may ask for.
        default_new_tokens: the most tokens of an answer if the request does not say.
        seconds: the time from a request's head to the end of its answer.
        image: the limits of one picture.
    """

    max_body_bytes: int = 32 * 2**20
    max_images: int = 8
    max_prompt_tokens: int | None = None
    max_new_tokens: int = 1024
    default_new_tokens: int = 512
    seconds: float = 120.0
    image: ImageLimits = field(default_factory=ImageLimits)


class Server:
    """An engine with the model name, limits and API key under which it is offered."""

    def __init__(self, engine: Engine, model_name: str, limits: Limits, api_key: str | None = None):
        self.engine, self.model_name, self.limits = engine, model_name, limits
        self._api_key = api_key
        self.metrics = Metrics(engine)
        self.reading, self.fetching = Threads(READING_THREADS), Threads(FETCHING_THREADS)
        self.is_ending = False
        self._told_of_end: set[asyncio.Future] = set()

    def end(self) -> None:
        """Accept no more requests, and end open ones with a 503; is called in the event loop."""
        self.is_ending = True
        self.engine.end()
        for future in self._told_of_end:
            future.cancel()

    def check_key(self, request: HttpRequest) -> None:
        if self._api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # headers are decoded as latin-1
        is_key = hmac.compare_digest(given.strip().encode("latin-1"), self._api_key.encode())
        if scheme.lower() != "bearer" or not is_key:
            raise ApiError(401, "the API key is missing or wrong.", "invalid_api_key")

    async def prepared(self, body: bytes) -> tuple[ChatRequest, Request]:
        """Parse a body and prepare its request, in threads. Raises ApiError if it is refused."""
        try:
            chat = await self.reading.run(self.parse, body)
            threads = self.reading if all(map(is_data, chat.image_urls)) else self.fetching
            return chat, await threads.run(self.prepare, chat)
        except UserError as error:
            raise ApiError(400, str(error)) from error

    def parse(self, body: bytes) -> ChatRequest:
        """Parse a body. Raises UserError if it is no valid request, ApiError if it is for another model."""
        chat = read_request(body)
        self.check_model(chat.model)
        return chat

    def check_model(self, name: str) -> None:
        """Raise ApiError if this is the name of another model."""
        if name != self.model_name:
            message = f"this server does not have the model '{cut(name)}'; it has '{self.model_name}'."
            raise ApiError(404, message, "model_not_found")

    def prepare(self, chat: ChatRequest) -> Request:
        """Read the images and tokenize.

        Raises UserError if something exceeds a limit, or cannot be read.
        """
        limits, engine = self.limits, self.engine
        longest = chat.max_completion_tokens or chat.max_tokens or limits.default_new_tokens
        if longest > limits.max_new_tokens:
            raise UserError(
                f"max_tokens must be at most {limits.max_new_tokens} on this server, got {longest}."
            )
        urls = chat.image_urls
        if len(urls) > limits.max_images:
            raise UserError(
                f"a request may have at most {limits.max_images} images on this server, got {len(urls)}."
            )
        temperature = chat.temperature or 0.0
        if temperature < COLDEST:
            temperature = 0.0
        wrap = getattr(engine.model.config, "mm_use_im_start_end", False)
        prompt = chat.prompt(engine.template, wrap)
        request = engine.prepare(
            prompt,
            read_images(urls, limits.image),
            Decoding(
                temperature,
                chat.top_p,
                max_new_tokens=longest,
                top_k=chat.top_k or 0,
                min_p=chat.min_p or 0.0,
                repetition_penalty=chat.repetition_penalty or 1.0,
            ),
            stop=chat.stop_texts,
            scale_factor=chat.scale_factor,
            seed=chat.seed,
        )
        if limits.max_prompt_tokens is not None and request.length > limits.max_prompt_tokens:
            raise UserError(
                f"a prompt may have at most {limits.max_prompt_tokens} tokens on this server, with visual "
                f"ones; this one has {request.length}."
            )
        return request

    async def chat(self, http: HttpRequest) -> Response:
        """Answer one request. Its place is freed when this call ends, or when the returned stream ends."""
        try:
            chat = Chat(self, self.engine.admit())
        except ShuttingDown:
            raise shutting_down() from None
        except QueueFull:
            raise ApiError(429, "the server is busy; try again later.", "queue_full", RETRY_AFTER) from None
        try:
            body = await self._unless_over(self._body(http, chat.deadline))
            asked = await self._unless_over(chat.start(body), _disconnected(http))
            if asked.stream:
                with_usage = asked.stream_options is not None and asked.stream_options.include_usage
                return Stream(self, chat, with_usage)
            response = await self._unless_over(self._whole(chat), _disconnected(http))
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
        """Read a body within the limits of size and time."""
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
            raise ApiError(408, "the body did not arrive in time.") from None
        except ClientDisconnect:
            raise self._gone() from None

    async def _unless_over(self, work: Awaitable, leaving: Awaitable | None = None):
        """Return the result of `work`; cancel it if the server ends or the client leaves before that."""
        working, ending = asyncio.ensure_future(work), asyncio.get_running_loop().create_future()
        waiting = {working, ending} | ({asyncio.ensure_future(leaving)} if leaving else set())
        # reads the error of cancelled work, which asyncio would log otherwise
        working.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._told_of_end.add(ending)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise shutting_down() if self.is_ending else self._gone()
        finally:
            self._told_of_end.discard(ending)
            for future in waiting:
                future.cancel()

    def _gone(self) -> ApiError:
        self.metrics.cancelled.inc()
        return ApiError(499, "the client disconnected.")


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def create_app(
    engine: Engine, model_name: str, limits: Limits | None = None, api_key: str | None = None
) -> FastAPI:
    """Build the application, which closes the engine when it shuts down.

    Args:
        model_name: the model's name in requests.
        api_key: the key that requests below /v1 must have; None: no key is needed.
    """
    server = Server(engine, model_name, limits or Limits(), api_key)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        server.end()
        await asyncio.to_thread(engine.close)
        server.reading.shutdown()
        server.fetching.shutdown()

    app = FastAPI(title="LLaVA", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server = server
    model = {"id": model_name, "object": "model", "created": int(time.time()), "owned_by": "local"}
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
        except Exception as error:
            logger.exception("a request failed")
            raise server_failed() from error
        finally:
            server.metrics.requests.labels(status).inc()

    @app.get("/v1/models", dependencies=key)
    async def models() -> dict:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", dependencies=key)
    async def model_of(name: str) -> dict:
        server.check_model(name)
        return model

    @app.get("/health")
    async def health() -> Response:
        if not engine.is_alive:
            raise ApiError(503, "the server is shutting down, or the model's thread has ended.")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    _shape_errors(app)
    return app


def _shape_errors(app: FastAPI) -> None:
    """Send every error in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def refused(request: HttpRequest, error: ApiError) -> Response:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def not_there(request: HttpRequest, error: HTTPException) -> Response:
        message = f"{cut(request.method)} {cut(request.url.path)}: {error.detail}."
        body = ApiError(error.status_code, message).body()
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: HttpRequest, error: Exception) -> Response:
        return JSONResponse(server_failed().body(), 500)
