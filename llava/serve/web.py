"""A web page to talk with a model about pictures: streaming, a budget of visual tokens, timings."""

from __future__ import annotations

import argparse

from llava.command import exit_code
from llava.errors import UserError
from llava.serve.cli import add_model_flags
from llava.serve.examples import questions

MAX_WAITING = 32  # questions of all visitors that may wait for the model
MAX_FILE_SIZE = "50mb"
KEEP_FILES = (
    3600,
    86400,
)  # seconds: how often to look for visitors' files to delete, and how old they must be
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
CSS = """
#words .empty { min-height: 2.5em; }
#words .textfield { max-height: 11em; overflow-y: auto; }
#timing, #line { min-height: 1.6em; }
#chat img { max-height: 200px; width: auto; }
#examples img { max-height: 72px; }
"""


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


def build(chat):
    """The page as gradio Blocks.

    Args:
        chat: llava.serve.chat.Chat with the model; its own conversation is not used.
    """
    import gradio as gr

    from llava.serve import visit
    from llava.serve.chat import token_budgets

    page, model = visit.Page(chat), chat.model
    sees = model.get_vision_tower() is not None
    with gr.Blocks(
        title="LLaVA", analytics_enabled=False, fill_width=True, delete_cache=KEEP_FILES
    ) as blocks:
        state = gr.State(None, time_to_live=3600, delete_callback=visit.stop)
        with gr.Row():
            with gr.Column(scale=3, min_width=420):
                shown = gr.Chatbot(label="Conversation", height=440, buttons=["copy"], elem_id="chat")
                timing = gr.Markdown(elem_id="timing")
                message = gr.MultimodalTextbox(
                    file_types=["image"],
                    file_count="multiple",
                    sources=["upload"],
                    placeholder="Add pictures, and ask about them",
                    show_label=False,
                )
                with gr.Row():
                    stop, retry, reset = gr.Button("Stop"), gr.Button("Retry"), gr.Button("New conversation")
                if sees:
                    gr.Examples(questions(), message, label="Examples", elem_id="examples")
            with gr.Column(scale=2, min_width=360):
                looked = _looking(visible=sees, num_layers=model.config.num_hidden_layers)
                settings = _settings(token_budgets(model), model.num_visual_tokens if sees else None)
        _connect(page, state, message, shown, timing, (stop, retry, reset), looked, settings)
    return blocks.queue(max_size=MAX_WAITING)


def _looking(visible: bool, num_layers: int) -> tuple:
    """Where the model looked: (words, whole answer, layer, pictures, a line about them)."""
    import gradio as gr

    with gr.Column(visible=visible):
        words = gr.HighlightedText(
            label="Where did the model look? The answer's words", show_legend=False, elem_id="words"
        )
        pictures = gr.Gallery(
            show_label=False,
            height=320,
            object_fit="contain",
            preview=True,
            elem_id="heat",
            interactive=False,
        )
        line = gr.Markdown(elem_id="line")
        with gr.Row():
            layer = gr.Slider(0, num_layers - 1, num_layers - 1, step=1, label="Layer", scale=3)
            whole = gr.Button("Whole answer", scale=1)
    return words, whole, layer, pictures, line


def _settings(budgets: dict[int, int], own: int | None) -> list:
    """How the next answer is given: visual tokens of a view, temperature, top p, longest answer."""
    import gradio as gr

    with gr.Accordion("Settings"):
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


def _connect(page, state, message, shown, timing, buttons, looked, settings) -> None:
    """What each control does. Whatever runs the model waits for its turn at it."""
    from llava.serve import visit

    stop, retry, reset = buttons
    words, whole, layer, pictures, line = looked
    talk, heat = [message, shown, state, timing], [words, pictures, line]
    model = {"concurrency_id": "model", "concurrency_limit": 1}
    quick = {"queue": False, "api_visibility": "private"}
    answers = []
    for trigger, action in ((message.submit, page.ask), (retry.click, page.retry)):
        trigger(lambda: ([], [], ""), None, heat, **quick)
        answer = trigger(action, [message, state, *settings], talk, api_name=action.__name__, **model)
        answer.then(page.words, [state], heat, api_name=False)
        answers.append(answer)
    stop.click(visit.stop, [state], api_name="stop", queue=False)
    reset.click(page.reset, [state], talk, api_name="reset", queue=False, cancels=answers)
    reset.click(lambda: ([], [], ""), None, heat, **quick)
    shown.select(page.choose, [state], heat, api_name=False)
    words.select(page.look, [state, layer], heat, api_name=False, **model)
    whole.click(page.look_at_all, [state, layer], heat, api_name="look_at_all", **model)
    layer.input(page.at_layer, [state, layer], heat, api_name="at_layer", trigger_mode="always_last")


def launch_options() -> dict:
    """What gradio's launch takes beside the address."""
    import gradio as gr

    theme = gr.themes.Soft(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONTS)
    return {"theme": theme, "css": CSS, "max_file_size": MAX_FILE_SIZE, "footer_links": []}


def run(args: argparse.Namespace) -> None:
    """Load the model and serve the page until interrupted. Raises UserError for what the user can mend."""
    try:
        import cv2  # noqa: F401
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs {error.name}; pip install 'llava[serve]'.") from error
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
        build(chat).launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options())
    except OSError as error:  # the port is taken
        raise UserError(f"--host {args.host} --port {args.port}: {error}") from error


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
