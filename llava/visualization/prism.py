"""What VisualPrism computes for an image: sub-bands, query paths, and each token's attention to patches."""

import argparse
from pathlib import Path

import numpy as np

from llava.visualization.command import load, parse_integers, picture_parser, run
from llava.visualization.prism_view import PrismView, prism_view


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = picture_parser("prism", __doc__, "prism.png, .svg and .npz", asks=False)
    parser.add_argument(
        "--scale_factors",
        type=parse_integers,
        help="scale factors, for example 2,4; default: the checkpoint's own, and those of 2, 3 and 4 that "
        "divide the grid",
    )
    return parser.parse_args(argv)


def write_prism(result: PrismView, output_dir: str | Path) -> list[Path]:
    """Draw the figure and keep the raw arrays.

    Args:
        output_dir: created if it does not exist. prism.npz gets `view`, `paths`, `fusion`, `path_norms`,
            `path_shares`, `subband_energy`, and `region_attention_s{s}` for each s, as in PrismView.
    Returns:
        the files written.
    """
    from llava.visualization.plots import save_figure
    from llava.visualization.plots_prism import prism_figure

    output_dir = Path(output_dir)
    written = save_figure(prism_figure(result), output_dir / "prism")
    np.savez_compressed(
        output_dir / "prism.npz",
        view=result.view,
        paths=np.array(result.paths),
        fusion=result.fusion,
        path_norms=result.path_norms,
        path_shares=result.path_shares(),
        subband_energy=result.subband_energy,
        **{f"region_attention_s{s}": weights for s, weights in result.region_attention.items()},  # type: ignore[arg-type]
    )
    return [*written, output_dir / "prism.npz"]


def make_prism(args: argparse.Namespace) -> list[Path]:
    """Load the model and the image, run VisualPrism and draw the figure."""
    model, _, image_processor, image = load(args)
    return write_prism(prism_view(model, image_processor, image, args.scale_factors), args.output_dir)


def main(argv: list[str] | None = None) -> int:
    return run(make_prism, parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
