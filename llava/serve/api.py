"""Serve a model over HTTP as OpenAI's chat completions; requests that wait are answered together."""

import argparse
import os

from llava.command import Parser, exit_code, positive
from llava.errors import UserError
from llava.inference import MODEL, add_flags, load_by_flags


def build_parser(prog: str = "python -m llava.serve.api") -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=__doc__)
    add_flags(parser, *MODEL, "--model-name")
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 is all addresses: then set --api-key-env too",
    )
    add("--port", type=int, default=8000, help="port to listen at; 0 is any free port")
    add(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with the API key; clients must send it for all paths below /v1",
    )
    group = parser.add_argument_group("limits")
    add_flags(group, "--token-budget", "--max-new-tokens", max_new_tokens=1024)
    limits = group.add_argument
    limits("--max-requests", type=positive, default=64, help="requests at once; further ones get status 429")
    limits(
        "--max-body-bytes",
        type=positive,
        default=32 * 2**20,
        help="size of a request, with its images in base64",
    )
    limits("--max-image-bytes", type=positive, default=10 * 2**20, help="size of an encoded image")
    limits(
        "--max-image-pixels", type=positive, default=64 * 10**6, help="pixels of the square around an image"
    )
    limits("--max-images", type=positive, default=8, help="images in a request")
    limits(
        "--max-prompt-tokens",
        type=positive,
        help="tokens in a prompt, with visual ones; default: the model's context",
    )
    limits(
        "--default-new-tokens",
        type=positive,
        default=512,
        help="tokens in an answer if the request sets no limit",
    )
    limits(
        "--request-seconds",
        type=positive,
        default=120,
        help="seconds from a request to the end of its answer",
    )
    limits("--allow-image-urls", action="store_true", help="fetch images from https URLs at public addresses")
    return parser


def load_app(args: argparse.Namespace):
    """Load the model and build the application.

    Raises UserError for a folder that holds no model, an unknown template, an empty key, or an attention
    implementation that cannot be used here.
    """
    from llava.mm_utils import get_model_name_from_path
    from llava.serve.app import Limits, create_app
    from llava.serve.engine import Engine
    from llava.serve.images import ImageLimits

    api_key = None
    if args.api_key_env:
        api_key = os.environ.get(args.api_key_env, "")
        if not api_key:
            raise UserError(f"--api-key-env {args.api_key_env}: this variable is not set, or it is empty.")
    engine = Engine(load_by_flags(args), token_budget=args.token_budget, max_requests=args.max_requests)
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
    """Load the model, then answer requests until the process is stopped."""
    try:
        from llava.serve.app_process import run

        app = load_app(args)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; run pip install -e '.[serve]'.") from error
    run(app, args.host, args.port)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return exit_code(lambda: serve(args))
    except KeyboardInterrupt:  # while the model loads
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
