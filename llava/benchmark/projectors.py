"""What every projector costs at every compression, measured in one interleaved run.

Sizes are those of CLIP ViT-L/14 at 336 px (24x24 patches of 1024 channels, 4 levels) before a 4096-wide
language model. Figures are for one batch: forward in evaluation without gradients, step a forward and
backward in training.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from llava.benchmark.timing import (
    default_device,
    gflop,
    headline,
    medians,
    peak_mib,
    provenance,
    table,
    write,
)

GRID, VISION_WIDTH, NUM_LEVELS, LLM_WIDTH = 24, 1024, 4, 4096
UNCOMPRESSED = ("linear", "mlp2x_gelu")


@dataclass
class Row:
    """One projector at one s; times are medians."""

    projector: str
    scale_factor: int | None
    tokens: int
    parameters: int
    gflop: float
    forward_ms: float
    step_ms: float
    forward_mib: float  # most memory at a time beside weights and inputs
    step_mib: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--types", help="projector types, separated by commas; default: all that fit")
    parser.add_argument("--scale_factors", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--batch_size", type=int, default=4, help="images")
    parser.add_argument(
        "--repeats", type=int, default=7, help="timed rounds over all rows, after one of warm-up"
    )
    parser.add_argument("--device", help="cuda or cpu; default: cuda where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--output_dir", type=Path, default=Path("playground/benchmark"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write projectors.md and projectors.json."""
    import torch

    device = args.device or default_device()
    types = args.types.split(",") if args.types else None
    rows = measure(
        types, args.scale_factors, args.batch_size, args.repeats, device, getattr(torch, args.dtype)
    )
    about = {**provenance(device, args.dtype), "batch_size": args.batch_size}
    text = as_markdown(rows, about)
    write(args.output_dir, "projectors", {**about, "rows": [asdict(row) for row in rows]}, text)
    print(text)


def measure(
    types: list[str] | None, scale_factors: list[int], batch_size: int, repeats: int, device: str, dtype
) -> list[Row]:
    """One row a projector and s."""
    import torch
    from tqdm import tqdm

    from llava.model.multimodal_encoder.tower import VisionFeatures

    shape = (batch_size, GRID * GRID)
    features = VisionFeatures(
        torch.randn(*shape, VISION_WIDTH, device=device, dtype=dtype),
        torch.randn(*shape, NUM_LEVELS * VISION_WIDTH, device=device, dtype=dtype),
    )
    candidates = build_candidates(types, scale_factors, device, dtype)
    forwards = {key: forward(module, features) for key, module in candidates.items()}
    steps = {key: step(module, features) for key, module in candidates.items()}
    forward_seconds = medians(forwards, repeats, device)
    step_seconds = medians(steps, repeats, device)
    rows = []
    for key, module in tqdm(candidates.items(), desc="work and memory"):
        name, scale_factor = key
        with torch.no_grad():
            tokens = module.eval()(features).shape[1]
        rows.append(
            Row(
                name,
                scale_factor,
                tokens,
                sum(parameter.numel() for parameter in module.parameters()),
                gflop(forwards[key]),
                1e3 * forward_seconds[key],
                1e3 * step_seconds[key],
                peak_mib(forwards[key], device),
                peak_mib(steps[key], device),
            )
        )
    return rows


def build_candidates(types: list[str] | None, scale_factors: list[int], device: str, dtype) -> dict:
    """(type, s) to a projector; s is None for those that do not compress."""
    from llava.model.multimodal_projector.builder import PROJECTORS, build_projector, projector_class
    from llava.model.vision_config import VisionFields

    names = types or [*UNCOMPRESSED, *(name for name, kind in PROJECTORS.items() if kind.compresses)]
    candidates = {}
    for name in names:
        for scale_factor in scale_factors if projector_class(name).compresses else [None]:
            fields = VisionFields(
                mm_projector_type=name,
                mm_vision_config={"image_size": GRID * 14, "patch_size": 14},
                mm_hidden_size=VISION_WIDTH,
                mm_vision_levels=list(range(NUM_LEVELS)),
                scale_factor=scale_factor or 1,
            )
            candidates[name, scale_factor] = build_projector(fields, LLM_WIDTH).to(device=device, dtype=dtype)
    return candidates


def forward(module, features) -> Callable[[], None]:
    """An evaluation forward, as a call."""
    import torch

    def call() -> None:
        if module.training:
            module.eval()
        with torch.no_grad():
            module(features)

    return call


def step(module, features) -> Callable[[], None]:
    """A training forward and backward, as a call."""

    def call() -> None:
        module.train()
        module.zero_grad(set_to_none=True)
        module(features).sum().backward()

    return call


def as_markdown(rows: list[Row], about: dict) -> str:
    columns = ["projector", "s", "tokens", "parameters, M", "GFLOP"]
    columns += ["forward, ms", "step, ms", "forward, MiB", "step, MiB"]
    cells = []
    for row in rows:
        figures = (row.forward_ms, row.step_ms, row.forward_mib, row.step_mib)
        line = [row.projector, row.scale_factor or "–", row.tokens, f"{row.parameters / 1e6:.1f}"]
        cells.append([*line, f"{row.gflop:.1f}", *(f"{figure:.0f}" for figure in figures)])
    size = f"{about['batch_size']} images of {GRID}x{GRID} patches"
    return f"{headline(about)}, {size}.\n\n{table(columns, cells)}"
