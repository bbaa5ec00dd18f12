"""A web page to talk with a model about pictures: streaming, a budget of visual tokens, timings."""

from __future__ import annotations

import argparse
import html
import os
from collections.abc import Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import TYPE_CHECKING

from llava.command import Parser, exit_code, positive
from llava.errors import UserError
from llava.inference import MODEL, add_flags, load_by_flags
from llava.serve.examples import questions
from llava.serve.page_style import CSS, FONTS

if TYPE_CHECKING:
    from llava.serve.conversations import Conversations

MAX_WAITING = 32  # questions of all visitors that may wait for the model
MAX_FILE_SIZE = "50mb"
KEEP_FILES = (3600, 86400)  # seconds: how often visitors' files are deleted, and how old they must be
HOW = "Add a picture or take an example, and ask about it. Then click a word to see where the model looked."
CLICK = "Click a word of an answer, and see."
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}  # events that run the model
FOR_THE_PAGE = {"api_visibility": "private"}  # events that are no part of its API
SHOW_CARDS = "() => document.querySelector('#budgets').scrollIntoView({behavior: 'smooth'})"
# The server gives the link's query, and the browser knows the page's address. If the browser does not copy
# the link, the visitor can copy it from its box.
COPY_LINK = """query => {
  if (!query) return query;
  const link = new URL(query, location.href).href;
  navigator.clipboard?.writeText(link).catch(() => {});
  return link;
}"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.serve.web", description=__doc__)
    add_flags(parser, *MODEL, "--model-name")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; by default this machine alone")
    add("--port", type=int, default=7860, help="port to listen at")
    add(
        "--link-days",
        type=positive,
        default=30,
        help="days for which this machine keeps a conversation whose link a visitor copied",
    )
    add("--no-links", action="store_true", help="offer no links, and store no conversation")
    add("--share", action="store_true", help="also make a public address, through gradio's servers")
    return parser.parse_args(argv)


def build(chat, name: str | None = None, conversations: Conversations | None = None):
    """Build the page as gradio Blocks.

    Args:
        chat: a llava.serve.chat.Chat with the model; its own conversation is not used.
        name: the model's name in the title; None: the name of the folder from which it was loaded.
        conversations: stores those whose link is copied; None: the page offers no links.
    """
    import gradio as gr

    from llava.mm_utils import get_model_name_from_path
    from llava.serve import page_session
    from llava.serve.chat import token_budgets

    model = chat.model
    sees = model.get_vision_tower() is not None
    budgets = token_budgets(model)
    page = page_session.Page(chat, [message for (message,) in questions()] if sees else [])
    name = name or get_model_name_from_path(model.config.name_or_path)
    with gr.Blocks(
        title=f"LLaVA: {name}", analytics_enabled=False, fill_width=True, delete_cache=KEEP_FILES
    ) as blocks:
        state = gr.State(None, time_to_live=3600, delete_callback=page_session.stop)
        how = HOW if sees else "The model reads text alone. Ask it something."
        gr.HTML(f"<h1>LLaVA: {html.escape(name)}</h1><p>{how}</p>", elem_id="title")
        with gr.Row(elem_id="page"):  # page_style.py places its columns
            parts = SimpleNamespace(state=state, **_conversation(page.examples), **_looking(sees))
            vars(parts).update(_asking(sees, conversations is not None))
            vars(parts).update(
                _settings(sees, model.config.num_hidden_layers, budgets, model.num_visual_tokens)
            )
            with gr.Column(elem_id="budgets", min_width=0):
                parts.cards = gr.HTML()
        _connect(page, parts, num_budgets=max(1, len(budgets)))
        if conversations is not None:
            _connect_links(blocks, parts, chat, conversations)
    return blocks.queue(max_size=MAX_WAITING)


def _conversation(examples: Sequence[dict]) -> dict:
    """Build the messages shown, with example questions until the first question."""
    import gradio as gr

    with gr.Column(elem_id="said", min_width=0):
        shown = gr.Chatbot(
            show_label=False,
            height=430,
            buttons=["copy"],
            allow_file_downloads=False,
            elem_id="chat",
            placeholder="Take an example, or add a picture of your own below." if examples else None,
            examples=deepcopy(examples) or None,  # gradio changes them
            allow_tags=["image"],  # <image> is shown as it was typed
        )
    return {"shown": shown}


def _looking(visible: bool) -> dict:
    """Build the attention panel: an answer's words, the pictures, a line of text, and the column of these."""
    import gradio as gr

    with gr.Column(visible=visible, elem_id="looked", min_width=0):
        gr.HTML(f"<h2>Where did the model look?</h2><p>{CLICK}</p>")
        with gr.Column(visible=False, min_width=0) as column:
            words = gr.HighlightedText(show_label=False, show_legend=False, elem_id="words")
            pictures = gr.Gallery(
                show_label=False,
                object_fit="contain",
                buttons=["fullscreen"],
                elem_id="heat",
                interactive=False,
                visible=False,
                columns=1,
            )
            line = gr.Markdown(elem_id="line")
    return {"words": words, "pictures": pictures, "line": line, "column": column}


def _asking(sees: bool, keeps_links: bool) -> dict:
    """Build the timing, the message box and the buttons below it, and the box of a link."""
    import gradio as gr

    def button(name: str, visible: bool = True):
        return gr.Button(name, size="sm", visible=visible)

    with gr.Column(elem_id="asking", min_width=0):
        timing = gr.Markdown(elem_id="timing")
        message = gr.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            placeholder="Add pictures, and ask about them",
            show_label=False,
        )
        with gr.Row(elem_id="buttons"):
            buttons = {
                "stop": button("Stop"),
                "retry": button("Retry"),
                "reset": button("New conversation"),
                "compare": button("Compare budgets", sees),
                "save": button("Copy link", keeps_links),
            }
        link = gr.Textbox(
            label="Link to this conversation, as it is now",
            info="It works on this machine. Everybody who has it can read the conversation.",
            elem_id="link",
            visible=False,
            interactive=False,
            buttons=["copy"],
        )
    return {"timing": timing, "message": message, "link": link, **buttons}


def _settings(sees: bool, num_layers: int, budgets: dict[int, int], own: int) -> dict:
    """Build the layer that is shown, and the settings of the next answer."""
    import gradio as gr

    with gr.Column(elem_id="settings", min_width=0):
        with gr.Row(visible=sees):
            layer = gr.Slider(0, num_layers - 1, num_layers - 1, step=1, label="Layer", scale=3)
            whole = gr.Button("Whole answer", size="sm", scale=1, min_width=100)
        with gr.Accordion("Settings of the next answer"):
            num_tokens = gr.Radio(
                list(budgets),
                value=own if budgets else None,
                label="Visual tokens a view",
                info=f"The model's own: {own}. Fewer make it faster.",
                visible=bool(budgets),
            )
            temperature = gr.Slider(0, 2, 0.2, step=0.05, label="Temperature (0: likeliest token)")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p")
            max_new_tokens = gr.Slider(1, 2048, 512, step=1, label="Longest answer, tokens")
    settings = [num_tokens, temperature, top_p, max_new_tokens]
    return {"layer": layer, "whole": whole, "settings": settings}


def _connect(page, parts, num_budgets: int) -> None:
    """Connect each control to its action. Only one action at a time runs the model; others wait."""
    import gradio as gr

    from llava.serve import page_session

    message, state, layer = parts.message, parts.state, parts.layer
    num_answers = gr.State(None)  # changes when an answer is complete
    parts.restored = [parts.shown, state, parts.timing, num_answers]
    talk = [message, *parts.restored, parts.column]
    heat = [parts.words, parts.pictures, parts.line]
    offered = [*heat, parts.column]
    answers = [
        trigger(
            action,
            [message, state, *parts.settings],
            talk,
            api_name=action.__name__,
            show_progress_on=message,  # in the conversation, progress would be a bubble before the question
            **ONE_AT_A_TIME,
        )
        for trigger, action in ((message.submit, page.ask), (parts.retry.click, page.retry))
    ]
    answers += _connect_comparison(page.chat, parts, num_budgets)
    num_answers.change(page.words, [state], offered, show_progress="hidden", queue=False, **FOR_THE_PAGE)
    parts.shown.example_select(page.example, None, message, queue=False, **FOR_THE_PAGE)
    parts.stop.click(page_session.stop, [state], api_name="stop", queue=False)
    for trigger, event in ((parts.reset.click, {"api_name": "reset"}), (parts.shown.clear, FOR_THE_PAGE)):
        emptied = [*talk, parts.cards, parts.link]
        trigger(page.reset, [state], emptied, queue=False, cancels=answers, **event)
    parts.shown.select(page.choose, [state], offered, **FOR_THE_PAGE)
    parts.words.select(page.look, [state, layer], heat, **FOR_THE_PAGE, **ONE_AT_A_TIME)
    parts.whole.click(page.look_at_all, [state, layer], heat, api_name="look_at_all", **ONE_AT_A_TIME)
    layer.input(page.at_layer, [state, layer], heat, api_name="at_layer", trigger_mode="always_last")


def _connect_comparison(chat, parts, num_budgets: int) -> list:
    """Connect the comparison of budgets, and return its events: one for each budget."""
    from llava.serve.page_comparison import ComparisonActions

    actions, state, layer, cards = ComparisonActions(chat), parts.state, parts.layer, parts.cards
    quiet = {"show_progress": "hidden", **FOR_THE_PAGE}
    event = parts.compare.click(
        actions.start, [parts.message, state, parts.settings[-1], layer], [state, cards], **quiet
    )
    event.then(None, js=SHOW_CARDS)
    steps = []
    for _ in range(num_budgets):  # an event for each, so that others' questions come in between
        event = event.then(actions.step, [state, layer], cards, **quiet, **ONE_AT_A_TIME)
        steps.append(event)
    layer.input(actions.redraw, [state, layer], cards, trigger_mode="always_last", **quiet)
    return steps


def _connect_links(blocks, parts, chat, conversations: Conversations) -> None:
    """Connect the button that makes a link, and bring back the conversation of the page's own address."""
    from llava.serve.page_links import Links

    links = Links(chat, conversations)
    saved = parts.save.click(links.save, [parts.state], [parts.link], **FOR_THE_PAGE)
    saved.then(None, [parts.link], [parts.link], js=COPY_LINK)
    blocks.load(links.restore, None, parts.restored, show_progress="hidden", **FOR_THE_PAGE)


def launch_options() -> dict:
    """The arguments of gradio's launch other than the address."""
    import gradio as gr

    theme = gr.themes.Soft(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONTS)
    return {"theme": theme, "css": CSS, "max_file_size": MAX_FILE_SIZE, "footer_links": []}


def run(args: argparse.Namespace) -> None:
    """Load the model and serve the page until interrupted. Raises UserError for what the user can fix."""
    try:
        import cv2  # noqa: F401
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs {error.name}; pip install -e '.[serve]'.") from error
    from llava.mm_utils import get_model_name_from_path
    from llava.serve.chat import Chat
    from llava.serve.conversations import Conversations, default_folder

    conversations = None if args.no_links else Conversations(default_folder(), args.link_days)
    chat = Chat(load_by_flags(args))
    name = args.model_name or get_model_name_from_path(os.path.abspath(args.model_path))
    blocks = build(chat, name, conversations)
    try:
        blocks.launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options())
    except OSError as error:  # the port is taken
        raise UserError(f"--host {args.host} --port {args.port}: {error}") from error


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
