"""Over which parts of the sequence was an answer's attention spread? A figure, and the numbers behind it."""

import argparse
from pathlib import Path

from llava.visualization.command import load, parse_integers, picture_parser, question_options, run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = picture_parser("distribution", __doc__, "distribution.png, .svg and .npz", asks=True)
    parser.add_argument(
        "--layers", type=parse_integers, help="decoder layers, for example 0,5,-1; default: all"
    )
    parser.add_argument(
        "--head", type=int, help="one attention head, counted from 0; default: the mean over all heads"
    )
    return parser.parse_args(argv)


def write_distribution(result, text: str, output_dir: str | Path) -> list[Path]:
    """Draw the figure and keep the raw arrays.

    Args:
        result: SequenceAttention.
        text: the question, for the title.
        output_dir: created if it does not exist. distribution.npz gets `weights` float32[layers, tokens, T'],
            `entropy` float32[layers, tokens] in bits, `shares` float32[layers, tokens, 4], `spans` and their
            `bounds` int[4, 2], `layers`, `tokens` and `answer`.
    Returns:
        the files written.
    """
    import numpy as np

    from llava.visualization.plots import save_figure
    from llava.visualization.plots_sequence import sequence_figure
    from llava.visualization.sequence import SPANS

    output_dir = Path(output_dir)
    written = save_figure(sequence_figure(result, f"{text}  {result.answer}"), output_dir / "distribution")
    np.savez_compressed(
        output_dir / "distribution.npz",
        weights=result.weights,
        entropy=result.entropy,
        shares=result.shares(),
        spans=np.array(SPANS),
        bounds=result.bounds,
        layers=np.array(result.layers),
        tokens=np.array(result.tokens),
        answer=np.array(result.answer),
    )
    return [*written, output_dir / "distribution.npz"]


def make_distribution(args: argparse.Namespace) -> list[Path]:
    """Load the model, answer the question and draw the figure."""
    from llava.visualization.sequence import SPANS, sequence_attention

    model, tokenizer, image_processor, image = load(args)
    options = question_options(args)
    result = sequence_attention(model, tokenizer, image_processor, image, args.text, **options)
    shares = zip(SPANS, result.shares().mean(axis=(0, 1)), strict=True)
    print(f"question: {args.text}\nanswer: {result.answer}")
    print("attention: " + ", ".join(f"{name} {share:.1%}" for name, share in shares))
    return write_distribution(result, args.text, args.output_dir)


def main(argv: list[str] | None = None) -> int:
    return run(make_distribution, parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
