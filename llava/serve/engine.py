"""The model behind a queue: one thread answers waiting requests, in a batch if their settings agree.

B is the number of requests in a batch, T the number of prompt ids (one IMAGE_TOKEN_INDEX for each image).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from threading import Condition, Thread

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from llava.constants import IMAGE_TOKEN_INDEX
from llava.decoding import Decoding, Stopping, TextStream
from llava.errors import UserError
from llava.inference import LoadedModel
from llava.mm_utils import left_pad, process_images, tokenizer_image_token

logger = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """The engine has as many requests as it admits."""


class ShuttingDown(QueueFull):
    """The engine accepts no more requests, and has ended those that it had."""


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, ready for the model; `length` is the number of its positions, image tokens included."""

    input_ids: list[int]
    length: int
    pixels: list[Tensor]
    image_sizes: list[tuple[int, int]]
    decoding: Decoding
    stop: tuple[str, ...] = ()
    scale_factor: int | None = None
    seed: int | None = None

    @property
    def total(self) -> int:
        """The most positions that prompt and answer may take."""
        return self.length + self.decoding.max_new_tokens

    def fits(self, other: "Request") -> bool:
        """Whether one call can answer both; a request with a seed goes alone, as a batch would change it."""
        return self.seed is None and other.seed is None and self._settings == other._settings

    @property
    def _settings(self) -> tuple:
        # requests for answers of different lengths can share a batch
        return replace(self.decoding, max_new_tokens=1), self.scale_factor


@dataclass(frozen=True)
class Event:
    """The progress of a request since the last event.

    Attributes:
        text: the text to add to the answer.
        num_tokens: tokens of the answer so far, its end mark included.
        finish: in the last event, "stop" if the model or a stop text ended the answer, "length" if the token
            or the time limit did.
        error: in the last event, the reason if the request failed.
    """

    text: str = ""
    num_tokens: int = 0
    finish: str | None = None
    error: Exception | None = None


class Ticket:
    """A place in the engine, held from before a request is read until its answer is sent."""

    def __init__(self, engine: "Engine"):
        self._engine = engine
        self._answer: Answer | None = None
        self._is_open = True

    def start(self, request: Request, emit: Callable[[Event], None], deadline: float = float("inf")) -> None:
        """Queue a request.

        Args:
            emit: is called with each event, in the engine's thread, or in another if the engine ends; it must
                not block.
            deadline: time.monotonic() at which the answer is cut off.
        """
        self._answer = Answer(request, emit, deadline, self._engine.stopping(request.stop))
        self._engine._enqueue(self._answer)

    def close(self) -> None:
        """Free the place, and end an unfinished answer; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._engine._release(self._answer)


class Answer:
    """A request that is being answered: its tokens so far, and the text of them that was sent.

    Generation continues after the tokens so far, so that after a failure no text is sent twice.
    """

    def __init__(self, request: Request, emit: Callable[[Event], None], deadline: float, stopping: Stopping):
        self.request, self.emit, self.deadline, self.stopping = request, emit, deadline, stopping
        self.stream = TextStream(stopping.tokenizer)
        self.sent = ""
        self.is_done = False

    @property
    def prompt_ids(self) -> list[int]:
        """The ids that the model reads before the next token."""
        return self.request.input_ids + self.stream.ids

    @property
    def num_left(self) -> int:
        """The number of tokens that the answer may still take."""
        return self.request.decoding.max_new_tokens - len(self.stream.ids)

    def push(self, token: int) -> None:
        """Add the next token; send the text that can no longer change, or the end of the answer."""
        self.stream.add(token)
        ids = self.stream.ids
        if token in self.stopping.eos_token_ids or self.stopping.is_over(self.stream.text):
            self._send(self.stopping.decode(ids), "stop")
        elif self.num_left < 1 or time.monotonic() >= self.deadline:
            self._send(self.stopping.decode(ids), "length")
        else:
            self._send(self.stopping.settled(self.stream.text), None)

    def _send(self, text: str, finish: str | None) -> None:
        if finish is not None:  # is_done never turns False again: another thread sets it if the client leaves
            self.is_done = True
        new, self.sent = text[len(self.sent) :], text
        if new or finish:
            self.emit(Event(new, len(self.stream.ids), finish))

    def fail(self, error: Exception) -> None:
        if not self.is_done:
            self.is_done = True
            self.emit(Event(num_tokens=len(self.stream.ids), error=error))


class _EachToken(StoppingCriteria):
    """Passes each row's new id to its answer; a row is done if its answer ended or its client left."""

    def __init__(self, answers: Sequence[Answer]):
        self.answers = answers

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        for answer, token in zip(self.answers, input_ids[:, -1].tolist(), strict=True):
            if not answer.is_done:
                answer.push(token)
        return torch.tensor([answer.is_done for answer in self.answers], device=input_ids.device)


class Engine:
    """Owns a loaded model and answers requests in batches.

    A batch is the oldest waiting request and all later ones that fit its settings and `token_budget`. Greedy
    answers are the same as for the request alone, apart from rounding. A batch ends with its last answer; the
    place of an answer that ends earlier, or whose client left, is free at once.

    If a batch fails, each of its answers is continued alone, so that only the faulty request fails.

    Args:
        loaded: the model.
        token_budget: the most prompt and answer tokens in a batch, padding and visual tokens included.
        max_requests: the number of places; `admit` refuses more requests.
        on_batch: is called with the size of each batch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        token_budget: int = 16384,
        max_requests: int = 64,
        on_batch: Callable[[int], None] = lambda size: None,
    ):
        self.loaded = loaded
        self.model, self.tokenizer, self.template = loaded.model, loaded.tokenizer, loaded.template
        self.token_budget, self.max_requests, self.on_batch = token_budget, max_requests, on_batch
        self._changed = Condition()
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._num_open = 0
        self._is_closed = False
        self._thread = Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def stopping(self, more: Sequence[str] = ()) -> Stopping:
        """The rule for where an answer ends; `more` holds a request's own stop texts."""
        return Stopping(self.model, self.tokenizer, self.template, more)

    @property
    def num_open(self) -> int:
        """The number of places in use, by requests that are being read, wait, or are being answered."""
        return self._num_open

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return sum(not answer.is_done for answer in self._running)

    @property
    def is_alive(self) -> bool:
        """Whether requests are accepted and answered."""
        return self._thread.is_alive() and not self._is_closed

    def admit(self) -> Ticket:
        """Reserve a place for one request.

        Raises:
            QueueFull: if no place is free.
            ShuttingDown: once the engine ends.
        """
        with self._changed:
            if self._is_closed:
                raise ShuttingDown
            if self._num_open >= self.max_requests:
                raise QueueFull
            self._num_open += 1
        return Ticket(self)

    def prepare(self, prompt: str, images: Iterable[Image.Image], decoding: Decoding, **options) -> Request:
        """Tokenize a prompt and make its pixels, in the caller's thread.

        Args:
            prompt: has one <image> for each image; tokenizer_image_token decides which <image> count.
            images: taken one at a time, so that a generator keeps only one in memory; no more are taken once
                the prompt is too long.
            options: stop, scale_factor and seed of the Request.
        Raises:
            UserError: if the model cannot take the images or the scale_factor, or if prompt and answer are
                longer than the model's context.
        """
        scale_factor = options.get("scale_factor")
        is_blind = self.model.get_vision_tower() is None
        if not is_blind and scale_factor is not None:
            self.model.tokens_per_image(scale_factor)  # refuses one that does not divide the grid
        input_ids = list(tokenizer_image_token(prompt, self.tokenizer))
        if is_blind and (IMAGE_TOKEN_INDEX in input_ids or scale_factor is not None):
            raise UserError("this model is text-only: it does not accept images or scale_factor.")
        num_text = sum(token != IMAGE_TOKEN_INDEX for token in input_ids)
        num_visual, pixels, sizes = 0, [], []
        for image in images:
            num_visual += self.model.visual_positions_of(image.size, scale_factor)
            self._check_length(num_text + num_visual, num_visual, decoding)
            pixels.append(process_images([image], self.loaded.image_processor, self.model.config)[0])
            sizes.append(image.size)
        assert len(input_ids) - num_text == len(pixels), "one <image> for each image"
        length = num_text + num_visual
        self._check_length(length, num_visual, decoding)
        return Request(input_ids, length, pixels, sizes, decoding, **options)

    def _check_length(self, length: int, num_visual: int, decoding: Decoding) -> None:
        """Raise UserError if the prompt and its answer are longer than the model's context."""
        if length + decoding.max_new_tokens > self.loaded.context_length:
            raise UserError(
                f"the prompt has {length} tokens ({num_visual} of them visual) and the answer up to "
                f"{decoding.max_new_tokens}, more than the model's context of {self.loaded.context_length}; "
                "shorten the messages, send fewer images, or lower max_tokens."
            )

    def end(self) -> None:
        """Accept no more requests, and end all answers with ShuttingDown, without waiting for the model."""
        with self._changed:
            self._is_closed = True
            for answer in (*self._waiting, *self._running):
                answer.fail(ShuttingDown())
            self._waiting.clear()
            self._changed.notify()

    def close(self) -> None:
        """End all answers with ShuttingDown, and wait for the thread to end."""
        self.end()
        self._thread.join()

    def _enqueue(self, answer: Answer) -> None:
        with self._changed:
            if self._is_closed:
                answer.fail(ShuttingDown())
                return
            self._waiting.append(answer)
            self._changed.notify()

    def _release(self, answer: Answer | None) -> None:
        with self._changed:
            self._num_open -= 1
            if answer is not None:
                answer.is_done = True
                if answer in self._waiting:
                    self._waiting.remove(answer)

    def _work(self) -> None:
        while batch := self._next_batch():
            if not self._answer(batch) and len(batch) > 1:
                for answer in batch:
                    if not answer.is_done:
                        self._answer([answer])

    def _answer(self, batch: list[Answer]) -> bool:
        """Answer a batch, and return whether that succeeded. If a batch of one fails, its request fails."""
        try:
            self.on_batch(len(batch))
            self._generate(batch)
        except Exception as error:  # the thread serves all requests: a batch that fails must not end it
            if not isinstance(error, UserError):
                logger.exception("a batch of %d requests failed", len(batch))
            if len(batch) == 1:
                batch[0].fail(error.with_traceback(None))  # a traceback's frames hold the batch's tensors
            return False
        return True

    def _next_batch(self) -> list[Answer]:
        """Wait for requests and return the next batch, or an empty list once the engine is closed."""
        with self._changed:
            self._running = []
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return []
            first = self._waiting[0]
            batch, longest = [], 0
            for answer in self._waiting:
                length = max(longest, answer.request.total)
                fits = first.request.fits(answer.request) and length * (len(batch) + 1) <= self.token_budget
                if answer is first or fits:
                    batch.append(answer)
                    longest = length
            self._waiting = deque(answer for answer in self._waiting if answer not in batch)
            self._running = batch
            return batch

    @torch.inference_mode()
    def _generate(self, batch: list[Answer]) -> None:
        requests = [answer.request for answer in batch]
        first = requests[0]
        # at least 1: no answer has tokens left if a batch failed at its last token
        longest = max(1, *(answer.num_left for answer in batch))
        decoding = replace(first.decoding, max_new_tokens=longest, compiled=self.loaded.compiled)
        # each answer looks for its own stop texts; generate needs only the ids
        stopping = self.stopping().kwargs()
        ends = {key: stopping[key] for key in ("eos_token_id", "pad_token_id")}
        # stays on the CPU: the model plans its merge there
        input_ids, attention_mask = left_pad([answer.prompt_ids for answer in batch], ends["pad_token_id"])
        pixels = [pixels.to(self.model.device) for request in requests for pixels in request.pixels]
        if first.seed is not None:
            torch.manual_seed(first.seed)
        self.model.generate(
            input_ids,
            attention_mask=attention_mask,
            images=pixels or None,
            image_sizes=[size for request in requests for size in request.image_sizes],
            scale_factor=first.scale_factor,
            stopping_criteria=[_EachToken(batch)],
            **decoding.kwargs(),
            **ends,
        )
