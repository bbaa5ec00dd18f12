"""The actions of the web page that make a link to a conversation, and that bring it back."""

from dataclasses import dataclass

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder

from llava.errors import UserError
from llava.serve.chat import Chat, Turn
from llava.serve.conversations import Conversations
from llava.serve.page_session import PageSession, asking, fail, talk_of

PARAMETER = "c"  # of the page's address
SHOWN_SIDE = 1024  # longest side of a picture on the page, pixels; the model gets the whole picture


@dataclass(frozen=True)
class Links:
    """`save` gives the link's box; `restore` gives (messages, session, timing, number of answers given).

    Args:
        chat: a conversation with the model; each session gets a fresh one.
        conversations: where they are stored.
    """

    chat: Chat
    conversations: Conversations

    def save(self, session: PageSession | None) -> dict:
        """Store the conversation as it is now, and show the query of its link."""
        try:
            if session is None or not session.chat.turns:
                raise UserError("There is no conversation yet. Ask a question first.")
            turns = list(session.chat.turns)
            if session.link is None or session.link[0] != turns:
                session.link = turns, self.conversations.save(turns)
        except Exception as error:
            fail(error)
            return gr.update(value="", visible=False)
        return gr.update(value=f"?{PARAMETER}={session.link[1]}", visible=True)

    def restore(self, request: gr.Request) -> tuple:
        """Bring back the conversation that the page's address names, if it names one."""
        name = request.query_params.get(PARAMETER)
        if name is None:
            return (gr.skip(),) * 4
        session = PageSession(self.chat.fresh())
        try:
            session.chat.resume(self.conversations.load(name))
        except Exception as error:
            fail(error)
            return (gr.skip(),) * 4
        turns = session.chat.turns
        session.link = list(turns), name
        session.shown = [message for turn in turns for message in _messages(turn)]
        session.turn, session.num_answers = len(turns) - 1, len(turns)
        return talk_of(session)


def _messages(turn: Turn) -> list[dict]:
    """A stored turn as messages of the page. Its pictures are copied to where gradio serves files from."""
    paths = []
    for image in turn.images:
        shown = image.copy()
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        paths.append(save_pil_to_cache(shown, get_upload_folder()))
    return [*asking(turn.text, paths), {"role": "assistant", "content": turn.answer}]
