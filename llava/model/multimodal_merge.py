"""Put image features where the prompt has <image>: pure index work, counts checked, labels masked."""

# B sequences, T prompt tokens, T' merged tokens, V visual tokens of the whole batch, D language model width

from dataclasses import dataclass

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

PADDING_ID = 0  # embedded, then hidden by the attention mask


@dataclass
class MergePlan:
    """Where everything goes, before any feature is computed.

    Attributes:
        token_ids: long[B, T'], PADDING_ID at visual and padding positions.
        attention_mask: bool[B, T'].
        position_ids: long[B, T'], counted over what is attended to.
        labels: long[B, T'], IGNORE_INDEX on visual tokens and padding; None without labels.
        visual_index: long[B, T'], the running number of the visual token at a position, -1 elsewhere.
    """

    token_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor | None
    visual_index: Tensor

    def to(self, device: torch.device) -> "MergePlan":
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return MergePlan(**{"labels": None, **moved})


@dataclass
class MergedInputs:
    """What the language model takes: inputs_embeds float[B, T', D], the rest as in MergePlan."""

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor | None
    visual_index: Tensor


def plan_merge(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    tokens_per_image: list[int],
    padding_side: str,
) -> MergePlan:
    """Expand each IMAGE_TOKEN_INDEX into its image's tokens, drop the padding there was, pad anew.

    Args:
        input_ids: long[B, T] on the CPU.
        attention_mask: bool[B, T], False on padding, which may lie on either side; None for no padding.
        labels: long[B, T] or None.
        tokens_per_image: tokens of each image, in the order of their placeholders over the batch.
        padding_side: "left" or "right", of the result.
    Raises:
        ValueError: if placeholders and images differ in number; going on would misplace every feature.
    """
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    num_placeholders = int(((input_ids == IMAGE_TOKEN_INDEX) & keep).sum())
    if num_placeholders != len(tokens_per_image):
        raise ValueError(
            f"the prompts have {num_placeholders} <image> placeholders, "
            f"but {len(tokens_per_image)} images came; give one image for each placeholder."
        )
    counts = iter(tokens_per_image)
    next_visual = 0
    rows = []
    for row, row_keep in enumerate(keep):
        ids = input_ids[row][row_keep]
        is_image = ids == IMAGE_TOKEN_INDEX
        repeats = torch.ones_like(ids)
        repeats[is_image] = torch.tensor([next(counts) for _ in range(int(is_image.sum()))], dtype=torch.long)
        visual = is_image.repeat_interleave(repeats)
        num_visual = int(visual.sum())
        index = torch.full(visual.shape, -1)
        index[visual] = torch.arange(next_visual, next_visual + num_visual)
        next_visual += num_visual
        row_ids = ids.repeat_interleave(repeats).masked_fill(visual, PADDING_ID)
        row_labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels[row][row_keep]
        rows.append((row_ids, row_labels.repeat_interleave(repeats).masked_fill(visual, IGNORE_INDEX), index))

    def pad(column: int, value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            [row[column] for row in rows], batch_first=True, padding_value=value, padding_side=padding_side
        )

    attended = torch.nn.utils.rnn.pad_sequence(
        [torch.ones_like(row[0], dtype=torch.bool) for row in rows],
        batch_first=True,
        padding_side=padding_side,
    )
    return MergePlan(
        token_ids=pad(0, PADDING_ID),
        attention_mask=attended,
        position_ids=(attended.cumsum(dim=1) - 1).clamp(min=0),
        labels=None if labels is None else pad(1, IGNORE_INDEX),
        visual_index=pad(2, -1),
    )


def merge(plan: MergePlan, text_embeds: Tensor, image_features: Tensor) -> MergedInputs:
    """Lay the features over the text's embeddings.

    Args:
        plan: on the device of the embeddings.
        text_embeds: float[B, T', D], the embeddings of plan.token_ids.
        image_features: float[V, D], in plan.visual_index's order; V = 0 keeps them in the autograd graph.
    """
    flat = text_embeds.flatten(0, 1)
    positions = torch.arange(flat.shape[0], device=flat.device)
    table = torch.cat([flat, image_features.to(flat.dtype)])
    index = plan.visual_index.flatten()
    merged = table[torch.where(index >= 0, flat.shape[0] + index, positions)]
    return MergedInputs(
        merged.view_as(text_embeds), plan.attention_mask, plan.position_ids, plan.labels, plan.visual_index
    )
