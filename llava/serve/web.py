"""A web page to talk with a model about pictures: streaming, a budget of visual tokens, timings."""

from __future__ import annotations

import argparse
import html
import os
from collections.abc import Sequence
from copy import deepcopy

from llava.command import Parser, exit_code
from llava.errors import UserError
from llava.inference import MODEL, add_flags, load_by_flags
from llava.serve.examples import questions

MAX_WAITING = 32  # questions of all visitors that may wait for the model
MAX_FILE_SIZE = "50mb"
KEEP_FILES = (3600, 86400)  # seconds: how often visitors' files are deleted, and how old they must be
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
HOW = "Add a picture or take an example, and ask about it. Then click a word to see where the model looked."
CLICK = "Click a word of an answer, and see."
# A toast shows an error, so the panels that gradio lays over every output after an error are hidden
CSS = """
[data-testid="status-tracker"]:has(.error) { display: none !important; }
.gradio-container > .main { padding: 16px clamp(12px, 2.5vw, 32px) !important; }
#title .html-container, #looked .html-container { padding: 0 !important; }
#title h1 { font-size: 1.6em; margin: 0; }
#title p { margin: 0.3em 0 0; }
#looked h2 { font-size: 1.1em; margin: 0; }
#looked p { margin: 0.3em 0 0; }
#words .textfield { max-height: 8em; overflow-y: auto; }
#words [role=button] { cursor: pointer; margin-right: 4px; padding: 0 4px; }
#words [role=button]:not(.highlighted) { border: 1px solid var(--color-accent); border-radius: 4px; }
#heat .grid-wrap { min-height: 0; height: auto !important; }
#heat .thumbnail-item { aspect-ratio: auto; height: 300px; border: none; background: none; }
#heat img { object-fit: contain; }
#timing:not(:has(p)) { display: none; }
#chat .message-buttons-right { display: none; }
#chat .message img { max-height: 160px; width: auto; }
#chat .placeholder-content { height: 100%; justify-content: center; }
#chat .placeholder { flex: none; height: auto; padding: 8px 16px; }
#chat .examples { grid-template-columns: minmax(0, 400px); justify-content: center; gap: 8px; padding: 8px; }
#chat .example { border: 1px solid var(--border-color-primary); padding: 8px; }
#chat .example-content { flex-direction: row; align-items: center; gap: 12px; }
#chat .example-image-container, #chat .example-image { width: 64px; height: 64px; margin: 0; flex: none; }
@media (max-width: 640px) {
  #chat { height: auto !important; min-height: 200px; max-height: 340px; }
  #chat .message img { max-height: 80px; }
  #chat .message-buttons-left { display: none; }
  #chat .bubble-wrap { padding-top: 0; }
  #chat .example-image-container, #chat .example-image { width: 44px; height: 44px; }
  #heat .thumbnail-item { height: 240px; }
  #timing p { font-size: 0.75em; }
  .column { gap: 8px !important; }
}
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.serve.web", description=__doc__)
    add_flags(parser, *MODEL, "--model-name")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; by default this machine alone")
    add("--port", type=int, default=7860, help="port to listen at")
    add("--share", action="store_true", help="also make a public address, through gradio's servers")
    return parser.parse_args(argv)


def build(chat, name: str | None = None):
    """Build the page as gradio Blocks.

    Args:
        chat: a llava.serve.chat.Chat with the model; its own conversation is not used.
        name: the model's name in the title; None: the name of the folder from which it was loaded.
    """
    import gradio as gr

    from llava.mm_utils import get_model_name_from_path
    from llava.serve import page_session
    from llava.serve.chat import token_budgets

    model = chat.model
    sees = model.get_vision_tower() is not None
    page = page_session.Page(chat, [message for (message,) in questions()] if sees else [])
    name = name or get_model_name_from_path(model.config.name_or_path)
    with gr.Blocks(
        title=f"LLaVA: {name}", analytics_enabled=False, fill_width=True, delete_cache=KEEP_FILES
    ) as blocks:
        state = gr.State(None, time_to_live=3600, delete_callback=page_session.stop)
        how = HOW if sees else "The model reads text alone. Ask it something."
        gr.HTML(f"<h1>LLaVA: {html.escape(name)}</h1><p>{how}</p>", elem_id="title")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                talk = _talk(page.examples)
            with gr.Column(scale=2, min_width=320):
                looked = _looking(visible=sees, num_layers=model.config.num_hidden_layers)
                settings = _settings(token_budgets(model), model.num_visual_tokens if sees else None)
        _connect(page, state, talk, looked, settings)
    return blocks.queue(max_size=MAX_WAITING)


def _talk(examples: Sequence[dict]) -> tuple:
    """Build the conversation: (message box, messages shown, timing, three buttons).

    Args:
        examples: example questions, shown until the first question.
    """
    import gradio as gr

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
    timing = gr.Markdown(elem_id="timing")
    message = gr.MultimodalTextbox(
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        placeholder="Add pictures, and ask about them",
        show_label=False,
    )
    with gr.Row():
        buttons = [
            gr.Button(name, size="sm", min_width=60, scale=scale)
            for name, scale in (("Stop", 1), ("Retry", 1), ("New conversation", 2))
        ]
    return message, shown, timing, buttons


def _looking(visible: bool, num_layers: int) -> tuple:
    """Build the attention panel: (words, whole-answer button, layer, pictures, line of text, column)."""
    import gradio as gr

    with gr.Column(visible=visible, elem_id="looked"):
        gr.HTML(f"<h2>Where did the model look?</h2><p>{CLICK}</p>")
        with gr.Column(visible=False) as column:
            words = gr.HighlightedText(show_label=False, show_legend=False, elem_id="words")
            pictures = gr.Gallery(
                show_label=False,
                object_fit="contain",
                buttons=["fullscreen"],
                elem_id="heat",
                interactive=False,
                visible=False,
            )
            line = gr.Markdown(elem_id="line")
        with gr.Row():
            layer = gr.Slider(0, num_layers - 1, num_layers - 1, step=1, label="Layer", scale=3)
            whole = gr.Button("Whole answer", size="sm", scale=1, min_width=100)
    return words, whole, layer, pictures, line, column


def _settings(budgets: dict[int, int], own: int | None) -> list:
    """Build the settings of the next answer: visual tokens of a view, temperature, top p, longest answer."""
    import gradio as gr

    with gr.Accordion("Settings of the next answer", elem_id="settings"):
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
    return [num_tokens, temperature, top_p, max_new_tokens]


def _connect(page, state, talk, looked, settings) -> None:
    """Connect each control to its action. Only one action at a time runs the model; others wait."""
    import gradio as gr

    from llava.serve import page_session

    message, shown, timing, (stop, retry, reset) = talk
    words, whole, layer, pictures, line, column = looked
    num_answers = gr.State(None)  # changes when an answer is complete
    talk = [message, shown, state, timing, num_answers, column]
    heat, offered = [words, pictures, line], [words, pictures, line, column]
    model = {"concurrency_id": "model", "concurrency_limit": 1}
    answers = [
        trigger(
            action,
            [message, state, *settings],
            talk,
            api_name=action.__name__,
            show_progress_on=message,  # in the conversation, progress would be a bubble before the question
            **model,
        )
        for trigger, action in ((message.submit, page.ask), (retry.click, page.retry))
    ]
    quick = {"queue": False, "api_visibility": "private"}
    num_answers.change(page.words, [state], offered, show_progress="hidden", **quick)
    shown.example_select(page.example, None, message, **quick)
    stop.click(page_session.stop, [state], api_name="stop", queue=False)
    for trigger, api_name in ((reset.click, "reset"), (shown.clear, False)):
        trigger(page.reset, [state], talk, api_name=api_name, queue=False, cancels=answers)
    shown.select(page.choose, [state], offered, api_name=False)
    words.select(page.look, [state, layer], heat, api_name=False, **model)
    whole.click(page.look_at_all, [state, layer], heat, api_name="look_at_all", **model)
    layer.input(page.at_layer, [state, layer], heat, api_name="at_layer", trigger_mode="always_last")


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

    chat = Chat(load_by_flags(args))
    blocks = build(chat, args.model_name or get_model_name_from_path(os.path.abspath(args.model_path)))
    try:
        blocks.launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options())
    except OSError as error:  # the port is taken
        raise UserError(f"--host {args.host} --port {args.port}: {error}") from error


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
