"""What the commands that draw pictures share: flags, loading, and how they end."""

import argparse
from collections.abc import Callable
from pathlib import Path

from llava.command import exit_code
from llava.loading import add_loading_flags, loading_options


def parse_integers(text: str) -> list[int]:
    """Turn "0,5,-1" into [0, 5, -1]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers such as 0,5,-1, got {text!r}") from None


def picture_parser(name: str, purpose: str, files: str, asks: bool) -> argparse.ArgumentParser:
    """A parser with the flags of all pictures.

    Args:
        name: of the module in llava.visualization.
        purpose: what the picture shows.
        files: what --output_dir gets.
        asks: whether the model answers a question for it.
    """
    parser = argparse.ArgumentParser(prog=f"python -m llava.visualization.{name}", description=purpose)
    add = parser.add_argument
    add("--model_path", required=True, help="model folder")
    add("--model_base", help="language model folder that --model_path completes")
    add_loading_flags(parser, compiles=asks)  # without a question the tower runs once, and by parts
    add("--image_path", required=True, help="photograph")
    add("--output_dir", required=True, help=f"gets {files}")
    if asks:
        add("--text", required=True, help="question")
        add("--max_new_tokens", type=int, default=32, help="longest answer, tokens")
        add("--scale_factor", type=int, help="compression side; default: the checkpoint's own")
        add("--conv_mode", help="template; default: config.json's conv_version, else vicuna_v1")
    return parser


def load(args: argparse.Namespace) -> tuple:
    """(model, tokenizer, image_processor, image) as the flags ask.

    Raises:
        UserError: for what the user can mend; says how.
    """
    from llava.mm_utils import get_model_name_from_path, load_image
    from llava.model.builder import load_pretrained_model

    loading = loading_options(args)
    image = load_image(args.image_path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path, args.model_base, get_model_name_from_path(args.model_path), **loading
    )
    scale_factor = getattr(args, "scale_factor", None)
    if scale_factor is not None:
        model.set_scale_factor(scale_factor)
    return model, tokenizer, image_processor, image


def question_options(args: argparse.Namespace) -> dict:
    """The flags of how a question is answered and where attention is read, as the calls take them."""
    return {name: getattr(args, name) for name in ("layers", "head", "max_new_tokens", "conv_mode")}


def run(make: Callable[[argparse.Namespace], list[Path]], args: argparse.Namespace) -> int:
    """Make the files and print their paths, or the user's mistake; the exit code."""
    return exit_code(lambda: print(*make(args), sep="\n"))
