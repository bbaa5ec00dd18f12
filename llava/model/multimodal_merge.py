"""Puts image features in the place of <image>, with index operations only; checks counts, masks labels."""

# B sequences, T prompt tokens, T' merged tokens, V visual tokens of the whole batch, L positions of an image,
# N labels, K attended positions, P positions of visual tokens, D language model width. A place is the index
# of a position in the flattened batch.

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.packed_rows import packed_rows
from llava.tiling import COLUMN_END, ROW_END

logger = logging.get_logger(__name__)  # its warning_once gives each message once

PADDING_ID = 0  # embedded, then hidden by the attention mask
TEXT, NEWLINE = -1, -2  # in visual_index: a text token; the learnt end of a row


class ImageSpan(NamedTuple):
    """The positions that replace the <image> of one image.

    Attributes:
        visual_index: long[L], for each position its row of image_features, NEWLINE or TEXT.
        token_ids: long[L], separators between tiles, PADDING_ID elsewhere.
    """

    visual_index: Tensor
    token_ids: Tensor


def image_span(layout: Tensor, first: int, separator_ids: tuple[int, int] | None) -> ImageSpan:
    """Number an image's tokens within the batch and insert its separators.

    Args:
        layout: long[L], the image's layout from llava.tiling.
        first: the index of its first token among the batch's V.
        separator_ids: token ids for COLUMN_END and ROW_END; None: a row ends in the learnt newline.
    """
    token_ids = torch.full_like(layout, PADDING_ID)
    if separator_ids is None:
        index = torch.where(layout == ROW_END, NEWLINE, layout + first)
    else:
        index = torch.where(layout >= 0, layout + first, TEXT)
        token_ids[layout == COLUMN_END], token_ids[layout == ROW_END] = separator_ids
    return ImageSpan(index, token_ids)


@dataclass(frozen=True)
class OnHost:
    """A batch's integers on the CPU, as the collator made them; reading a device's copy would wait for it.

    The class is neither a tensor nor a known container, so code that moves batches to a device skips it.

    Attributes:
        input_ids, attention_mask, labels, sequence_ids, branch_ids: as plan_merge takes them.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    labels: Tensor | None = None
    sequence_ids: Tensor | None = None
    branch_ids: Tensor | None = None

    @classmethod
    def of(cls, *given: Tensor | None) -> "OnHost":
        """Copy the tensors, in the order of the attributes, to the CPU; this waits for their device."""
        return cls(*(None if tensor is None else tensor.cpu() for tensor in given))  # type: ignore[arg-type]


@dataclass(kw_only=True)
class MergedLayout:
    """What each position of the merged rows holds.

    Attributes:
        attention_mask: bool[B, T'].
        position_ids: long[B, T'], counted over attended positions. In packed rows they are counted in each
            record, and padding counts as a sequence of its own.
        labels: long[B, T'], IGNORE_INDEX on visual tokens and padding; None without labels.
        visual_places: long[P], places of visual tokens, ascending.
        is_padded: whether there is any padding; stored, so that the device need not be asked.
        label_places, targets: long[N], the places that predict a label, and the labels; None without labels.
        attended_places: long[K], the attended places of packed rows; else None.
        visible_until: long[B, T'], see PackedRows; None without branches.
    """

    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor | None
    visual_places: Tensor
    is_padded: bool
    label_places: Tensor | None
    targets: Tensor | None
    attended_places: Tensor | None
    visible_until: Tensor | None


LAYOUT = tuple(field.name for field in fields(MergedLayout))


@dataclass(kw_only=True)
class MergePlan(MergedLayout):
    """Where each token and feature goes; the plan is made before any feature is computed.

    Attributes:
        token_ids: long[B, T'], the separators of tiles included; PADDING_ID at visual and padding positions.
        visual_rows: long[P], the row of image_features at each of visual_places; None: the first P rows in
            order.
        newline_places: long[...], places of the learnt end of a row.
    """

    token_ids: Tensor
    visual_rows: Tensor | None
    newline_places: Tensor

    def to(self, device: torch.device) -> "MergePlan":
        """Move the plan in one piece; pinned memory spares the CPU a wait for the GPU's current work."""
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        piece = torch.cat([tensor.flatten().long() for tensor in tensors.values()])
        if device.type == "cuda":
            piece = piece.pin_memory().to(device, non_blocking=True)
        parts = piece.to(device).split([tensor.numel() for tensor in tensors.values()])
        moved = {
            name: part.view(tensor.shape).to(tensor.dtype)
            for (name, tensor), part in zip(tensors.items(), parts, strict=True)
        }
        return MergePlan(**{**vars(self), **moved})


@dataclass(kw_only=True)
class MergedInputs(MergedLayout):
    """The language model's input: inputs_embeds float[B, T', D], in the plan's layout."""

    inputs_embeds: Tensor


@torch.compiler.disable  # it branches on values, so it is not compiled, like the loss
def plan_merge(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    spans: list[ImageSpan],
    padding_side: str,
    sequence_ids: Tensor | None = None,
    branch_ids: Tensor | None = None,
) -> MergePlan:
    """Expand each IMAGE_TOKEN_INDEX into its image's span, remove the old padding and pad anew.

    Args:
        input_ids: long[B, T] on the CPU.
        attention_mask: bool[B, T], False on padding, which may lie on either side; None for no padding.
        labels: long[B, T] or None.
        spans: one for each image, in the order of the placeholders over the batch.
        padding_side: "left" or "right", the side of the new padding.
        sequence_ids: long[B, T], the running number of a token's sequence in a packed row, -1 on padding.
        branch_ids: long[B, T], the number of a token's branch in its sequence, as packed_rows takes it; None
            if no sequence has branches.
    Raises:
        UserError: if placeholders and images differ in number; features would be misplaced.
    """
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    is_image = (input_ids == IMAGE_TOKEN_INDEX) & keep
    num_placeholders = int(is_image.sum())
    if num_placeholders != len(spans):
        raise UserError(
            f"the prompts have {num_placeholders} <image> placeholders, "
            f"but {len(spans)} images were given; give one image for each placeholder."
        )
    repeats = keep.long()
    repeats[is_image] = torch.tensor([len(span.token_ids) for span in spans], dtype=torch.long)
    lengths = repeats.sum(dim=1)
    shape = len(input_ids), int(lengths.max())

    def expanded(values: Tensor) -> Tensor:
        """The values of all rows in one vector, each repeated for the positions of its token."""
        return values.flatten().repeat_interleave(repeats.flatten())

    ids = expanded(input_ids)
    of_image, visual_index = ids == IMAGE_TOKEN_INDEX, torch.full_like(ids, TEXT)
    if spans:
        ids[of_image] = torch.cat([span.token_ids for span in spans])
        visual_index[of_image] = torch.cat([span.visual_index for span in spans])
    # how far the start of each row is from the sum of the lengths of the rows before it
    shifts = torch.arange(shape[0]) * shape[1] - (lengths.cumsum(dim=0) - lengths)
    if padding_side == "left":
        shifts += shape[1] - lengths
    places = torch.arange(len(ids)) + shifts.repeat_interleave(lengths)

    def laid_out(values: Tensor, padding: int) -> Tensor:
        rows = values.new_full((shape[0] * shape[1],), padding)
        return rows.index_copy(0, places, values).view(shape)

    previous = visible_until = None
    if sequence_ids is None:
        attended = laid_out(torch.ones_like(ids, dtype=torch.bool), False)
        position_ids = (attended.cumsum(dim=1) - 1).clamp(min=0)
    else:
        sequences = laid_out(expanded(sequence_ids), -1)
        branches = None if branch_ids is None else laid_out(expanded(branch_ids), 0)
        attended, (position_ids, previous, visible_until) = sequences >= 0, packed_rows(sequences, branches)
    merged_labels = label_places = targets = None
    if labels is not None:
        merged_labels = laid_out(expanded(labels).masked_fill(of_image, IGNORE_INDEX), IGNORE_INDEX)
        label_places, targets = places_and_targets(merged_labels, previous)
    is_visual = visual_index >= 0
    visual_rows = visual_index[is_visual]
    return MergePlan(
        token_ids=laid_out(ids, PADDING_ID),
        attention_mask=attended,
        position_ids=position_ids,
        labels=merged_labels,
        visual_places=places[is_visual],
        visual_rows=None if torch.equal(visual_rows, torch.arange(len(visual_rows))) else visual_rows,
        newline_places=places[visual_index == NEWLINE],
        is_padded=not bool(attended.all()),
        label_places=label_places,
        targets=targets,
        attended_places=None if sequence_ids is None else attended.flatten().nonzero().flatten(),
        visible_until=None if branch_ids is None else visible_until,
    )


def warn_of_padding(input_ids: Tensor, pad_token_ids: tuple, words: tuple) -> None:
    """Warn once if a batch without an attention mask looks padded, as transformers' models do.

    Args:
        input_ids: long[B, T]; padding is looked for at the ends of its rows.
        pad_token_ids: the first that is not None counts.
        words: tokens that begin or end a text. If the padding token is one of them, a single row may well
            have it without padding and is not checked.
    """
    pad = next((token for token in pad_token_ids if token is not None), None)
    if pad is None or input_ids.numel() == 0 or torch.compiler.is_compiling():
        return
    if len(input_ids) == 1 and pad in words:
        return
    if pad in input_ids[:, [0, -1]]:
        logger.warning_once(
            f"The attention mask is not set, but input_ids have the padding token {pad} at the end of a row: "
            "the model reads padding as words. Pass `attention_mask`, 0 on padding and 1 elsewhere."
        )


def places_and_targets(labels: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The places that predict a label, and these labels, both long[N].

    Args:
        labels: long[B, T'], IGNORE_INDEX where there is none. A label in a row's first column does not count.
        previous: long[B, T'], the column of the token before each one; None: the column before.
    """
    has_label = labels != IGNORE_INDEX
    has_label[:, 0] = False
    places = has_label.flatten().nonzero().flatten()
    before = places - 1
    if previous is not None:
        before = places - places % labels.shape[1] + previous.flatten()[places]
    return before, labels.flatten()[places]


def merge(
    plan: MergePlan, text_embeds: Tensor, image_features: Tensor, newline: Tensor | None = None
) -> MergedInputs:
    """Write the image features over the text's embeddings.

    Args:
        plan: on the device of the embeddings.
        text_embeds: float[B, T', D], the embeddings of plan.token_ids.
        image_features: float[V, D], in the order of the images; they stay in the autograd graph if V = 0.
        newline: float[D], the learnt end of a row; if there is one, it always stays in the graph as well.
    """
    flat = text_embeds.flatten(0, 1)
    if plan.visual_rows is None:
        visual = image_features[: len(plan.visual_places)]
    else:
        visual = image_features.index_select(0, plan.visual_rows)
    flat = flat.index_copy(0, plan.visual_places, visual.to(flat.dtype))
    if newline is not None:
        ends = newline.to(flat.dtype).expand(len(plan.newline_places), -1)
        flat = flat.index_copy(0, plan.newline_places, ends)
    layout = {name: getattr(plan, name) for name in LAYOUT}
    return MergedInputs(inputs_embeds=flat.view_as(text_embeds), **layout)


def one_row(merged: MergedInputs) -> MergedInputs:
    """Put all attended positions, [B, T'], in one row, [1, K], as flash attention takes packed sequences."""
    places = merged.attended_places

    def row(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.flatten(0, 1)[places][None]

    labels = merged.label_places
    return MergedInputs(
        inputs_embeds=row(merged.inputs_embeds),
        attention_mask=row(merged.attention_mask),
        position_ids=row(merged.position_ids),
        labels=row(merged.labels),
        visual_places=torch.searchsorted(places, merged.visual_places),
        is_padded=False,
        label_places=None if labels is None else torch.searchsorted(places, labels),
        targets=merged.targets,
        visible_until=None,
        attended_places=torch.arange(len(places), device=places.device),  # type: ignore[arg-type, union-attr]
    )
