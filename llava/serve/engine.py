"""The model behind a queue: one thread answers what waits, together where the settings agree.

B requests of a batch, T prompt ids (one IMAGE_TOKEN_INDEX for each image).
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
    """As many requests as the engine admits are being answered or wait."""


class ShuttingDown(QueueFull):
    """The engine takes no more requests, and has ended those it had."""


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, ready for the model; `length` counts its positions, an image's tokens included."""

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
        """Positions that prompt and answer may take."""
        return self.length + self.decoding.max_new_tokens

    def fits(self, other: "Request") -> bool:
        """Whether one call can answer both; a seeded request goes alone, or its batch would change it."""
        return self.seed is None and other.seed is None and self._settings == other._settings

    @property
    def _settings(self) -> tuple:
        # answers of different length go together
        return replace(self.decoding, max_new_tokens=1), self.scale_factor


@dataclass(frozen=True)
class Event:
    """What came of a request since the last event.

    Attributes:
        text: to be added to the answer.
        num_tokens: of the answer so far, its end mark included.
        finish: with the last event, "stop" (the model or a stop text ended the answer) or "length" (the token
            or the time limit did).
        error: with the last event, why there is no answer.
    """

    text: str = ""
    num_tokens: int = 0
    finish: str | None = None
    error: Exception | None = None


class Ticket:
    """A place with the engine, held from before a request is read until its answer is sent."""

    def __init__(self, engine: "Engine"):
        self._engine = engine
        self._answer: Answer | None = None
        self._is_open = True

    def start(self, request: Request, emit: Callable[[Event], None], deadline: float = float("inf")) -> None:
        """Queue a request.

        Args:
            emit: called from the engine's thread with each event; must not block.
            deadline: time.monotonic() at which the answer is cut off.
        """
        self._answer = Answer(request, emit, deadline, self._engine.stopping(request.stop))
        self._engine._enqueue(self._answer)

    def close(self) -> None:
        """Free the place, and end an answer under way; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._engine._release(self._answer)


class Answer:
    """A request on its way: its tokens so far, and how much of their text was sent.

    Generation goes on behind the tokens there are, so that after a failure nothing is said anew.
    """

    def __init__(self, request: Request, emit: Callable[[Event], None], deadline: float, stopping: Stopping):
        self.request, self.emit, self.deadline, self.stopping = request, emit, deadline, stopping
        self.stream = TextStream(stopping.tokenizer)
        self.sent = ""
        self.is_done = False

    @property
    def prompt_ids(self) -> list[int]:
        """What the model reads before the next token."""
        return self.request.input_ids + self.stream.ids

    @property
    def num_left(self) -> int:
        """Tokens that the answer may still take."""
        return self.request.decoding.max_new_tokens - len(self.stream.ids)

    def push(self, token: int) -> None:
        """Take the next token; send the text that is certain, or the end."""
        self.stream.add(token)
        ids = self.stream.ids
        if token in self.stopping.eos_token_ids or self.stopping.is_over(self.stream.text):
            self._send(self.stopping.decode(ids), "stop")
        elif self.num_left < 1 or time.monotonic() >= self.deadline:
            self._send(self.stopping.decode(ids), "length")
        else:
            self._send(self.stopping.settled(self.stream.text), None)

    def _send(self, text: str, finish: str | None) -> None:
        if finish is not None:  # never back to False: the client may have left meanwhile, in another thread
            self.is_done = True
        new, self.sent = text[len(self.sent) :], text
        if new or finish:
            self.emit(Event(new, len(self.stream.ids), finish))

    def fail(self, error: Exception) -> None:
        if not self.is_done:
            self.is_done = True
            self.emit(Event(num_tokens=len(self.stream.ids), error=error))


class _EachToken(StoppingCriteria):
    """Hands the new id of every row to its answer; done are the rows that ended or whose client left."""

    def __init__(self, answers: Sequence[Answer]):
        self.answers = answers

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        for answer, token in zip(self.answers, input_ids[:, -1].tolist(), strict=True):
            if not answer.is_done:
                answer.push(token)
        return torch.tensor([answer.is_done for answer in self.answers], device=input_ids.device)


class Engine:
    """Owns a loaded model.

    Requests are taken in their order: the oldest one that waits, and with it all later ones that fit its
    settings and `token_budget`. Greedy answers are those of the request alone but for rounding. A batch ends
    with its last answer; the place of an answer that ends earlier, or whose client left, is free at once.

    If a batch fails, each of its answers is continued alone, so that only the request that is to blame fails.

    Args:
        loaded: the model.
        token_budget: prompt and answer tokens of a batch, padding and visual tokens included.
        max_requests: places; `admit` refuses more.
        on_batch: called with the size of each batch.
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
        """Where an answer ends, `more` being texts of a request's own."""
        return Stopping(self.model, self.tokenizer, self.template, more)

    @property
    def num_open(self) -> int:
        """Places taken: requests that are read, wait, or are being answered."""
        return self._num_open

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return sum(not answer.is_done for answer in self._running)

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken and answered."""
        return self._thread.is_alive() and not self._is_closed

    def admit(self) -> Ticket:
        """A place for one request.

        Raises:
            QueueFull: if all are taken.
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
            prompt: with one <image> for each image; of a MarkedPrompt, as tokenizer_image_token reads it.
            images: taken one at a time, so that a generator holds a single one of them in memory; no more are
                asked for once the prompt is too long.
            options: stop, scale_factor and seed of the Request.
        Raises:
            UserError: if the model cannot take this, or it is longer than the model's context.
        """
        scale_factor = options.get("scale_factor")
        is_blind = self.model.get_vision_tower() is None
        if not is_blind and scale_factor is not None:
            self.model.tokens_per_image(scale_factor)  # refuses one that does not divide the grid
        input_ids = list(tokenizer_image_token(prompt, self.tokenizer))
        if is_blind and (IMAGE_TOKEN_INDEX in input_ids or scale_factor is not None):
            raise UserError("this model is text-only: it takes no images and no scale_factor.")
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
        """Raises UserError if the prompt and its answer are longer than the model's context."""
        if length + decoding.max_new_tokens > self.loaded.context_length:
            raise UserError(
                f"the prompt takes {length} tokens ({num_visual} of them visual) and the answer up to "
                f"{decoding.max_new_tokens}, more than the model's context of {self.loaded.context_length}; "
                "shorten the messages, send fewer images, or lower max_tokens."
            )

    def end(self) -> None:
        """Take no more requests, and end all answers with ShuttingDown; does not wait for the model."""
        with self._changed:
            self._is_closed = True
            for answer in (*self._waiting, *self._running):
                answer.fail(ShuttingDown())
            self._waiting.clear()
            self._changed.notify()

    def close(self) -> None:
        """End all answers with an error and stop the thread."""
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
        """Answer a batch, and say whether that went well. If a batch of one fails, its request fails."""
        try:
            self.on_batch(len(batch))
            self._generate(batch)
        except Exception as error:  # the thread serves everyone: a batch that fails must not end it
            if not isinstance(error, UserError):
                logger.exception("a batch of %d requests failed", len(batch))
            if len(batch) == 1:
                batch[0].fail(error.with_traceback(None))  # whose frames hold the batch's tensors
            return False
        return True

    def _next_batch(self) -> list[Answer]:
        """Wait for requests; an empty list once the engine is closed."""
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
        # at least one, where it was an answer's last token that failed
        longest = max(1, *(answer.num_left for answer in batch))
        decoding = replace(first.decoding, max_new_tokens=longest, compiled=self.loaded.compiled)
        # texts that end a row are looked for by its answer; generate needs to know the ids alone
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
