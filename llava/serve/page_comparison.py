"""The actions of the web page that compare budgets of visual tokens."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from llava.serve.chat import Chat
from llava.serve.comparison import Comparison
from llava.serve.page_session import PageSession, fail, question_of, read_picture, stop


@dataclass(frozen=True)
class ComparisonActions:
    """`start` gives (session, cards); `step` and `redraw` give the cards, in HTML.

    Each budget is an event of its own in the queue, so that the questions of other visitors come in between.

    Args:
        chat: a conversation with the model; each session gets a fresh one.
    """

    chat: Chat

    def start(
        self, message: dict, session: PageSession | None, max_new_tokens: int, layer: int
    ) -> tuple[Any, Any]:
        """Prepare to answer a question with each budget: the typed one, or the last if the box is empty.

        The model also reads the conversation before the question, which stays as it is.
        """
        session = session or PageSession(self.chat.fresh())
        try:
            chat = session.chat.copy()
            is_empty = not message["files"] and not (message["text"] or "").strip()
            text = chat.withdraw() if is_empty and chat.turns else question_of(message)
            for path in message["files"]:
                chat.add_image(read_picture(path))
            comparison = Comparison(chat, text, int(max_new_tokens))
        except Exception as error:
            fail(error)
            return gr.skip(), gr.skip()
        stop(session)
        session.comparison = comparison
        return session, comparison.html(layer)

    def step(self, session: PageSession | None, layer: int) -> Any:
        """Answer with the next budget."""
        if session is None or session.comparison is None:
            return gr.skip()
        try:
            session.comparison.answer_next()
        except Exception as error:
            session.comparison.stop()
            fail(error)
        return "" if session.is_over else session.comparison.html(layer)

    def redraw(self, session: PageSession | None, layer: int) -> Any:
        """Show the attention of the compared answers in another layer, without running the model again."""
        if session is None or session.comparison is None:
            return gr.skip()
        return session.comparison.html(layer)
