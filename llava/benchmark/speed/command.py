"""From pixels to tokens: first token, prefill by parts, decoding, cache and batch at each number of tokens.

The weights are random, of a known shape. Times are medians over rounds in which all rows take turns. One row
is transformers' own LLaVA with the same weights. Ratios are also medians over rounds.
"""

from __future__ import annotations

import argparse

from llava.benchmark.speed.shapes import DEFAULT_DTYPE, SHAPES
from llava.benchmark.timing import add_measure_flags, check_place, default_device, provenance, publish
from llava.errors import UserError


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that this measure and that of a training step share."""
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="tiny", help="language model and tower")
    add("--layers", type=int, help="layers of the language model; fewer if the machine has too little memory")
    add("--projectors", default="visualprism", help="types of compressing projectors, separated by commas")
    add("--scale_factors", type=int, nargs="+", default=[2, 3, 4])
    add("--batch_size", type=int, default=1, help="number of sequences, each with one image")
    add("--text_tokens", type=int, default=40, help="tokens of text in the prompt")
    add_measure_flags(parser, "--repeats", "--device", "--dtype", "--processor_time")
    add_measure_flags(parser, "--output_dir", "--name", "--docs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shape_arguments(parser)
    add = parser.add_argument
    add("--new_tokens", type=int, default=32, help="tokens of the answer, at least 2")
    add(
        "--decode",
        choices=("eager", "compile"),
        default="eager",
        help="compile: tower and projector are compiled too",
    )
    add("--memory_gib", type=float, help="memory for the largest batch; default: the GPU's own, or 24")
    add("--no_theirs", action="store_true", help="leave out transformers' own LLaVA")
    add("--no_batch", action="store_true", help="leave out the largest batch")
    add(
        "--count_only",
        action="store_true",
        help="only count FLOPs and bytes, without weights or timing; works for any shape",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write speed_SHAPE.{md,json,png,svg}."""
    import torch

    from llava.benchmark.speed import measure, report
    from llava.benchmark.speed.plots import cost_figure, save

    if args.new_tokens < 2:
        raise UserError(f"--new_tokens must be at least 2, got {args.new_tokens}.")
    kind = "count" if args.count_only else "speed"
    name = args.name or file_name(kind, args, compiled=args.decode == "compile")
    check_place(args.docs, name)
    device, dtype = device_and_dtype(args)
    shape = SHAPES[args.shape].truncated(args.layers)
    same = ("batch_size", "text_tokens", "new_tokens", "repeats", "processor_time")
    settings = measure.Settings(
        device,
        getattr(torch, dtype),
        compiled=args.decode == "compile",
        memory_gib=args.memory_gib or default_memory(device),
        **{name: getattr(args, name) for name in same},
    )
    names = args.projectors.split(",")
    if args.count_only:
        rows = measure.count(shape, names, args.scale_factors, settings)
    else:
        rows = measure.measure(
            shape, names, args.scale_factors, settings, not args.no_theirs, not args.no_batch
        )
    about = describe(args, device, dtype, shape) | {
        "new_tokens": args.new_tokens,
        "decode": args.decode,
        "memory_gib": settings.memory_gib,
    }
    publish(args, name, {**about, "rows": rows}, report.as_markdown(rows, about))
    save(cost_figure(rows, about), args.output_dir / name)


def device_and_dtype(args: argparse.Namespace) -> tuple[str, str]:
    return args.device or default_device(), args.dtype or DEFAULT_DTYPE.get(args.shape, "bfloat16")


def describe(args: argparse.Namespace, device: str, dtype: str, shape) -> dict:
    """The run's provenance, and the shape and sizes that were measured."""
    return provenance(device, dtype) | {
        "shape": args.shape,
        "layers": shape.layers,
        "full_layers": shape.full_layers,
        "batch_size": args.batch_size,
        "text_tokens": args.text_tokens,
        "time": "processor" if args.processor_time else "wall",
    }


def default_memory(device: str) -> float:
    """The GPU's memory in GiB; without a GPU 24, the memory of a common one."""
    if not device.startswith("cuda"):
        return 24.0
    import torch

    return torch.cuda.get_device_properties(device).total_memory / 2**30


def file_name(kind: str, args: argparse.Namespace, compiled: bool = False) -> str:
    """The name of a run's files, and of its place on a page."""
    layers = [f"{args.layers}layers"] if args.layers else []
    return "_".join([kind, args.shape, *layers, *(["compile"] if compiled else [])])
