"""The actions of the web page's controls: questions, streamed answers, and the attention of their words."""

from __future__ import annotations

import html
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from PIL import Image

from llava.decoding import Decoding
from llava.errors import UserError
from llava.serve.chat import Chat, Turn
from llava.serve.comparison import Comparison
from llava.serve.images import ImageLimits, decode_image
from llava.visualization.words import WordAttention, answer_words, draw_word

BUG = "The model failed on this, and the server's log says why. Try again, or ask something else."


@dataclass
class PageSession:
    """A visitor's conversation, its messages on the page, and the answer whose words are shown.

    Attributes:
        turn: the number of that answer in the conversation; None if there is none.
        num_answers: the number of answers given, those that Retry replaced included.
        attention: the Turn of the answer that was inspected last, and its attention.
        word: the index of the word whose attention is shown; None: the whole answer.
        comparison: the budgets that were compared last.
        link: the turns that were stored last, and their id.
        is_over: whether the visitor began a new conversation; an unfinished answer is then no longer shown.
    """

    chat: Chat
    shown: list = field(default_factory=list)
    turn: int | None = None
    num_answers: int = 0
    attention: tuple[Turn, WordAttention] | None = None
    word: int | None = None
    comparison: Comparison | None = None
    link: tuple[list[Turn], str] | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Page:
    """The actions of the page's events.

    `ask` and `retry` give new values of (message box, messages shown, session, timing, number of answers
    given, column with the answer's words). `reset` gives these, the cards of the comparison and the link's
    box. `look`, `look_at_all` and `at_layer` give (words, pictures lit by the model's attention, a line about
    them); `words` and `choose` give these and the column. After an error the page is as it was before, and a
    toast shows the error.

    Args:
        chat: a conversation with the model; each session gets a fresh one.
        examples: example questions, each {"text", "files": [path]}.
    """

    chat: Chat
    examples: Sequence[dict] = ()

    def example(self, event: gr.SelectData) -> dict:
        """The content of the message box for the clicked example."""
        return self.examples[event.index]

    def ask(
        self, message: dict, session: PageSession | None, num_tokens, temperature, top_p, max_new_tokens
    ) -> Iterator[tuple]:
        """Ask the typed question about the pictures in the message box.

        Args:
            message: {"text", "files": [path]}.
            session: None at first.
            num_tokens: visual tokens of a view; None: the model's own number.
            temperature, top_p, max_new_tokens: see Decoding.
        """
        session = session or PageSession(self.chat.fresh())
        answer = self._ask(message, session, num_tokens, temperature, top_p, max_new_tokens)
        yield from _unless_it_fails(session, message, answer)

    def retry(
        self, message: dict, session: PageSession | None, num_tokens, temperature, top_p, max_new_tokens
    ) -> Iterator[tuple]:
        """Answer the last question again, like `ask`, but keep the content of the message box."""
        session = session or PageSession(self.chat.fresh())
        answer = self._retry(session, num_tokens, temperature, top_p, max_new_tokens)
        yield from _unless_it_fails(session, gr.skip(), answer)

    def _ask(self, message: dict, session: PageSession, *settings) -> Generator[tuple, None, None]:
        text = question_of(message)
        asked = asking(text, message["files"])
        for path in message["files"]:
            session.chat.add_image(read_picture(path))
        session.shown = session.shown + asked
        yield from _steps(session, None, _answer(session, text, *settings))

    def _retry(self, session: PageSession, *settings) -> Generator[tuple, None, None]:
        if not session.chat.turns:
            raise UserError("Nothing was asked yet. Ask a question first.")
        text = session.chat.withdraw()
        session.shown = session.shown[:-1]
        yield from _steps(session, gr.skip(), _answer(session, text, *settings))

    def reset(self, session: PageSession | None) -> tuple:
        if session is not None:
            session.is_over = True
            stop(session)
        return None, *_emptied(), "", gr.update(value="", visible=False)

    def words(self, session: PageSession | None) -> tuple:
        """Show the words of the newest answer, to be clicked."""
        return self._offer(session, None if session is None else session.turn)

    def choose(self, session: PageSession | None, event: gr.SelectData) -> tuple:
        """Show the words of the clicked answer, or of the answer to the clicked question, to be clicked."""
        index = event.index if isinstance(event.index, int) else event.index[0]
        before = session.shown[:index] if session else []
        return self._offer(session, sum(message["role"] == "assistant" for message in before))

    def look(self, session: PageSession | None, layer: int, event: gr.SelectData) -> tuple:
        """Show the attention of the clicked word."""
        return self._look(session, layer, event.index)

    def look_at_all(self, session: PageSession | None, layer: int) -> tuple:
        """Show the attention of the whole answer, the mean over its tokens."""
        return self._look(session, layer, None)

    def at_layer(self, session: PageSession | None, layer: int) -> tuple:
        """Show the attention of the same word in another layer, without running the model again."""
        if session is None or session.attention is None or session.turn is None:
            return gr.skip(), gr.skip(), gr.skip()
        return self._look(session, layer, session.word)

    def _offer(self, session: PageSession | None, turn: int | None) -> tuple:
        words = []
        if session is not None and turn is not None and 0 <= turn < len(session.chat.turns):
            session.turn, session.attention, session.word = turn, None, None
            ids = session.chat.turns[turn].ids
            words, _ = answer_words(session.chat.tokenizer, ids, session.chat.template.stop_str)
        offered = [(word, None) for word in words]
        return offered, gr.Gallery([], visible=False), "", gr.update(visible=bool(words))

    def _look(self, session: PageSession | None, layer: int, word: int | None) -> tuple:
        try:
            return _looked(session, layer, word)
        except Exception as error:
            fail(error)
            return gr.skip(), gr.skip(), gr.skip()


def _looked(session: PageSession | None, layer: int, word: int | None) -> tuple:
    """The attention of a word, or of the whole answer for None. Raises UserError if it cannot be shown."""
    if session is None or session.turn is None or session.turn >= len(session.chat.turns):
        raise UserError("Ask first: there is no answer to look into.")
    turn = session.chat.turns[session.turn]
    if session.attention is None or session.attention[0] is not turn:
        session.attention = turn, session.chat.attention(session.turn)
    attention, session.word = session.attention[1], word
    images = [image for asked in session.chat.turns[: session.turn + 1] for image in asked.images]
    shares = attention.weights[layer].sum(axis=1)
    most = max(shares.max(), 1e-12)
    words = [(text, float(share / most)) for text, share in zip(attention.words, shares, strict=True)]
    name = "The whole answer" if word is None else f"“{attention.words[word]}”"
    share = float(attention.row(layer, word).sum())
    line = (
        f"{name}, layer {layer}: {share:.1%} of its attention on the visual tokens. Brighter places got more "
        f"of it; the brightest, {attention.brightest(layer):.2%} or more on one token."
    )
    pictures = [(picture, None) for picture in draw_word(attention, images, layer, word)]
    return words, gr.Gallery(pictures, visible=True), html.escape(line)


def stop(session: PageSession | None) -> None:
    """End the current answer and the comparison.

    This is no method of Page, since gradio copies a state's callback for each visitor with all that it holds.
    For a method, that would include the model.
    """
    if session is not None:
        session.chat.stop()
        if session.comparison is not None:
            session.comparison.stop()


def question_of(message: dict) -> str:
    """The text of the message box. Raises UserError if there is none."""
    text = (message["text"] or "").strip()
    if not text:
        raise UserError("Ask something: type a question about the picture first.")
    return text


def asking(text: str, paths: Iterable[str]) -> list[dict]:
    """A question and its pictures as messages of the page."""
    pictures = [{"role": "user", "content": {"path": path}} for path in paths]
    return [*pictures, {"role": "user", "content": text}]


def read_picture(path: str) -> Image.Image:
    """Load an uploaded picture; an error shows the file's name, but not its path on the server."""
    try:
        return decode_image(Path(path).read_bytes(), ImageLimits.max_pixels)
    except UserError as error:
        raise UserError(f"The file {Path(path).name} cannot be read: {error}") from error


def _answer(
    session: PageSession, text: str, num_tokens, temperature, top_p, max_new_tokens
) -> Iterator[None]:
    """Answer on the page; yields None each time that there is more to show, and at the end."""
    if num_tokens is not None:
        session.chat.set_visual_tokens(int(num_tokens))
    decoding = Decoding(temperature, top_p, max_new_tokens=int(max_new_tokens))
    num_turns, said = len(session.chat.turns), ""
    session.chat.timing = session.turn = session.attention = None
    with closing(session.chat.ask(text, decoding)) as pieces:
        session.shown = [*session.shown, {"role": "assistant", "content": said}]
        yield  # shows the question, and makes the session known to Stop, before the first word
        for piece in pieces:
            if session.is_over:
                return
            said += piece
            session.shown[-1] = {"role": "assistant", "content": said}
            yield
    if session.is_over:
        return
    if len(session.chat.turns) == num_turns:
        raise UserError("The model said nothing, so the question counts as not asked.")
    session.turn = num_turns
    session.num_answers += 1
    yield


def _steps(session: PageSession, message, answer: Iterator[None]) -> Iterator[tuple]:
    """Yield the page's new values at each step of an answer.

    The first step sets the message box and hides the words of the old answer.
    """
    column = gr.update(visible=False)
    for _ in answer:
        yield message, *talk_of(session), column
        message = column = gr.skip()  # the next question may be being typed, and the new words be shown


def talk_of(session: PageSession) -> tuple:
    """The page's messages, the session, its timing, and the number of answers given."""
    return session.shown, session, str(session.chat.timing or ""), session.num_answers


def _emptied() -> tuple:
    """The values of a new conversation, except the message box."""
    return [], None, "", None, gr.update(visible=False)


def _unless_it_fails(session: PageSession, message, answer: Generator[tuple, None, None]) -> Iterator[tuple]:
    """Show an answer on the page. If it fails, the conversation is restored, and a toast says why.

    Args:
        message: the content of the message box after a failure.
        answer: the steps of the answer; they end early once the session is over.
    """
    chat = session.chat
    talk = list(chat.turns), list(chat.waiting), chat.timing
    looked = session.shown, session.turn, session.attention
    has_begun = False
    try:
        with closing(answer):
            for step in answer:
                has_begun = True
                yield step
    except Exception as error:
        chat.turns, chat.waiting, chat.timing = talk
        session.shown, session.turn, session.attention = looked
        _log_if_bug(error)  # also if the visitor has left the conversation, and no toast is shown
        if not session.is_over:
            _show(error)
            restored = message, *talk_of(session), gr.update(visible=session.turn is not None)
            yield restored if has_begun else (gr.skip(),) * len(restored)
    if session.is_over:  # the old conversation's last output may arrive after the page was emptied
        yield gr.skip(), *_emptied()


def _log_if_bug(error: Exception) -> None:
    """Print the traceback of an error that no visitor can fix."""
    if not isinstance(error, UserError):
        traceback.print_exception(error)


def fail(error: Exception) -> None:
    """Show an error in a toast, and print its traceback if no visitor can fix it."""
    _log_if_bug(error)
    _show(error)


def _show(error: Exception) -> None:
    """Show an error in a toast, which takes HTML."""
    text = str(error)
    gr.Warning(html.escape(text[:1].upper() + text[1:]) if isinstance(error, UserError) else BUG)
