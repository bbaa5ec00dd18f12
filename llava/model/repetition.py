"""The repetition penalty for a prompt that is passed as embeddings.

B prompts of T ids, R rows of scores (B, or B times the beams), T' tokens of the answers so far, V tokens of
the vocabulary.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

LARGEST = 1e30  # the largest penalised logit; it stays finite when divided by a low temperature


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens that are already in the prompt or the answer less likely (CTRL, section 4.1).

    transformers' own penalty reads the prompt's ids. A prompt of embeddings has none, so it would penalise
    only the answer's tokens.

    Args:
        penalty: above 0. It divides the positive logits of those tokens and multiplies their negative ones,
            so that one below 1 makes them more likely.
        prompt_ids: long[B, T]; an id below 0 is the placeholder of an image.
        attention_mask: bool[B, T] or long[B, T], 0 at padding; None: there is no padding.
    """

    def __init__(self, penalty: float, prompt_ids: Tensor, attention_mask: Tensor | None):
        self.penalty = penalty
        is_word = prompt_ids >= 0
        if attention_mask is not None:
            is_word &= attention_mask.to(is_word.device).bool()
        self.rows = [ids[words].unique() for ids, words in zip(prompt_ids, is_word, strict=True)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return penalised scores float[R, V] for the answers long[R, T'] and their scores float[R, V]."""
        seen = torch.zeros_like(scores, dtype=torch.bool)
        for row, (is_seen, answer) in enumerate(zip(seen, input_ids, strict=True)):
            is_seen[self.rows[row * len(self.rows) // len(scores)].to(scores.device)] = True
            is_seen[answer] = True
        penalised = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalised.nan_to_num(0.0).clamp(-LARGEST, LARGEST), scores)
