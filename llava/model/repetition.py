"""The repetition penalty of a prompt that goes in as embeddings.

B prompts of T ids, R rows of scores (B, or B times the beams), T' tokens of the answers so far, V words of
the vocabulary.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

LARGEST = 1e30  # of a penalised logit, so that a division by a low temperature leaves it finite


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens that the prompt or the answer holds already less likely (CTRL, section 4.1).

    transformers' own penalty reads the prompt off its ids. Of a prompt in embeddings it has none, and would
    penalise the answer's tokens alone.

    Args:
        penalty: above 0. It divides the positive logits of those tokens and multiplies their negative ones,
            so that one below 1 makes them more likely.
        prompt_ids: long[B, T]; an id below 0 stands for an image.
        attention_mask: bool[B, T] or long[B, T], 0 at padding; None: there is no padding.
    """

    def __init__(self, penalty: float, prompt_ids: Tensor, attention_mask: Tensor | None):
        self.penalty = penalty
        is_word = prompt_ids >= 0
        if attention_mask is not None:
            is_word &= attention_mask.to(is_word.device).bool()
        self.rows = [ids[words].unique() for ids, words in zip(prompt_ids, is_word, strict=True)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Penalised scores, float[R, V], of scores float[R, V] and answers long[R, T']."""
        seen = torch.zeros_like(scores, dtype=torch.bool)
        for row, (is_seen, answer) in enumerate(zip(seen, input_ids, strict=True)):
            is_seen[self.rows[row * len(self.rows) // len(scores)].to(scores.device)] = True
            is_seen[answer] = True
        penalised = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalised.nan_to_num(0.0).clamp(-LARGEST, LARGEST), scores)
