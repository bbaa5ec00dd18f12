"""Ask a model one question about one or more images, and print the answer."""

import argparse
from pathlib import Path

from llava.command import Parser, exit_code
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.decoding import Decoding
from llava.errors import UserError
from llava.fetch import ADDRESSES, fetch
from llava.inference import MODEL, SAMPLING, add_flags, load_by_flags


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.eval.run_llava", description=__doc__)
    add = parser.add_argument
    add("--image-file", required=True, help="path or http address of an image; separate several with --sep")
    add(
        "--query",
        required=True,
        help=f"the question; {IMAGE_PLACEHOLDER} marks the place of an image, by default the beginning",
    )
    add("--sep", default=",", help="separator of the image files")
    add_flags(parser, *MODEL, *SAMPLING, "--num_beams", "--max_new_tokens")
    return parser.parse_args(argv)


def read_images(image_file: str, sep: str) -> list[str | bytes]:
    """Return paths, and the content of http addresses. Raises UserError if one cannot be fetched."""
    images: list[str | bytes] = []
    for source in (part.strip() for part in image_file.split(sep)):
        if source.startswith(ADDRESSES):
            try:
                images.append(fetch(source))
            except UserError as error:
                raise UserError(f"--image-file {error}") from error
        else:
            images.append(source)
    return images


def answer(args: argparse.Namespace) -> str:
    """Return the answer's text.

    Args:
        args: has the attributes that `parse_args` sets; those of flags that LLaVA lacks may be absent.
    Raises:
        UserError: for a problem that the user can fix; says how.
    """
    from llava.eval.generation import answer_batches, make_prompt

    decoding = Decoding(
        *(args.temperature, args.top_p, args.num_beams, args.max_new_tokens),
        compiled=getattr(args, "compile", False),
    )
    question = {
        "question_id": 0,
        "text": args.query.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN),
        "image": read_images(args.image_file, args.sep),
    }
    loaded = load_by_flags(args)

    def refuse(question: dict, error: UserError) -> None:
        raise error

    prompt = make_prompt(question, loaded.model, loaded.tokenizer, loaded.template, Path())
    ((_, text),) = answer_batches(
        loaded.model,
        loaded.tokenizer,
        loaded.image_processor,
        [[prompt]],
        image_folder=Path(),
        template=loaded.template,
        decoding=decoding,
        refuse=refuse,
    )
    return text


def eval_model(args: argparse.Namespace) -> None:
    """Print the answer. LLaVA's documentation shows this call for use from Python."""
    print(answer(args))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: eval_model(args))


if __name__ == "__main__":
    raise SystemExit(main())
