"""Measure what each projector costs from pixels to tokens, in turns with transformers' own LLaVA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import StoppingCriteria

from llava.benchmark.speed.capacity import largest_batch
from llava.benchmark.speed.models import (
    Prompt,
    Variant,
    build_model,
    build_prompt,
    build_theirs,
    build_variants,
)
from llava.benchmark.speed.shapes import Shape, kv_bytes, language_flop, tower_flop
from llava.benchmark.timing import Clock, gflop, median, median_ratio, take_turns
from llava.decoding import Decoding
from llava.model.multimodal_encoder.tower import VisionFeatures

THEIRS = "transformers"
PARTS = ("tower", "projector", "language_model")  # of prefill
FIGURES = (*PARTS, "prefill", "first_token", "token")  # seconds in a round


@dataclass(frozen=True)
class Settings:
    """The settings of a run; text_tokens are those of the prompt, new_tokens those of the answer."""

    device: str
    dtype: torch.dtype
    batch_size: int = 1
    text_tokens: int = 40
    new_tokens: int = 32
    repeats: int = 5
    compiled: bool = False
    memory_gib: float = 24.0
    processor_time: bool = False


class Moments(StoppingCriteria):
    """Records when the first and the last new token are ready; it never stops the generation."""

    def __init__(self, clock: Clock):
        self.clock, self.first, self.last, self.num_tokens = clock, None, None, 0

    def __call__(self, input_ids, scores, **kwargs):
        self.last = self.clock.now()
        self.first = self.first or self.last
        self.num_tokens += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def answer_seconds(model, inputs: Callable[[], dict], clock: Clock, settings: Settings) -> dict[str, float]:
    """Seconds from ids on the CPU to the first token, and for each token after it."""
    moments = Moments(clock)
    options = Decoding(max_new_tokens=settings.new_tokens, compiled=settings.compiled).kwargs()
    if settings.compiled:
        # a graph and a cache for this row's length; otherwise rows would use those of the longest so far
        options["compile_config"].dynamic = False
        model._previous_max_cache_length = -1
    clock.wait()
    start = clock.now()
    model.generate(**inputs(), **options, pad_token_id=0, eos_token_id=None, stopping_criteria=[moments])
    after_first = clock.seconds(moments.first, moments.last)
    return {
        "first_token": clock.seconds(start, moments.first),
        "token": after_first / (moments.num_tokens - 1),
    }


def our_round(model, variant: Variant, prompt: Prompt, clock: Clock, settings: Settings) -> Callable:
    """A function that measures a variant once, by parts and as a whole."""
    variant.put_into(model)
    tower = model.get_vision_tower()
    scale = {"scale_factor": variant.scale_factor} if variant.projector.compresses else {}
    features = tower(prompt.images)
    merged = model.merge_inputs(prompt.input_ids, images=prompt.images, **scale)
    whole = {"input_ids": prompt.input_ids, "images": prompt.images}
    last = {"use_cache": True, "logits_to_keep": 1}

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        variant.put_into(model)
        seconds = {
            "tower": clock.timed(lambda: tower(prompt.images)),
            "projector": clock.timed(lambda: variant.projector(features, **scale)),
            "language_model": clock.timed(lambda: model(inputs_embeds=merged.inputs_embeds, **last)),
            "prefill": clock.timed(lambda: model(**whole, **scale, **last)),
        }
        return seconds | answer_seconds(model, lambda: {**whole, **scale}, clock, settings)

    return measure


def their_round(theirs, model, prompt: Prompt, clock: Clock, settings: Settings) -> Callable:
    """The same for transformers' own LLaVA, which has one token for each patch."""
    ids = prompt.expanded(theirs.config.image_token_id, model.get_vision_tower().num_patches)
    tower, projector = theirs.model.vision_tower, theirs.model.multi_modal_projector
    features = tower(prompt.images, output_hidden_states=True).hidden_states[-2][:, 1:]
    last = {"use_cache": True, "logits_to_keep": 1}
    embeds = torch.randn(*ids.shape, model.config.hidden_size).to(features)
    # as in their own examples, the whole input is moved at once, within the timed call
    whole = {"pixel_values": prompt.images}

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        seconds = {
            "tower": clock.timed(lambda: tower(prompt.images, output_hidden_states=True)),
            "projector": clock.timed(lambda: projector(features)),
            "language_model": clock.timed(lambda: theirs(inputs_embeds=embeds, **last)),
            "prefill": clock.timed(lambda: theirs(input_ids=ids.to(theirs.device), **whole, **last)),
        }
        return seconds | answer_seconds(
            theirs, lambda: {"input_ids": ids.to(theirs.device), **whole}, clock, settings
        )

    return measure


def count_row(model, shape: Shape, variant: Variant, settings: Settings) -> dict:
    """The figures that need no clock: tokens, cache, and GFLOP of each part for the batch."""
    variant.put_into(model)
    tower, batch = model.get_vision_tower(), settings.batch_size
    tokens = model.num_visual_tokens
    positions = tokens + settings.text_tokens
    features = like_features(model, batch)
    scale = [variant.scale_factor] if variant.projector.compresses else []
    with torch.no_grad():
        projector_gflop = gflop(lambda: variant.projector(features, *scale))
    size = torch.finfo(settings.dtype).bits // 8
    return {
        "name": variant.name,
        "scale_factor": variant.scale_factor,
        "tokens": tokens,
        "positions": positions,
        "kv_bytes": kv_bytes(shape, positions, size),
        "image_kv_bytes": kv_bytes(shape, tokens, size),
        "gflop": {
            "tower": tower_flop(shape.tower, batch, tower.depth) / 1e9,
            "projector": projector_gflop,
            "language_model": language_flop(shape, batch, positions, 1) / 1e9,
        },
    }


def like_features(model, batch: int) -> VisionFeatures:
    """Random features with the shapes and dtype of those that the model's tower gives."""
    tower = model.get_vision_tower()
    shape = (batch, tower.num_patches)
    make = {"device": model.device, "dtype": model.dtype}
    levels = torch.randn(*shape, len(tower.levels) * tower.hidden_size, **make)
    return VisionFeatures(torch.randn(*shape, tower.hidden_size, **make), levels)


def count(shape: Shape, names: list[str], scale_factors: list[int], settings: Settings) -> list[dict]:
    """Rows without times, for a model on the meta device, which takes no memory."""
    model = build_model(shape, "meta", settings.dtype)
    variants = build_variants(model, names, scale_factors, settings.dtype)
    return [count_row(model, shape, variant, settings) for variant in variants]


@torch.no_grad()
def measure(
    shape: Shape,
    names: list[str],
    scale_factors: list[int],
    settings: Settings,
    with_theirs: bool = True,
    with_batch: bool = True,
) -> list[dict]:
    """A row for each projector and s, and one for transformers' own LLaVA.

    Returns:
        The keys of count_row, and seconds (medians of FIGURES), rounds (all of them) and largest_batch. The
        first row also has against_theirs: medians over the rounds of its seconds divided by transformers'.
    """
    clock = Clock(settings.device, settings.processor_time)
    model = build_model(shape, settings.device, settings.dtype)
    theirs = build_theirs(model) if with_theirs else None
    variants = build_variants(model, names, scale_factors, settings.dtype)
    if settings.compiled:
        model.compile_vision()
    prompt = build_prompt(model, settings.batch_size, settings.text_tokens, settings.dtype)
    calls: dict[Variant | str, Callable] = {v: our_round(model, v, prompt, clock, settings) for v in variants}
    if theirs is not None:
        calls[THEIRS] = their_round(theirs, model, prompt, clock, settings)
    rounds = take_turns(calls, settings.repeats)
    rows = []
    for variant in variants:
        row = count_row(model, shape, variant, settings)
        if with_batch:
            row |= largest_batch(model, shape, variant, settings)
        rows.append({**row, **_timed(rounds[variant])})
    if theirs is not None:
        full_tower = tower_flop(shape.tower, settings.batch_size, shape.tower["num_hidden_layers"]) / 1e9
        row = {**count_row(model, shape, variants[0], settings), "name": THEIRS}
        row["gflop"] = {**row["gflop"], "tower": full_tower}  # it runs the last layer too
        rows.append({**row, **_timed(rounds[THEIRS])})
        rows[0]["against_theirs"] = {
            name: median_ratio(rounds[variants[0]], rounds[THEIRS], name) for name in FIGURES
        }
    for row, variant in zip(rows, variants, strict=False):
        row["prefill_ratio"] = median_ratio(rounds[variant], rounds[variants[0]], "prefill")
    return rows


def _timed(rounds: list[dict]) -> dict:
    return {"seconds": {name: median(rounds, name) for name in FIGURES}, "rounds": rounds}
