"""Serve a model over HTTP as OpenAI's chat completions; requests that wait are answered together."""

import argparse
import os

from llava.command import exit_code
from llava.errors import UserError
from llava.loading import add_loading_flags, loading_options


def build_parser(prog: str = "python -m llava.serve.api") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model-path", required=True, help="model folder (or a projector/LoRA folder beside --model-base)")
    add("--model-base", help="language model folder that --model-path completes")
    add("--model-name", help="what clients call the model; default: the folder's name")
    add("--conv-mode", help="template; default: config.json's conv_version, else vicuna_v1")
    add("--device", help="cuda, mps or cpu; default: the first of these there is")
    add("--load-4bit", action="store_true", help="quantise the language model to 4 bits")
    add("--load-8bit", action="store_true", help="quantise the language model to 8 bits")
    add_loading_flags(parser)
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all, then set an API key")
    add("--port", type=int, default=8000, help="port to listen at; 0: any free one")
    add("--api-key-env", metavar="NAME", help="environment variable that holds the key asked for below /v1")
    limits = parser.add_argument_group("limits").add_argument
    limits("--token-budget", type=positive, default=16384, help="prompt and answer tokens of a batch")
    limits("--max-requests", type=positive, default=64, help="answered, waiting and being read; then 429")
    limits("--max-body-bytes", type=positive, default=32 * 2**20, help="of a request, its images in base64")
    limits("--max-image-bytes", type=positive, default=10 * 2**20, help="of an encoded image")
    limits("--max-image-pixels", type=positive, default=64 * 10**6, help="of the square around an image")
    limits("--max-images", type=positive, default=8, help="of a request")
    limits("--max-prompt-tokens", type=positive, help="visual ones included; default: the model's context")
    limits("--max-new-tokens", type=positive, default=1024, help="longest answer that may be asked for")
    limits("--default-new-tokens", type=positive, default=512, help="longest answer, unless a request says")
    limits("--request-seconds", type=positive, default=120, help="from a request to its answer's end")
    limits("--allow-image-urls", action="store_true", help="fetch https image URLs, from public addresses")
    return parser


def positive(text: str) -> int:
    """A flag's whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def load_app(args: argparse.Namespace):
    """Load the model and build the application.

    Raises:
        UserError: for a folder that holds no model, an unknown template, an empty key, or an attention
            implementation that cannot be used here.
    """
    from llava.conversation import template_of
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model
    from llava.serve.app import Limits, create_app
    from llava.serve.engine import Engine
    from llava.serve.images import ImageLimits

    loading = loading_options(args)
    api_key = None
    if args.api_key_env:
        api_key = os.environ.get(args.api_key_env, "")
        if not api_key:
            raise UserError(f"--api-key-env {args.api_key_env}: that variable is not set, or empty.")
    loaded = load_pretrained_model(
        args.model_path,
        args.model_base,
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
        device=args.device,
        **loading,
    )
    engine = Engine(
        *loaded,
        template_of(loaded[1].config, args.conv_mode),
        token_budget=args.token_budget,
        max_requests=args.max_requests,
        compiled=args.compile,
    )
    limits = Limits(
        max_body_bytes=args.max_body_bytes,
        max_images=args.max_images,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        default_new_tokens=min(args.default_new_tokens, args.max_new_tokens),
        seconds=args.request_seconds,
        image=ImageLimits(args.max_image_bytes, args.max_image_pixels, args.allow_image_urls),
    )
    name = args.model_name or get_model_name_from_path(os.path.abspath(args.model_path))
    return create_app(engine, name, limits, api_key)


def serve(args: argparse.Namespace) -> None:
    """Load, then answer until the process is stopped.

    Raises:
        UserError: for what the user can mend; says how.
    """
    try:
        from llava.serve.app_process import run

        app = load_app(args)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'llava[serve]'") from error
    run(app, args.host, args.port)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return exit_code(lambda: serve(args))
    except KeyboardInterrupt:  # while the model loads
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
