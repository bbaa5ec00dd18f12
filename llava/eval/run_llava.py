"""Ask a model one question about one or more images, and print the answer."""

import argparse
from pathlib import Path

from llava.command import exit_code
from llava.errors import UserError
from llava.fetch import ADDRESSES, fetch
from llava.loading import add_loading_flags, loading_options

IMAGE_PLACEHOLDER = "<image-placeholder>"  # in a query, where an image goes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run_llava", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model-path", required=True, help="model folder (or a projector/LoRA folder beside --model-base)")
    add("--model-base", help="language model folder that --model-path completes")
    add("--image-file", required=True, help="path or http address; several with --sep between them")
    add("--query", required=True, help=f"the question; {IMAGE_PLACEHOLDER} where an image goes, else ahead")
    add("--conv-mode", help="template; default: config.json's conv_version, else vicuna_v1")
    add_loading_flags(parser)
    add("--sep", default=",", help="between image files")
    add("--temperature", type=float, default=0.0, help="0: greedy")
    add("--top_p", type=float, help="nucleus of this probability; only with a temperature")
    add("--num_beams", type=int, default=1, help="beams")
    add("--max_new_tokens", type=int, default=512, help="longest answer, tokens")
    add("--scale_factor", type=int, help="override the model's own compression side")
    return parser.parse_args(argv)


def read_images(image_file: str, sep: str) -> list[str | bytes]:
    """Paths, and what is at http addresses. Raises UserError for an address that gives nothing."""
    images = []
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
    """The answer's text.

    Args:
        args: with the attributes of `parse_args`; "scale_factor" and those of `add_loading_flags` may be
            absent.
    Raises:
        UserError: for what the user can mend; says how.
    """
    from llava.constants import DEFAULT_IMAGE_TOKEN
    from llava.conversation import template_of
    from llava.decoding import Decoding
    from llava.eval.generation import answer_batches, make_prompt
    from llava.eval.session import override_settings
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model

    loading = loading_options(args)
    decoding = Decoding(
        *(args.temperature, args.top_p, args.num_beams, args.max_new_tokens),
        compiled=loading["compile_vision"],
    )
    question = {
        "question_id": 0,
        "text": args.query.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN),
        "image": read_images(args.image_file, args.sep),
    }
    name = get_model_name_from_path(args.model_path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path, args.model_base, name, **loading
    )
    override_settings(model, None, getattr(args, "scale_factor", None))
    template = template_of(model.config, args.conv_mode)

    def refuse(question: dict, error: UserError) -> None:
        raise error

    prompt = make_prompt(question, model, tokenizer, template, Path())
    ((_, text),) = answer_batches(
        model,
        tokenizer,
        image_processor,
        [[prompt]],
        image_folder=Path(),
        template=template,
        decoding=decoding,
        refuse=refuse,
    )
    return text


def eval_model(args: argparse.Namespace) -> None:
    """Print the answer: the call that LLaVA's documentation shows for use from Python."""
    print(answer(args))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: eval_model(args))


if __name__ == "__main__":
    raise SystemExit(main())
