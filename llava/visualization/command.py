"""Shared by the commands that draw pictures: flags, loading and exit codes."""

import argparse
from collections.abc import Callable
from pathlib import Path

from llava.command import Parser, exit_code
from llava.inference import LOADING, OVERRIDES, add_flags, load_by_flags


def parse_integers(text: str) -> list[int]:
    """Turn "0,5,-1" into [0, 5, -1]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, for example 0,5,-1, got {text!r}"
        ) from None


def picture_parser(name: str, purpose: str, files: str, asks: bool) -> Parser:
    """Return a parser with the flags that all pictures share.

    Args:
        name: the module's name in llava.visualization.
        purpose: what the picture shows.
        files: the files that are written to --output_dir.
        asks: whether the picture needs the model's answer to a question.
    """
    parser = Parser(prog=f"python -m llava.visualization.{name}", description=purpose)
    add = parser.add_argument
    add_flags(parser, "--model_path", "--model_base", *LOADING)
    add("--image_path", required=True, help="photograph")
    add("--output_dir", required=True, help=f"folder to write {files} to")
    if asks:
        add("--text", required=True, help="question")
        # No --compile without a question: the vision part runs only once, and not as one forward pass
        add_flags(parser, "--compile", "--conv_mode", *OVERRIDES, "--max_new_tokens", max_new_tokens=32)
    return parser


def load(args: argparse.Namespace) -> tuple:
    """Load (model, tokenizer, image_processor, image) as the flags say."""
    from llava.mm_utils import load_image

    image = load_image(args.image_path)
    loaded = load_by_flags(args)
    return loaded.model, loaded.tokenizer, loaded.image_processor, image


def question_options(args: argparse.Namespace) -> dict:
    """Return the flags for answering a question and reading attention, as keyword arguments."""
    return {name: getattr(args, name) for name in ("layers", "head", "max_new_tokens", "conv_mode")}


def run(make: Callable[[argparse.Namespace], list[Path]], args: argparse.Namespace) -> int:
    """Make the files and print their paths, or a UserError's message; return the exit code."""
    return exit_code(lambda: print(*make(args), sep="\n"))
