"""Fits a new projector's last linear map to word embeddings, in closed form, before the first step.

The features below that map are fixed by the projector's initial weights. Ridge regression maps the features
of each picture's most unusual tokens to the mean embedding of the words in its answer, in which each word is
weighted by how rare it is. The sums for the fit are added up batch by batch, so that memory does not grow
with the number of pictures.

An output norm (--mm_projector_norm) keeps the directions of the fitted predictions. Its scale becomes their
root mean square, so that the tokens are as large as the predictions are on average.
"""

# N pictures, M tokens a picture, k of them chosen, F features below the last map, D language model width

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from llava.constants import IGNORE_INDEX
from llava.data.dataset import SupervisedDataset
from llava.data.packing import PackedDataset
from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.norms import kept_statistics
from llava.model.zero3 import gathered

logger = logging.getLogger(__name__)

GAIN = 2.0  # factor on the words' mean in the targets, because the fit makes predictions smaller than targets
SHARE = 12  # one in so many of M tokens is fitted: what a caption names fills only part of the picture
HELD_OUT = 5  # one in so many pictures is held out to choose the penalty
FEWEST = 2 * HELD_OUT  # pictures: then at least two are held out, with different targets
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # as multiples of the features' mean variance
BATCH_SIZE = 8  # pictures encoded at once


@dataclass
class Sums:
    """The sums over examples that a least-squares fit with an intercept needs, in float64.

    Attributes:
        count: the number of examples.
        x, y: sums of the inputs [F] and of the targets [D].
        xx, xy: sums of their products [F, F] and [F, D].
        yy: sum of the squared targets.
    """

    count: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def empty(cls, num_features: int, width: int, device) -> "Sums":
        shapes = ((), (num_features,), (width,), (num_features, num_features), (num_features, width), ())
        return cls(*(torch.zeros(shape, dtype=torch.double, device=device) for shape in shapes))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the examples x float[n, F] and y float[n, D]."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(dim=0)
        self.y += y.sum(dim=0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum()

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(mine + theirs for mine, theirs in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple[Tensor, ...]:
        return self.count, self.x, self.y, self.xx, self.xy, self.yy

    def ridge(self, penalty: float, has_bias: bool = True) -> tuple[Tensor, Tensor]:
        """The weight [D, F] and bias [D] that minimise the squared error plus a penalty on the weight.

        Args:
            penalty: as a multiple of the features' mean variance.
            has_bias: False leaves the bias zero.
        """
        mean_x, mean_y = self.x / self.count * has_bias, self.y / self.count * has_bias
        xx = self.xx - self.count * torch.outer(mean_x, mean_x)
        xy = self.xy - self.count * torch.outer(mean_x, mean_y)
        xx.diagonal().add_(penalty * xx.diagonal().mean() + torch.finfo(torch.double).tiny)
        weight = torch.linalg.solve(xx, xy).T
        return weight, mean_y - weight @ mean_x

    def explained(self, weight: Tensor, bias: Tensor) -> float:
        """R2: the share of these targets' variance that a linear map explains."""
        error = self.yy - 2 * (weight * self.xy.T).sum() - 2 * (bias @ self.y) + self.squares(weight, bias)
        variance = self.yy - self.y.square().sum() / self.count
        return float(1 - error / variance)

    def squares(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The sum of the squares of all predictions of a linear map, over examples and channels."""
        products = ((weight @ self.xx) * weight).sum() + 2 * (bias @ (weight @ self.x))
        return products + self.count * bias.square().sum()


def warm_start(trainer, num_pictures: int) -> None:
    """Fit the last linear map of the trainer's projector to pictures of its data; every rank takes its share.

    Raises:
        UserError: if the projector does not end with a linear map, or the data is a stream or has too few
            records with one picture.
    """
    model, args = trainer.model, trainer.args
    records = records_of(trainer.train_dataset)
    pictures = choose_pictures(
        records, num_pictures, args.seed, set(trainer.processing_class.all_special_ids)
    )
    tower, projector = model.vision_parts()
    words = model.get_input_embeddings()
    for part in (tower, projector, words):
        part.to(args.device)
    whole = gathered([*tower.parameters(), *projector.parameters(), words.weight])
    with whole, torch.no_grad(), trainer.accelerator.autocast(), in_training_form(projector):
        last, fitted, held_out = add_up(model, records, pictures, words.weight, args)
    if args.world_size > 1:
        for part in (*fitted.parts(), *held_out.parts()):
            dist.all_reduce(part)
    has_bias = last.bias is not None
    explained = {one: held_out.explained(*fitted.ridge(one, has_bias)) for one in PENALTIES}
    penalty = max(PENALTIES, key=explained.__getitem__)
    every = fitted + held_out
    weight, bias = every.ridge(penalty, has_bias)
    with gathered(last.parameters(), write=True), torch.no_grad():
        last.weight.copy_(weight)
        if has_bias:
            last.bias.copy_(bias)
    if projector.output_norm is not None:
        mean_square = every.squares(weight, bias) / (every.count * len(weight))
        projector.output_norm.scale.copy_(mean_square.sqrt())
    logger.info(
        "warm start: %d tokens of %d pictures are fitted to the words of their answers; R2 on held-out "
        "pictures is %.2f (penalty %g)",
        *(int(every.count), len(pictures), explained[penalty], penalty),
    )


def records_of(dataset: Dataset) -> SupervisedDataset:
    """The records that a run trains on, packed or not. Raises UserError for a stream of shards."""
    records = dataset.dataset if isinstance(dataset, PackedDataset) else dataset
    if not isinstance(records, SupervisedDataset):
        raise UserError(
            "--mm_projector_warm_start draws pictures at random, but tar shards can only be read in order; "
            "leave it out, or warm-start stage 1 from records in files."
        )
    return records


@dataclass(frozen=True)
class Picture:
    """A record with one picture: its number in the data set, and its answer's words with their weights."""

    record: int
    words: list[int]
    weights: list[float]


def choose_pictures(
    records: SupervisedDataset, num_pictures: int, seed: int, special_ids: set[int]
) -> list[Picture]:
    """Choose random records with one picture. The fewer answers contain a word, the higher is its weight.

    Raises:
        UserError: if there are fewer than FEWEST.
    """
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    found: list[tuple[int, set[int]]] = []
    for index in order:
        encoded = records.encoded(index)
        if encoded is not None and len(encoded.files) == 1:
            said = (one for one in encoded.labels if one != IGNORE_INDEX)
            found.append((index, set(said) - special_ids))
        if len(found) == num_pictures:
            break
    counts = Counter(word for _, said in found for word in said)
    rarity = {word: math.log(len(found) / count) for word, count in counts.items()}
    pictures = [
        Picture(index, words, [rarity[word] for word in words])
        for index, said in found
        if (words := sorted(word for word in said if rarity[word] > 0))
    ]
    if len(pictures) < FEWEST:
        raise UserError(
            f"--mm_projector_warm_start {num_pictures} found {len(pictures)} suitable records, but needs "
            f"{FEWEST}: each has one picture and an answer that is not the same for all. Give a larger "
            "number, or leave the flag out with this --data_path."
        )
    return pictures


@contextmanager
def in_training_form(projector: Projector) -> Iterator[None]:
    """Put the projector in training mode, as in the first step, but keep its batch norms' statistics.

    It has no output norm meanwhile, so that its tokens are those of its last map.
    """
    mode, norm = projector.training, projector.output_norm
    projector.train()
    projector.output_norm = None
    try:
        with kept_statistics(projector):
            yield
    finally:
        projector.output_norm = norm
        projector.train(mode)


def add_up(
    model: PreTrainedModel, records: SupervisedDataset, pictures: list[Picture], embeddings: Tensor, args
) -> tuple[nn.Linear, Sums, Sums]:
    """Return the last linear map, and the sums over this rank's fitted and over its held-out pictures.

    All ranks encode the same number of batches, because norms may gather over ranks.
    """
    share = math.ceil(len(pictures) / args.world_size)
    own = list(enumerate(pictures))[args.process_index :: args.world_size]
    side = model.get_vision_tower().image_size
    for start in tqdm(range(0, share, BATCH_SIZE), desc="warm start", disable=args.process_index > 0):
        batch = []
        for number, picture in own[start : start + BATCH_SIZE]:
            sample = records.read(picture.record)
            if sample is not None and sample["images"]:
                pixels = sample["images"][0]
                batch.append((number, picture, pixels if pixels.ndim == 4 else pixels[None]))
        views = [pixels for *_, pixels in batch]
        stacked = torch.cat(views or [torch.zeros(1, 3, side, side)])
        last, features = features_of(model, stacked.to(args.device))
        if start == 0:
            shape = last.in_features, last.out_features, args.device
            fitted, held_out = Sums.empty(*shape), Sums.empty(*shape)
        parts = features.split([len(one) for one in views]) if views else ()
        examples: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        for (number, picture, _), part in zip(batch, parts, strict=True):
            tokens = part.flatten(0, 1).float()
            chosen = tokens[unusual(tokens).topk(max(1, len(tokens) // SHARE)).indices]
            weights = torch.tensor(picture.weights, device=chosen.device)
            rows = embeddings[torch.tensor(picture.words, device=chosen.device)].float()
            target = GAIN * (weights @ rows) / weights.sum()
            examples[number % HELD_OUT == 0].append((chosen, target.expand(len(chosen), -1)))
        for is_held_out, sums in ((False, fitted), (True, held_out)):
            if examples[is_held_out]:  # one product a batch, as each passes over F x F numbers
                sums.add(*map(torch.cat, zip(*examples[is_held_out], strict=True)))
    return last, fitted, held_out


def unusual(tokens: Tensor) -> Tensor:
    """float[n]: how far each token of float[n, F] is from their mean, each feature in units of its spread."""
    apart = tokens - tokens.mean(dim=0)
    return (apart / apart.square().mean(dim=0).sqrt().clamp(min=torch.finfo(tokens.dtype).eps)).norm(dim=1)


def features_of(model: PreTrainedModel, views: Tensor) -> tuple[nn.Linear, Tensor]:
    """The linear map that outputs the projector's tokens, and its input float[V, M, F].

    Args:
        views: float[V, 3, H, W].
    Raises:
        UserError: if no linear map outputs them.
    """
    projector, calls = model.get_projector(), []
    hooks = [
        module.register_forward_hook(lambda module, given, output: calls.append((module, given[0], output)))
        for module in projector.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        tokens = model.encode_images(views)
    finally:
        for hook in hooks:
            hook.remove()
    for module, given, output in reversed(calls):
        if output.numel() == tokens.numel() and torch.equal(output.reshape(tokens.shape), tokens):
            features = given.selected if isinstance(given, VisionFeatures) else given
            return module, features.reshape(*tokens.shape[:2], -1)
    raise UserError(
        f"--mm_projector_warm_start sets a projector's last linear map, but {type(projector).__name__} "
        "does not end with one; leave it out."
    )
