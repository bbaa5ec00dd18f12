"""What the web page's buttons do: questions, answers that stream, and where the words of an answer looked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import gradio as gr

from llava.decoding import Decoding
from llava.errors import UserError
from llava.mm_utils import load_image
from llava.serve.chat import Chat, Turn
from llava.visualization.words import WordAttention, answer_words, draw_word

CLICK = "Click a word to see where the model looked when it said it."


class _Said(gr.Error):
    """What the visitor can mend: shown on the page, and not in the server's log."""

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


@dataclass
class Visit:
    """A visitor's conversation, the messages of it on the page, and the answer whose words are shown.

    Attributes:
        turn: number of that answer in the conversation; None: there is none.
        attention: of the answer last looked into, beside its Turn.
        word: the one looked at, or None: the whole answer.
        is_over: the visitor began a new one; an answer that is still on its way is shown no more.
    """

    chat: Chat
    shown: list = field(default_factory=list)
    turn: int | None = None
    attention: tuple[Turn, WordAttention] | None = None
    word: int | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Page:
    """The page's events.

    `ask` and `retry` give (message box, messages shown, visit, timing) as they are next; `words`, `choose`,
    `look`, `look_at_all` and `at_layer` give (words, pictures under heat, a line about them).

    Args:
        chat: a conversation with the model; each visit gets a fresh one.
    """

    chat: Chat

    def ask(
        self, message: dict, visit: Visit | None, num_tokens, temperature, top_p, max_new_tokens
    ) -> Iterator[tuple]:
        """Ask what was typed, about the pictures beside it.

        Args:
            message: {"text", "files": [path]}.
            visit: None at first.
            num_tokens: visual tokens of a view; None: the model's own.
            temperature, top_p, max_new_tokens: as Decoding takes them.
        """
        text = (message["text"] or "").strip()
        if not text:
            raise _Said("Ask something about the picture.")
        visit = visit or Visit(self.chat.fresh())
        asked = [{"role": "user", "content": {"path": path}} for path in message["files"]]
        asked.append({"role": "user", "content": text})
        with _untouched_by_errors(visit):
            for path in message["files"]:
                visit.chat.add_image(_picture(path))
            visit.shown = visit.shown + asked
            for _ in _answer(visit, text, num_tokens, temperature, top_p, max_new_tokens):
                yield None, visit.shown, visit, _timing(visit)
            if visit.is_over:
                yield _emptied()

    def retry(
        self, message: dict, visit: Visit | None, num_tokens, temperature, top_p, max_new_tokens
    ) -> Iterator[tuple]:
        """Answer the last question anew; as ask, but what is being typed stays."""
        if visit is None or not visit.chat.turns:
            raise _Said("Nothing was asked yet.")
        with _untouched_by_errors(visit):
            text = visit.chat.withdraw()
            visit.shown = visit.shown[:-1]
            for _ in _answer(visit, text, num_tokens, temperature, top_p, max_new_tokens):
                yield message, visit.shown, visit, _timing(visit)
            if visit.is_over:
                yield _emptied()

    def reset(self, visit: Visit | None) -> tuple:
        if visit is not None:
            visit.is_over = True
            visit.chat.stop()
        return None, [], None, ""

    def words(self, visit: Visit | None) -> tuple:
        """Offer the last answer's words."""
        return self._offer(visit, len(visit.chat.turns) - 1 if visit else -1)

    def choose(self, visit: Visit | None, event: gr.SelectData) -> tuple:
        """Offer the words of the answer that was clicked in the conversation, or whose question was."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        before = visit.shown[:index] if visit else []
        return self._offer(visit, sum(message["role"] == "assistant" for message in before))

    def look(self, visit: Visit | None, layer: int, event: gr.SelectData) -> tuple:
        """Where the clicked word looked."""
        return self._look(visit, layer, event.index)

    def look_at_all(self, visit: Visit | None, layer: int) -> tuple:
        """Where the whole answer looked, the mean over its tokens."""
        return self._look(visit, layer, None)

    def at_layer(self, visit: Visit | None, layer: int) -> tuple:
        """The same word in another layer; nothing is run anew."""
        if visit is None or visit.attention is None or visit.turn is None:
            return gr.skip(), gr.skip(), gr.skip()
        return self._look(visit, layer, visit.word)

    def _offer(self, visit: Visit | None, turn: int) -> tuple:
        if visit is None or not 0 <= turn < len(visit.chat.turns):
            return [], [], ""
        visit.turn, visit.attention, visit.word = turn, None, None
        words, _ = answer_words(
            visit.chat.tokenizer, visit.chat.turns[turn].ids, visit.chat.template.stop_str
        )
        return [(word, None) for word in words], [], CLICK

    def _look(self, visit: Visit | None, layer: int, word: int | None) -> tuple:
        if visit is None or visit.turn is None or visit.turn >= len(visit.chat.turns):
            raise _Said("Ask first: there is no answer to look into.")
        turn = visit.chat.turns[visit.turn]
        try:
            if visit.attention is None or visit.attention[0] is not turn:
                visit.attention = turn, visit.chat.attention(visit.turn)
        except UserError as error:
            raise _Said(str(error)) from error
        attention, visit.word = visit.attention[1], word
        images = [image for asked in visit.chat.turns[: visit.turn + 1] for image in asked.images]
        shares = attention.weights[layer].sum(axis=1)
        most = max(shares.max(), 1e-12)
        words = [(text, float(share / most)) for text, share in zip(attention.words, shares, strict=True)]
        name = "The whole answer" if word is None else f"“{attention.words[word]}”"
        share = float(attention.row(layer, word).sum())
        line = (
            f"{name}, layer {layer}: {share:.1%} of its attention on the visual tokens; red is "
            f"{attention.brightest(layer):.2%} or more on one of them."
        )
        pictures = [(picture, None) for picture in draw_word(attention, images, layer, word)]
        return words, gr.Gallery(pictures, selected_index=0), line


def stop(visit: Visit | None) -> None:
    """End the answer that is on its way.

    No method of Page: for each visitor gradio copies a state's callback with what it holds, the model too.
    """
    if visit is not None:
        visit.chat.stop()


def _picture(path: str):
    """An uploaded picture; an error calls it by its own name, not by its place on the server."""
    file = BytesIO(Path(path).read_bytes())
    file.name = Path(path).name
    return load_image(file)


def _answer(visit: Visit, text: str, num_tokens, temperature, top_p, max_new_tokens) -> Iterator[None]:
    """Answer on the page; gives nothing, each time that there is more to see, and at the end."""
    if num_tokens is not None:
        visit.chat.set_visual_tokens(int(num_tokens))
    decoding = Decoding(temperature, top_p, max_new_tokens=int(max_new_tokens))
    num_turns, said = len(visit.chat.turns), ""
    visit.chat.timing = visit.turn = visit.attention = None
    with closing(visit.chat.ask(text, decoding)) as pieces:
        visit.shown = [*visit.shown, {"role": "assistant", "content": said}]
        yield  # the question, and a visit that Stop can reach, ahead of the first word
        for piece in pieces:
            if visit.is_over:
                return
            said += piece
            visit.shown[-1] = {"role": "assistant", "content": said}
            yield
    if visit.is_over:
        return
    if len(visit.chat.turns) == num_turns:
        raise UserError("Nothing was said; the question counts as not asked.")
    visit.turn = num_turns
    yield


def _emptied() -> tuple:
    """The page of a new conversation, as the old one's answer leaves it: what it showed last may arrive after
    the page was emptied. What is being typed stays."""
    return gr.skip(), [], None, ""


def _timing(visit: Visit) -> str:
    return str(visit.chat.timing or "")


@contextmanager
def _untouched_by_errors(visit: Visit) -> Iterator[None]:
    """After an error the conversation is as it was before; what the visitor can mend is said on the page."""
    chat, shown = visit.chat, visit.shown
    turns, waiting = list(chat.turns), list(chat.waiting)
    try:
        yield
    except Exception as error:
        chat.turns, chat.waiting, visit.shown = turns, waiting, shown
        if isinstance(error, UserError):
            raise _Said(str(error)) from error
        raise
