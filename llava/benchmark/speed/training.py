"""A training step of a whole model: samples a second, and its share of the machine's peak FLOP/s (MFU).

A step is forward, backward and AdamW in the dtype, with random weights of a known shape. Stage 1 trains the
projector. Stage 2 also trains the language model, in full or by LoRA. The tower is frozen. MFU counts the
FLOPs that the step needs, without recomputation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from llava.benchmark.machine import PRODUCT_SIZE, product_flops
from llava.benchmark.speed.command import add_shape_arguments, describe, device_and_dtype, file_name
from llava.benchmark.speed.shapes import SHAPES, Shape, attention_flop, language_flop, tower_flop
from llava.benchmark.timing import (
    Clock,
    check_place,
    gflop,
    headline,
    median,
    median_ratio,
    publish,
    table,
    take_turns,
)
from llava.errors import UserError

# FLOP/s of dense bfloat16 and float16 products by NVIDIA's data sheets; the names are the driver's
PEAKS = {
    "NVIDIA A10": 125e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}
FORWARD_AND_BACKWARD = 3  # FLOPs in those of the forward pass; a linear map with a frozen weight saves one
OUT_OF_MEMORY = "out of memory"
OPTIONS = {  # a flag to its mark in file names ("": none), its text in the headline, its help
    "lora": ("lora", "by LoRA", "stage 2 with LoRA adapters of rank 128 for the language model"),
    "gradient_checkpointing": (
        "recompute",
        "gradient checkpointing",
        "recompute activations: less memory, more arithmetic",
    ),
    "use_liger_kernel": (
        "liger",
        "Liger's kernels",
        "use Liger's fused kernels, as training does with this flag",
    ),
    "compile_layers": (
        "compiled",
        "layers compiled",
        "compile each layer of the language model with torch.compile",
    ),
    "compile_vision": ("", "vision compiled", "compile tower and projectors with torch.compile"),
}
LORA = {"r": 128, "lora_alpha": 256, "lora_dropout": 0.05}  # scripts/v1_5/finetune_lora.sh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shape_arguments(parser)
    parser.set_defaults(batch_size=4, repeats=3)
    add = parser.add_argument
    add("--stage", type=int, choices=(1, 2), default=2, help="1: only the projector is trained")
    add("--answer_tokens", type=int, default=20, help="how many of the text tokens have a label")
    for name, (_, _, help_text) in OPTIONS.items():
        add(f"--{name}", action="store_true", help=help_text)
    add(
        "--peak_tflops",
        type=float,
        help="peak of the machine; default: known for the GPU's name, or a matrix product is timed",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write step_SHAPE.{md,json}."""
    if args.lora and args.stage == 1:
        raise UserError("--lora needs --stage 2: stage 1 trains only the projector.")
    if not 0 < args.answer_tokens < args.text_tokens:
        raise UserError(
            f"--answer_tokens must be from 1 to {args.text_tokens - 1}, less than --text_tokens, "
            f"got {args.answer_tokens}."
        )
    name = args.name or step_name(args)
    check_place(args.docs, name)
    device, dtype = device_and_dtype(args)
    shape = SHAPES[args.shape].truncated(args.layers)
    rows = measure(shape, args, device, dtype)
    peak, source = peak_flops(device, dtype, args.peak_tflops, Clock(device, args.processor_time))
    for row in rows:
        if "seconds" in row:
            row["mfu"] = 1e9 * row["gflop"] / row["seconds"] / peak
    about = describe(args, device, dtype, shape)
    about |= {name: getattr(args, name) for name in ("stage", "answer_tokens", *OPTIONS)}
    about |= {"peak_flops": peak, "peak_source": source}
    publish(args, name, {**about, "rows": rows}, as_markdown(rows, about))


def step_name(args: argparse.Namespace) -> str:
    """The name of the run's files, with a mark for stage 1 and for each option that is set and has a mark."""
    marks = ["stage1"] if args.stage == 1 else []
    marks += [mark for name, (mark, _, _) in OPTIONS.items() if mark and getattr(args, name)]
    return "_".join([file_name("step", args), *marks])


def measure(shape: Shape, args: argparse.Namespace, device: str, dtype_name: str) -> list[dict]:
    """A row for each projector and s, with the medians of steps that take turns."""
    import torch

    from llava.benchmark.speed.models import build_model, build_prompt, build_variants
    from llava.model.liger import apply_liger_kernels

    dtype, clock = getattr(torch, dtype_name), Clock(device, args.processor_time)
    model = build_model(shape, device, dtype)
    variants = build_variants(model, args.projectors.split(","), args.scale_factors, dtype)
    if args.use_liger_kernel:
        apply_liger_kernels(model)
    model.requires_grad_(args.stage == 2 and not args.lora)
    if args.lora:
        add_lora(model)
    model.get_vision_tower().requires_grad_(False)
    for variant in variants:
        variant.projector.requires_grad_(True)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if args.compile_vision:
        for module in (model.get_vision_tower(), *(variant.projector for variant in variants)):
            module.compile(dynamic=False)
    if args.compile_layers:
        for layer in model.get_decoder().layers:  # all layers share one graph for each shape
            layer.compile(dynamic=False)
    of_projectors = {id(p) for variant in variants for p in variant.projector.parameters()}
    language_model = [p for p in model.parameters() if p.requires_grad and id(p) not in of_projectors]
    shared = _optimizer(language_model, device) if language_model else None
    prompt = build_prompt(model, args.batch_size, args.text_tokens, dtype)
    labels = prompt.input_ids.clone()
    labels[:, : -args.answer_tokens] = -100
    steps = {v: _step(model, v, prompt, labels, shared, device) for v in variants}
    peaks = {v: peak_gib(step, model, device) for v, step in steps.items()}
    fitting = {
        v: lambda step=step: {"seconds": clock.timed(step)}
        for v, step in steps.items()
        if peaks[v] is not OUT_OF_MEMORY
    }
    rounds = take_turns(fitting, args.repeats)
    rows = []
    for variant in variants:
        tokens = variant.num_tokens(model)
        row: dict = {"name": variant.name, "scale_factor": variant.scale_factor, "tokens": tokens}
        row |= {"gflop": step_gflop(model, shape, variant, args, tokens), "peak_gib": peaks[variant]}
        if variant in rounds:
            seconds = median(rounds[variant], "seconds")
            row |= {"seconds": seconds, "samples_per_second": args.batch_size / seconds}
            row |= {"rounds": rounds[variant]}
            if variants[0] in rounds:
                row["step_ratio"] = median_ratio(rounds[variant], rounds[variants[0]], "seconds")
        rows.append(row)
    return rows


def add_lora(model) -> None:
    """Add the language model's adapters that scripts/v1_5/finetune_lora.sh trains, in the model's dtype."""
    from peft import LoraConfig

    from llava.model.adapters import VISION_MODULES, linear_maps

    config = LoraConfig(**LORA, target_modules=linear_maps(model), exclude_modules=VISION_MODULES)
    model.add_adapter(config)
    for parameter in model.parameters():  # peft makes adapters in float32
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)


def peak_gib(step: Callable[[], None], model, device: str) -> float | str | None:
    """Peak memory of a step in GiB, weights included; OUT_OF_MEMORY if it fails; None without a GPU."""
    import torch

    if not device.startswith("cuda"):
        step()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step()  # makes the optimiser's state
        step()
        return torch.cuda.max_memory_allocated() / 2**30
    except torch.OutOfMemoryError:
        model.zero_grad(set_to_none=True)
        return OUT_OF_MEMORY


def _optimizer(parameters, device: str):
    import torch

    return torch.optim.AdamW(parameters, lr=1e-6, fused=device.startswith("cuda"))


def _step(model, variant, prompt, labels, shared, device: str) -> Callable[[], None]:
    """A function that does one step; ids and labels are on the CPU, as a collator gives them."""
    own = _optimizer(variant.projector.parameters(), device)
    optimizers = [own] if shared is None else [own, shared]

    def step() -> None:
        variant.put_into(model)
        model.train()
        loss = model(input_ids=prompt.input_ids, labels=labels, images=prompt.images, use_cache=False).loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def step_gflop(model, shape: Shape, variant, args: argparse.Namespace, tokens: int) -> float:
    """GFLOP that a step needs: tower forward; projector, in training mode, and LLM forward and backward."""
    import torch

    from llava.benchmark.speed.measure import like_features

    variant.put_into(model)
    model.train()
    features = like_features(model, args.batch_size)
    scale = [variant.scale_factor] if variant.projector.compresses else []
    with torch.no_grad():
        projector = gflop(lambda: variant.projector(features, *scale))
    positions = tokens + args.text_tokens
    language = language_flop(shape, args.batch_size, positions, args.answer_tokens) / 1e9
    attention = attention_flop(shape, args.batch_size, positions) / 1e9
    frozen_maps = language - attention if args.stage == 1 or args.lora else 0
    tower = tower_flop(shape.tower, args.batch_size, model.get_vision_tower().depth) / 1e9
    return tower + FORWARD_AND_BACKWARD * (projector + language) - frozen_maps


def peak_flops(device: str, dtype: str, given_tflops: float | None, clock: Clock) -> tuple[float, str]:
    """The machine's peak FLOP/s, and the source of that number."""
    import torch

    if given_tflops is not None:
        return given_tflops * 1e12, "--peak_tflops"
    if device.startswith("cuda") and dtype != "float32":
        name = torch.cuda.get_device_name(device)
        if name in PEAKS:
            return PEAKS[name], f"{name}'s data sheet"
    size = PRODUCT_SIZE[device.split(":")[0]]
    flops = product_flops(device, getattr(torch, dtype), clock)
    return flops, f"best of ten products of {size} x {size} matrices"


def as_markdown(rows: list[dict], about: dict) -> str:
    options = "".join(f", {said}" for name, (_, said, _) in OPTIONS.items() if about[name])
    size = (
        f"{about['shape']}, {about['layers']} of {about['full_layers']} layers; stage {about['stage']}, "
        f"batch {about['batch_size']}, {about['text_tokens']} tokens of text, {about['answer_tokens']} with "
        f"a label{options}, {about['time']} time"
    )
    columns = [
        "projector",
        "s",
        "tokens",
        "step, ms",
        "relative to 576",
        "samples/s",
        "GFLOP per step",
        "MFU",
    ]
    columns += ["peak, GiB"]
    cells = []
    for row in rows:
        line = [row["name"], row["scale_factor"] or "–", row["tokens"]]
        if "seconds" in row:
            ratio = f"{row['step_ratio']:.2f}" if "step_ratio" in row else "–"
            line += [f"{1e3 * row['seconds']:.0f}", ratio, f"{row['samples_per_second']:.2f}"]
            line += [f"{row['gflop']:.0f}", f"{row['mfu']:.1%}"]
        else:
            line += ["–", "–", "–", f"{row['gflop']:.0f}", "–"]
        peak = row["peak_gib"]
        cells.append([*line, f"{peak:.1f}" if isinstance(peak, float) else peak or "–"])
    peak = f"MFU is relative to {about['peak_flops'] / 1e12:.3g} TFLOP/s ({about['peak_source']})."
    return f"{headline(about)}; {size}.\n\n{table(columns, cells)}\n- {peak}\n"
