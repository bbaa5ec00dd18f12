"""A conversation with a loaded model: its history, its pictures, and answers that come piece by piece.

s is the side, in patches, of the square that one visual token represents.
"""

import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Thread

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from llava.conversation import MarkedPrompt, chat_prompt
from llava.decoding import Decoding, Stopping, TextStream
from llava.errors import UserError
from llava.inference import LoadedModel, load_model
from llava.mm_utils import process_images, tokenizer_image_token
from llava.visualization.words import WordAttention, word_attention


@dataclass(frozen=True)
class Turn:
    """A question with its pictures, and the answer, which is None until there is one.

    Attributes:
        ids: token ids of the answer, without its end mark.
        scale_factor: the answer's s; None is the checkpoint's own.
    """

    text: str
    images: tuple[Image.Image, ...]
    answer: str | None = None
    ids: tuple[int, ...] = ()
    scale_factor: int | None = None


@dataclass(frozen=True)
class Timing:
    """The tokens and the time that an answer took.

    Attributes:
        prompt_tokens: positions of the prompt, visual tokens included.
        visual_tokens: positions that pictures took, separators of tiles included.
        new_tokens: tokens of the answer.
        first_token: seconds until the first new token; pictures are encoded in that time.
        seconds: seconds for the whole answer.
    """

    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    first_token: float
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of the tokens after the first; None if there are none."""
        later = self.new_tokens - 1
        return later / (self.seconds - self.first_token) if later > 0 else None

    def __str__(self) -> str:
        speed = self.tokens_per_second
        return (
            f"{self.visual_tokens} visual of {self.prompt_tokens} prompt tokens, "
            f"first token after {self.first_token:.2f} s, "
            f"{self.new_tokens} token{'s' * (self.new_tokens != 1)}"
            + (f" at {speed:.1f} tokens/s" if speed else "")
        )


class Chat:
    """One conversation.

    Args:
        loaded: the model that answers.
    Attributes:
        turns: answered questions, oldest first.
        waiting: pictures that go with the next question.
        scale_factor: s of the next answers; None is the checkpoint's own.
        timing: the last answer's Timing; None before there is one.
    """

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded
        self.model, self.tokenizer, self.template = loaded.model, loaded.tokenizer, loaded.template
        self.stopping = Stopping(self.model, self.tokenizer, self.template)
        self.scale_factor: int | None = None
        self._stopped = Event()
        self.reset()

    def reset(self) -> None:
        """Forget all turns, waiting pictures and the timing."""
        self.turns: list[Turn] = []
        self.waiting: list[Image.Image] = []
        self.timing: Timing | None = None

    def fresh(self) -> "Chat":
        """Another conversation with the same model."""
        return Chat(self.loaded)

    def copy(self) -> "Chat":
        """Another conversation with the same model, the same turns and the same waiting pictures."""
        copy = self.fresh()
        copy.turns, copy.waiting = list(self.turns), list(self.waiting)
        return copy

    def resume(self, turns: Iterable[Turn]) -> None:
        """Continue a conversation that was stored, perhaps with another model.

        Raises UserError if it has pictures and the model is text-only.
        """
        self.reset()
        offered = token_budgets(self.model).values()
        for turn in turns:
            if turn.images:
                self._check_sight()
            ids = turn.ids
            if self.stopping.decode(list(ids)) != turn.answer:  # another tokenizer's
                ids = tuple(self.tokenizer.encode(turn.answer, add_special_tokens=False))
            scale_factor = turn.scale_factor if turn.scale_factor in offered else None
            self.turns.append(replace(turn, ids=ids, scale_factor=scale_factor))

    def add_image(self, image: Image.Image) -> None:
        """Show an RGB picture with the next question. Raises UserError if the model is text-only."""
        self._check_sight()
        self.waiting.append(image)

    def _check_sight(self) -> None:
        if self.model.get_vision_tower() is None:
            raise UserError("the model is text-only and accepts no images; give a multimodal --model-path.")

    def set_visual_tokens(self, num_tokens: int) -> None:
        """Use this number of tokens for each view of a picture from now on, also for earlier pictures.

        Raises UserError if the model does not offer that number; the message names the choices.
        """
        budgets = token_budgets(self.model)
        if num_tokens not in budgets:
            can = f"choose from {', '.join(map(str, budgets))}" if budgets else "their number is fixed"
            raise UserError(f"the model cannot make {num_tokens} visual tokens: {can}.")
        self.scale_factor = budgets[num_tokens]

    def stop(self) -> None:
        """End the current answer at the model's next token; is called from another thread."""
        self._stopped.set()

    def withdraw(self) -> str:
        """Take back the last question and its answer; its pictures go with the next question again.

        Returns:
            The question's text.
        Raises:
            UserError: if nothing was asked.
        """
        if not self.turns:
            raise UserError("no question was asked yet.")
        turn = self.turns.pop()
        self.waiting[:0] = turn.images
        return turn.text

    def prompt(self, turns: list[Turn]) -> MarkedPrompt:
        """The prompt of the turns: up to the last answer if that is None, else with it."""
        wrap = getattr(self.model.config, "mm_use_im_start_end", False)
        said = [(turn.text, len(turn.images), turn.answer) for turn in turns]
        return chat_prompt(said, self.template, wrap)

    def ask(self, text: str, decoding: Decoding) -> Generator[str, None, None]:
        """Ask a question about the waiting and all earlier pictures; yields the answer piece by piece.

        An error in the question is raised at once, and `stop` has an effect from then on. Closing the
        iterator, or an exception in its thread (KeyboardInterrupt), stops the model at its next token; the
        text so far is then the answer. If there is no text yet, the question counts as not asked.

        Args:
            text: the question. <image> may mark where the pictures go; by default they come first. If no
                pictures wait, <image> is ordinary text.
        Raises:
            UserError: if the text and the pictures disagree, or the conversation is too long for the model
                or for the device's memory.
        """
        turn = Turn(text, tuple(self.waiting), scale_factor=self.scale_factor)
        inputs, positions, visual = self.inputs([*self.turns, turn])
        room = self.loaded.context_length - positions
        if room < 1:
            raise UserError(
                f"the conversation has {positions} tokens, {visual} of them visual, but the model's context "
                f"is {self.loaded.context_length}; start a new one, or use fewer visual tokens per picture."
            )
        decoding = replace(decoding, compiled=decoding.compiled or self.loaded.compiled)
        inputs |= {**decoding.kwargs(), **self.stopping.kwargs()}
        inputs["max_new_tokens"] = min(decoding.max_new_tokens, room)
        self._stopped = Event()
        return self._answer(turn, inputs, positions, visual)

    def _answer(self, turn: Turn, inputs: dict, positions: int, visual: int) -> Generator[str, None, None]:
        """Yield the answer to a turn that was checked; store the turn and its timing."""
        stream, shown = TextStream(self.tokenizer), ""
        start = time.perf_counter()
        first = None
        try:
            with closing(stream_tokens(self.model, self._stopped, **inputs)) as tokens:
                for token in tokens:
                    first = first or time.perf_counter()
                    if token in self.stopping.eos_token_ids:
                        break
                    stream.add(token)
                    settled = self.stopping.settled(stream.text)
                    piece, shown = settled[len(shown) :], settled
                    if piece:
                        yield piece
            whole = self.stopping.decode(stream.ids)
            piece, shown = whole[len(shown) :], whole
            if piece:
                yield piece
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a prompt of {positions} tokens needs more memory than the device has; start a new "
                "conversation, use fewer visual tokens per picture, or load the model in 4 bits."
            ) from error
        finally:
            if first is not None:
                now, count = time.perf_counter(), len(stream.ids)
                self.timing = Timing(positions, visual, count, first - start, now - start)
            if shown:
                self.turns.append(replace(turn, answer=shown, ids=tuple(stream.ids)))
                self.waiting = self.waiting[len(turn.images) :]

    def attention(self, number: int) -> WordAttention:
        """The attention of an answer's words to all pictures up to that turn; runs the model once.

        Args:
            number: the turn's number, from 0.
        Raises:
            UserError: like word_attention; also if the device's memory is too small.
        """
        turn = self.turns[number]
        inputs, positions, _ = self.inputs([*self.turns[:number], replace(turn, answer=None)])
        try:
            return word_attention(
                self.model,
                self.tokenizer,
                self.loaded.image_processor,
                inputs["input_ids"],
                turn.ids,
                inputs.get("images", []),
                inputs.get("image_sizes", []),
                stop_str=self.template.stop_str,
                scale_factor=turn.scale_factor,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the attention of {positions + len(turn.ids)} tokens needs more memory than the device has; "
                "choose a shorter conversation, or use fewer visual tokens per picture."
            ) from error

    def inputs(self, turns: list[Turn]) -> tuple[dict, int, int]:
        """Return the arguments of `generate` to answer the last turn at its s, the number of positions of the
        prompt, and the number that its pictures take."""
        input_ids = tokenizer_image_token(self.prompt(turns), self.tokenizer, return_tensors="pt")[None]  # type: ignore[call-overload]
        images = [image for turn in turns for image in turn.images]
        inputs: dict = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids).bool()}
        visual, scale_factor = 0, turns[-1].scale_factor
        if images:
            pixels = process_images(images, self.loaded.image_processor, self.model.config)
            sizes = [image.size for image in images]
            inputs |= {"images": [views.to(self.model.device) for views in pixels], "image_sizes": sizes}
            inputs["scale_factor"] = scale_factor
            visual = sum(self.model.visual_positions_of(size, scale_factor) for size in sizes)
        return inputs, input_ids.shape[1] - len(images) + visual, visual


def open_chat(model_path: str, model_base: str | None = None, **options) -> Chat:
    """Load a model for a conversation; options are those of llava.inference.load_model."""
    return Chat(load_model(model_path, model_base, **options))


def token_budgets(model) -> dict[int, int]:
    """Maps each number of visual tokens a view that may be chosen to its s, most tokens first.

    The dict is empty if the number is fixed.
    """
    if model.get_vision_tower() is None or not model.get_projector().compresses:
        return {}
    budgets, grid = {}, model.get_vision_tower().grid_side
    for scale_factor in range(1, grid + 1):
        try:
            budgets[model.tokens_per_image(scale_factor)] = scale_factor
        except UserError:  # s does not divide the grid, or the weights only fit another s
            continue
    return budgets


def stream_tokens(model, stopped: Event, **inputs) -> Generator[int, None, None]:
    """Run model.generate(**inputs) for one sequence in a thread, and yield the new ids as they come.

    Args:
        stopped: once set, the model ends at its next token. Closing the iterator sets it and waits for that.
    """
    queue: SimpleQueue = SimpleQueue()

    def generate():
        end = None
        try:
            model.generate(**inputs, streamer=_ToQueue(queue), stopping_criteria=[_Stopped(stopped)])
        except BaseException as error:  # is raised again where the tokens are read
            end = error
        queue.put(end)

    thread = Thread(target=generate, name="generate", daemon=True)
    thread.start()
    try:
        while isinstance(token := queue.get(), int):
            yield token
        if token is not None:
            raise token
    finally:
        stopped.set()
        thread.join()


class _ToQueue(BaseStreamer):
    def __init__(self, queue: SimpleQueue):
        self.queue = queue

    def put(self, value: Tensor) -> None:
        # The first value is the prompt, which is empty since it is given as embeddings
        for token in value.flatten().tolist():
            self.queue.put(token)

    def end(self) -> None:
        """Do nothing: the end of the thread ends the stream."""


class _Stopped(StoppingCriteria):
    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        return input_ids.new_full((len(input_ids),), self.event.is_set(), dtype=torch.bool)
