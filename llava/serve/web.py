"""A web page to talk with a model about pictures: streaming, a budget of visual tokens, timings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava.command import exit_code
from llava.decoding import Decoding
from llava.serve.cli import add_model_flags

if TYPE_CHECKING:
    from llava.serve.chat import Chat

MAX_WAITING = 32  # questions of all visitors that may wait for the model
MAX_FILE_SIZE = "50mb"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.web", description=__doc__, allow_abbrev=False
    )
    add_model_flags(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine alone)")
    add("--port", type=int, default=7860, help="port (default 7860)")
    add("--share", action="store_true", help="also make a public address, through gradio's servers")
    return parser.parse_args(argv)


@dataclass
class Visit:
    """A visitor's conversation, and the messages of it on the page."""

    chat: Chat
    shown: list = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What the page's buttons do: each gives (message box, messages shown, visit, timing) as they are next.

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
        import gradio as gr

        from llava.mm_utils import load_image

        text = (message["text"] or "").strip()
        if not text:
            raise gr.Error("Ask something about the picture.")
        visit = visit or Visit(self.chat.fresh())
        asked = [{"role": "user", "content": {"path": path}} for path in message["files"]]
        asked.append({"role": "user", "content": text})
        with _untouched_by_errors(visit):
            for image in [load_image(path) for path in message["files"]]:
                visit.chat.add_image(image)
            visit.shown += asked
            for _ in _answer(visit, text, num_tokens, temperature, top_p, max_new_tokens):
                yield None, visit.shown, visit, _timing(visit)

    def retry(
        self, message: dict, visit: Visit | None, num_tokens, temperature, top_p, max_new_tokens
    ) -> Iterator[tuple]:
        """Answer the last question anew; as ask, but what is being typed stays."""
        import gradio as gr

        if visit is None or not visit.chat.turns:
            raise gr.Error("Nothing was asked yet.")
        with _untouched_by_errors(visit):
            text = visit.chat.withdraw()
            visit.shown.pop()
            for _ in _answer(visit, text, num_tokens, temperature, top_p, max_new_tokens):
                yield message, visit.shown, visit, _timing(visit)

    def stop(self, visit: Visit | None) -> None:
        if visit is not None:
            visit.chat.stop()

    def reset(self, visit: Visit | None) -> tuple:
        self.stop(visit)
        return None, [], None, ""


def _answer(visit: Visit, text: str, num_tokens, temperature, top_p, max_new_tokens) -> Iterator[None]:
    """Answer on the page; gives nothing, each time that there is more to see, and at the end."""
    if num_tokens is not None:
        visit.chat.set_visual_tokens(int(num_tokens))
    decoding = Decoding(temperature, top_p, max_new_tokens=int(max_new_tokens))
    num_turns, said = len(visit.chat.turns), ""
    visit.chat.timing = None
    visit.shown.append({"role": "assistant", "content": said})
    with closing(visit.chat.ask(text, decoding)) as pieces:
        for piece in pieces:
            said += piece
            visit.shown[-1] = {"role": "assistant", "content": said}
            yield
    if len(visit.chat.turns) == num_turns:
        raise ValueError("The model said nothing; the question counts as not asked.")
    yield


def _timing(visit: Visit) -> str:
    return str(visit.chat.timing or "")


@contextmanager
def _untouched_by_errors(visit: Visit) -> Iterator[None]:
    """What the visitor can mend is said on the page, and the conversation is as it was before."""
    import gradio as gr

    turns, shown = list(visit.chat.turns), list(visit.shown)
    try:
        yield
    except ValueError as error:
        visit.chat.turns, visit.chat.waiting, visit.shown = turns, [], shown
        raise gr.Error(str(error)) from error


def build(chat):
    """The page as gradio Blocks.

    Args:
        chat: llava.serve.chat.Chat with the model; its own conversation is not used.
    """
    import gradio as gr

    from llava.serve.chat import token_budgets

    page, budgets = Page(chat), token_budgets(chat.model)
    own = chat.model.num_visual_tokens if budgets else None
    with gr.Blocks(title="LLaVA", analytics_enabled=False) as blocks:
        state = gr.State(None, time_to_live=3600, delete_callback=page.stop)
        with gr.Row():
            with gr.Column(scale=3):
                shown = gr.Chatbot(label="Conversation", height=560)
                message = gr.MultimodalTextbox(
                    file_types=["image"],
                    file_count="multiple",
                    placeholder="Add pictures, and ask about them",
                    show_label=False,
                )
                with gr.Row():
                    stop, retry, reset = gr.Button("Stop"), gr.Button("Retry"), gr.Button("New conversation")
            with gr.Column(scale=1):
                num_tokens = gr.Radio(
                    list(budgets), value=own, label="Visual tokens a view", visible=bool(budgets)
                )
                temperature = gr.Slider(0, 2, 0.2, step=0.05, label="Temperature (0: likeliest token)")
                top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p")
                max_new_tokens = gr.Slider(1, 2048, 512, step=1, label="Longest answer, tokens")
                timing = gr.Textbox(label="Timing", interactive=False)
        outputs = [message, shown, state, timing]
        inputs = [message, state, num_tokens, temperature, top_p, max_new_tokens]
        model = {"concurrency_id": "model", "concurrency_limit": 1}
        message.submit(page.ask, inputs, outputs, api_name="ask", **model)
        retry.click(page.retry, inputs, outputs, api_name="retry", **model)
        stop.click(page.stop, [state], api_name="stop", queue=False)
        reset.click(page.reset, [state], outputs, api_name="reset", queue=False)
    return blocks.queue(max_size=MAX_WAITING)


def run(args: argparse.Namespace) -> None:
    """Load the model and serve the page until interrupted. Raises ValueError for what the user can mend."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError("the page needs gradio; pip install 'llava[serve]'.") from error
    from llava.serve.chat import open_chat

    chat = open_chat(
        args.model_path,
        args.model_base,
        device=args.device,
        conv_mode=args.conv_mode,
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
    )
    try:
        build(chat).launch(
            server_name=args.host, server_port=args.port, share=args.share, max_file_size=MAX_FILE_SIZE
        )
    except OSError as error:  # the port is taken
        raise ValueError(f"--host {args.host} --port {args.port}: {error}") from error


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
