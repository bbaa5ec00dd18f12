"""One run: train a projector and a reader to answer, and score them."""

# B pictures, M visual tokens, D reader width, k ids of answers

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.benchmark.ablation.features import HiddenStates
from llava.benchmark.ablation.settings import QUESTION_ONLY, Row, Run, Training
from llava.benchmark.ablation.text import Asked, TextBatch, collate
from llava.benchmark.timing import gflop
from llava.errors import UserError
from llava.model.multimodal_projector.builder import VisionFields, build_projector
from llava.model.vision_config import resolve_levels


@dataclass(frozen=True)
class Split:
    """The questions about some scenes, and the index of each scene's picture in the hidden states."""

    scenes: Sequence[Sequence[Asked]]
    pictures: Sequence[int]

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, chosen: Sequence[int], device: str) -> tuple[TextBatch, Tensor]:
        text = collate([self.scenes[index] for index in chosen]).to(device)
        return text, torch.tensor([self.pictures[index] for index in chosen])


class VisualReader(nn.Module):
    """A reader with a projector that gives it visual tokens, or without one (it gets no image)."""

    def __init__(self, reader: nn.Module, projector: nn.Module | None, fields: VisionFields | None):
        super().__init__()
        self.reader, self.projector, self.fields = reader, projector, fields

    def visual_tokens(self, states: HiddenStates, pictures: Tensor, scale_factor: int | None) -> Tensor:
        """The visual tokens of the pictures, float[B, M, D]."""
        features = states.features(pictures.to(states.values.device), self.fields)  # type: ignore[arg-type]
        options = {"scale_factor": scale_factor} if self.projector.compresses else {}  # type: ignore[union-attr]
        return self.projector(features, **options)  # type: ignore[misc]

    def forward(
        self, text: TextBatch, pictures: Tensor, states: HiddenStates, scale_factor: int | None
    ) -> Tensor:
        """The reader's logits, float32[k, answers or vocabulary]."""
        blind = self.projector is None
        return self.reader(
            text, None if blind else self.visual_tokens(states, pictures, scale_factor)
        ).float()


def labels_of(text: TextBatch) -> Tensor:
    """The labels of a reader's logits, long[k]: the ids of the answers."""
    return text.ids[text.rows, text.columns]


def fields_of(row: Row, states: HiddenStates | None = None, scale_factor: int | None = None) -> VisionFields:
    """The settings of a row's projector; with `states` also those that depend on the vision tower."""
    fields = VisionFields(mm_projector_type=row.projector, scale_factor=scale_factor or 1, **row.switches)
    if states is not None:
        side = math.isqrt(states.values.shape[1])
        fields.mm_hidden_size = states.width
        fields.mm_vision_config = {"image_size": side, "patch_size": 1}
        fields.mm_vision_levels = resolve_levels(
            fields.mm_vision_levels, states.depth, fields.mm_vision_select_layer
        )
    return fields


def make_projector(run: Run, states: HiddenStates, reader: nn.Module) -> tuple[nn.Module, VisionFields]:
    fields = fields_of(run.row, states, run.scale_factors[0] if run.scale_factors else None)
    torch.manual_seed(run.seed)
    projector = build_projector(fields, reader.width)
    if reader.embeddings is not None:
        projector.scale_to(reader.embeddings)
    return projector, fields


def train(
    run: Run,
    settings: Training,
    reader: nn.Module,
    split: Split,
    states: HiddenStates,
    device: str,
    progress=lambda batches: batches,
) -> VisualReader:
    """Train a new projector and a reader.

    The order of scenes depends only on the seed, so that all rows are trained on the same batches.

    Raises UserError if the loss of any step is not finite.
    """
    projector = fields = None
    if run.row.projector != QUESTION_ONLY:
        projector, fields = make_projector(run, states, reader)
    model = VisualReader(reader, projector, fields).to(device).train()
    order = torch.Generator().manual_seed(run.seed)
    batches = [
        chosen
        for _ in range(settings.epochs)
        for chosen in torch.randperm(len(split), generator=order).split(settings.batch_size)
        if len(chosen) == settings.batch_size or len(split) < settings.batch_size
    ]
    optimizer, schedule = make_optimizer(model, settings, len(batches))
    losses = []
    for step, chosen in enumerate(progress(batches)):
        text, pictures = split.batch(chosen.tolist(), device)
        # every s is used equally often, in an order that is the same for all rows
        factor = run.scale_factors[step % len(run.scale_factors)] if run.scale_factors else None
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = model(text, pictures, states, factor)
        loss = F.cross_entropy(logits, labels_of(text))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    if losses and not torch.isfinite(torch.stack(losses)).all():
        raise UserError(f"{run.key}: the loss is not finite; lower the learning rates.")
    return model


def make_optimizer(model: VisualReader, settings: Training, steps: int):
    """AdamW and its schedule: linear warm-up, then a cosine to 0.

    Only matrices have weight decay. The projector may have its own learning rate.
    """
    groups = []
    for part, rate in (
        (model.reader, settings.learning_rate),
        (model.projector, settings.projector_learning_rate or settings.learning_rate),
    ):
        if part is None:
            continue
        parameters = list(part.parameters())
        for decay, wanted in ((settings.weight_decay, True), (0.0, False)):
            chosen = [p for p in parameters if (p.ndim > 1) is wanted]
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    warmup = max(1, round(settings.warmup * steps))

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


@torch.inference_mode()
def score(
    model: VisualReader,
    split: Split,
    states: HiddenStates,
    scale_factor: int | None,
    batch_size: int,
    device: str,
) -> dict[str, list[int]]:
    """Count the right answers of each family: {family: [right, asked]}.

    An answer is right if greedy decoding would give exactly this text. It does so if each id of the answer,
    the end included, is the likeliest after the ids before it; so one forward pass is enough to tell.
    """
    model.eval()
    right, asked = Counter(), Counter()
    for start in range(0, len(split), batch_size):
        text, pictures = split.batch(range(start, min(start + batch_size, len(split))), device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = model(text, pictures, states, scale_factor)
        wrong = set(text.rows[logits.argmax(dim=-1) != labels_of(text)].tolist())
        for question, family in enumerate(text.families):
            asked[family] += 1
            right[family] += question not in wrong
    return {family: [right[family], asked[family]] for family in sorted(asked)}


def run_once(
    run: Run,
    settings: Training,
    reader: nn.Module,
    splits: tuple[Split, Split],
    states: HiddenStates,
    device: str,
    progress=lambda batches: batches,
) -> dict:
    """Train and score.

    Args:
        splits: the split to train on, and the split to score.
    Returns:
        name, seed, seconds of training, parameters of the projector, and scores. The scores have for each
        scale factor its tokens, the projector's GFLOP for one picture, and [right, asked] of each family.
    """
    began = time.perf_counter()
    model = train(run, settings, reader, splits[0], states, device, progress)
    seconds = time.perf_counter() - began
    scores = []
    for factor in run.scale_factors or (None,):
        families = score(model, splits[1], states, factor, settings.batch_size, device)
        tokens, work = cost(model, states, factor, device)
        scores.append({"scale_factor": factor, "tokens": tokens, "gflop": work, "families": families})
    weights = 0 if model.projector is None else sum(p.numel() for p in model.projector.parameters())
    about = {"name": run.row.name, "seed": run.seed, "seconds": seconds, "parameters": weights}
    return about | {"scores": scores}


@torch.no_grad()  # in inference mode the FLOP counter does not work with autocast
def cost(
    model: VisualReader, states: HiddenStates, scale_factor: int | None, device: str
) -> tuple[int, float]:
    """The number of visual tokens of a picture, and the projector's GFLOP for it, in evaluation mode."""
    if model.projector is None:
        return 0, 0.0
    model.eval()
    picture = torch.zeros(1, dtype=torch.long)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        tokens = model.visual_tokens(states, picture, scale_factor)
        return tokens.shape[1], gflop(lambda: model.visual_tokens(states, picture, scale_factor))
