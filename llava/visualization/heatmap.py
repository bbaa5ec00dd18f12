"""Which parts of an image did each word of the answer attend to? A sheet for each layer, and its numbers."""

import argparse
from pathlib import Path

from llava.visualization.command import load, parse_integers, picture_parser, question_options, run

PICTURE_SIDE = 448  # longest side of a panel's picture, pixels
SCALES = {
    "attention": "attention to a visual token (%)",
    "rollout": "rollout to a visual token (%)",
    "relevance": "share of the image's relevance (%)",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    files = "heatmap_layer{L}.png and .svg, more pages if the answer is long, and heatmap.npz"
    parser = picture_parser("heatmap", __doc__, files, asks=True)
    add = parser.add_argument
    add("--layers", type=parse_integers, default=[-1], help="decoder layers, for example 0,5,-1")
    add(
        "--method",
        default="attention",
        help="attention: that of each layer; rollout, relevance: computed over all layers up to that layer",
    )
    add(
        "--head",
        type=int,
        help="one head for --method attention, counted from 0; default: the mean over all heads",
    )
    add("--smooth", action="store_true", help="interpolate between tokens instead of drawing blocks")
    return parser.parse_args(argv)


def write_heatmaps(result, image, text: str, output_dir: str | Path, smooth: bool = False) -> list[Path]:
    """Draw sheets for each layer (the image, the mean over several words, each word) and keep the raw arrays.

    Relevance is drawn as shares within each panel, because its magnitude depends on that of the logit.

    Args:
        result: AnswerAttention of `image`.
        image: PIL, RGB.
        text: the question, for the title.
        output_dir: created if it does not exist. A long answer's further pages are heatmap_layer{L}_page{N}.
            heatmap.npz gets `weights` float32[layers, tokens, M'] of `method`, `layers`, `tokens`, `words`,
            `word_of_token` (-1: white space), `boxes` float[M', 4] (left, top, right, bottom of each visual
            token in image pixels) and `answer`.
        smooth: interpolate between tokens.
    Returns:
        the files written.
    """
    import numpy as np

    from llava.visualization.plots import contact_sheets, paint_tokens, save_figure

    output_dir = Path(output_dir)
    shown = image.copy()
    shown.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    mapping = result.mapping.resized(*shown.size)
    written = []
    for layer in result.layers:
        rows = list(zip(result.words, result.word_weights(layer), strict=True))
        if len(rows) > 1:
            rows.insert(0, ("mean of the answer", result.mean_weights(layer)))
        if result.method == "relevance":
            rows = [(name, row / max(row.sum(), np.finfo(row.dtype).tiny)) for name, row in rows]
        else:
            rows = [(f"{name} ({row.sum():.1%})", row) for name, row in rows]
        panels = [(caption, paint_tokens(row, mapping, smooth)) for caption, row in rows]
        title = f"{text}  ({result.method}, layer {layer})"
        sheets = contact_sheets(np.asarray(shown), panels, title, SCALES[result.method])
        for page, figure in enumerate(sheets, start=1):
            name = f"heatmap_layer{layer}" + (f"_page{page}" if page > 1 else "")
            written += save_figure(figure, output_dir / name)
    word_of_token = np.full(len(result.tokens), -1)
    for word, tokens in enumerate(result.word_tokens):
        word_of_token[tokens] = word
    np.savez_compressed(
        output_dir / "heatmap.npz",
        weights=result.weights,
        method=np.array(result.method),
        layers=np.array(result.layers),
        tokens=np.array(result.tokens),
        words=np.array(result.words),
        word_of_token=word_of_token,
        boxes=result.mapping.boxes(),
        answer=np.array(result.answer),
    )
    return [*written, output_dir / "heatmap.npz"]


def make_heatmaps(args: argparse.Namespace) -> list[Path]:
    """Load the model, answer the question and draw the sheets."""
    from llava.visualization.answer import image_attention
    from llava.visualization.attention import check_method

    check_method(args.method, args.head)
    model, tokenizer, image_processor, image = load(args)
    options = question_options(args)
    result = image_attention(
        *(model, tokenizer, image_processor, image, args.text),
        method=args.method,
        compiled=args.compile,
        **options,
    )
    print(f"question: {args.text}\nanswer: {result.answer}")
    return write_heatmaps(result, image, args.text, args.output_dir, args.smooth)


def main(argv: list[str] | None = None) -> int:
    return run(make_heatmaps, parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
