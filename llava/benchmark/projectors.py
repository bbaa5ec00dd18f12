"""The cost of every projector at every compression, measured in one interleaved run.

Sizes are those of CLIP ViT-L/14 at 336 px (24x24 patches of 1024 channels, 4 levels) with a language model
of width 4096. Figures are for one batch: "forward" is a forward pass in evaluation without gradients, "step"
a forward and backward pass in training. With --forms the forward pass is also measured compiled, and, on a
GPU, in a CUDA graph.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from llava.benchmark.timing import (
    add_measure_flags,
    default_device,
    gflop,
    headline,
    medians,
    peak_mib,
    provenance,
    publish,
    table,
)
from llava.errors import UserError

GRID, VISION_WIDTH, NUM_LEVELS, LLM_WIDTH = 24, 1024, 4, 4096
UNCOMPRESSED = ("linear", "mlp2x_gelu")
PLAIN = "visualprism_plain"  # the published form, which --mm_projector_type does not have
FORM_NAMES = {"compile": "compiled", "graph": "in a CUDA graph"}
FORMS = tuple(FORM_NAMES)


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
    forward_mib: float  # peak memory, not counting weights and inputs
    step_mib: float
    forms_ms: dict[str, float] = field(default_factory=dict)  # the forward's, for each of --forms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--types", help=f"projector types, separated by commas; {PLAIN} is the published form; default: all")
    add("--scale_factors", type=int, nargs="+", default=[2, 3, 4])
    add("--batch_size", type=int, default=4, help="images")
    add(
        "--forms",
        nargs="+",
        choices=FORMS,
        default=[],
        help="forms of the forward pass that are timed besides the eager one",
    )
    flags = ("--repeats", "--device", "--dtype", "--output_dir", "--name")
    add_measure_flags(parser, *flags, repeats=7, dtype="float32", name="projectors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write NAME.md and NAME.json."""
    import torch

    device = args.device or default_device()
    types = args.types.split(",") if args.types else None
    if "graph" in args.forms and not device.startswith("cuda"):
        raise UserError("--forms graph needs a GPU, but there is none; leave it out.")
    rows = measure(
        *(types, args.scale_factors, args.batch_size, args.repeats, device, getattr(torch, args.dtype)),
        args.forms,
    )
    about = {**provenance(device, args.dtype), "batch_size": args.batch_size}
    content = {**about, "rows": [asdict(row) for row in rows]}
    publish(args, args.name, content, as_markdown(rows, about))


def measure(
    types: list[str] | None,
    scale_factors: list[int],
    batch_size: int,
    repeats: int,
    device: str,
    dtype,
    forms: Sequence[str] = (),
) -> list[Row]:
    """Return one row for each projector and s."""
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
    # the forward again, in its other forms, in turns
    of_forms = {
        (form, key): FORM[form](module, features) for form in forms for key, module in candidates.items()
    }
    form_seconds = medians(of_forms, repeats, device) if forms else {}
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
                {form: 1e3 * form_seconds[form, key] for form in forms},
            )
        )
    return rows


def build_candidates(types: list[str] | None, scale_factors: list[int], device: str, dtype) -> dict:
    """Return a dict from (type, s) to a projector; s is None for projectors that do not compress."""
    from llava.benchmark.plain_visualprism import PlainVisualPrism
    from llava.model.multimodal_projector.builder import (
        PROJECTORS,
        VisionFields,
        build_projector,
        projector_class,
    )

    names = types or [*UNCOMPRESSED, *(name for name, kind in PROJECTORS.items() if kind.compresses)]
    candidates = {}
    for name in names:
        kind = "visualprism" if name == PLAIN else name
        for scale_factor in scale_factors if projector_class(kind).compresses else [None]:
            fields = VisionFields(
                mm_projector_type=kind,
                mm_vision_config={"image_size": GRID * 14, "patch_size": 14},
                mm_hidden_size=VISION_WIDTH,
                mm_vision_levels=list(range(NUM_LEVELS)),
                scale_factor=scale_factor or 1,
            )
            module = build_projector(fields, LLM_WIDTH).to(device=device, dtype=dtype)
            if name == PLAIN:
                module.__class__ = PlainVisualPrism
            candidates[name, scale_factor] = module
    return candidates


def forward(module, features) -> Callable[[], None]:
    """Return a function that runs a forward pass in evaluation."""
    import torch

    def call() -> None:
        if module.training:
            module.eval()
        with torch.no_grad():
            module(features)

    return call


def compiled(module, features) -> Callable[[], None]:
    """Return a function that runs the evaluation forward compiled for this batch; its first call compiles."""
    import torch

    module.eval().prepare_to_compile()
    function = torch.compile(module, dynamic=False)

    def call() -> None:
        with torch.no_grad():
            function(features)

    return call


def graphed(module, features) -> Callable[[], None]:
    """Return a function that replays the evaluation forward as one CUDA graph."""
    import torch

    module.eval()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(2):  # libraries create their handles and workspaces before the capture
            module(features)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        module(features)
    return graph.replay


FORM = {"compile": compiled, "graph": graphed}


def step(module, features) -> Callable[[], None]:
    """Return a function that runs a forward and backward pass in training."""

    def call() -> None:
        module.train()
        module.zero_grad(set_to_none=True)
        module(features).sum().backward()

    return call


def milliseconds(time: float) -> str:
    return f"{time:.0f}" if time >= 100 else f"{time:.1f}" if time >= 10 else f"{time:.2f}"


def as_markdown(rows: list[Row], about: dict) -> str:
    columns = ["projector", "s", "tokens", "parameters, M", "GFLOP"]
    forms = list(rows[0].forms_ms)
    columns += ["forward, ms", *(f"{FORM_NAMES[form]}, ms" for form in forms)]
    columns += ["step, ms", "forward, MiB", "step, MiB"]
    cells = []
    for row in rows:
        line = [row.projector, row.scale_factor or "–", row.tokens, f"{row.parameters / 1e6:.1f}"]
        times = [row.forward_ms, *row.forms_ms.values(), row.step_ms]
        sizes = [f"{mib:.0f}" for mib in (row.forward_mib, row.step_mib)]
        cells.append([*line, f"{row.gflop:.1f}", *map(milliseconds, times), *sizes])
    size = f"{about['batch_size']} images of {GRID}x{GRID} patches"
    return f"{headline(about)}, {size}.\n\n{table(columns, cells)}"
