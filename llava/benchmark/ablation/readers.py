"""What reads visual tokens and answers: a language model, or a small transformer that starts at random."""

# B scenes, Q questions, n ids of the longest, M visual tokens, D reader width, k ids of answers, V answers

import math

import torch
from torch import Tensor, nn

from llava.benchmark.ablation.settings import Reader
from llava.benchmark.ablation.text import UNKNOWN, TextBatch, Tokens, Words
from llava.model.multimodal_projector.resampler import sincos_positions

LONGEST = 64  # words of a question
START = 0.3  # standard deviation of embeddings, beside visual tokens of 1


class LanguageReader(nn.Module):
    """A causal language model of transformers: image, question, answer in one row, as in LLaVA."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.hidden_size

    def forward(self, text: TextBatch, tokens: Tensor | None) -> Tensor:
        """The logits ahead of every id of the answers, given the right ids before it.

        The image is read once a scene; all of its questions go on from there, and none sees another.

        Args:
            tokens: float[B, M, D]; None: no image.
        Returns:
            float[k, vocabulary].
        """
        decoder, cache = self.model.get_decoder(), None
        if tokens is not None:
            cache = decoder(inputs_embeds=tokens, use_cache=True).past_key_values
            cache.batch_select_indices(text.scene)
        embeds = self.model.get_input_embeddings()(text.ids)
        hidden = decoder(inputs_embeds=embeds, past_key_values=cache, use_cache=cache is not None)
        return self.model.lm_head(hidden.last_hidden_state[text.rows, text.columns - 1])


class Attention(nn.Module):
    """Multi-head attention written out: faster on a CPU than the fused one for rows this short."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, hidden: Tensor | None = None) -> Tensor:
        """float[B, Q, D] and float[B, M, D] to float[B, Q, D]; bool[B, M] says what is not looked at."""
        key, value = self.key_value(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        return self.out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then a two-layer map, each after a norm and added to what comes in."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.map = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, query: Tensor, memory: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """As Attention's; without a memory the query looks at itself."""
        normed = self.norm(query)
        query = query + self.attention(normed, normed if memory is None else memory, hidden)
        return query + self.map(query)


class SmallReader(nn.Module):
    """A question as one vector, which looks at the visual tokens a few times and then names an answer.

    Stacked attention (Yang et al. 2016, "Stacked Attention Networks for Image Question Answering") with the
    layers of a transformer. Small enough that a CPU trains it from scratch in minutes.

    Args:
        num_words, num_answers: beside the unknown one.
        width: D, a multiple of 4 and of the heads.
        num_hops: how often it looks.
    """

    def __init__(self, num_words: int, num_answers: int, width: int, num_heads: int, num_hops: int):
        super().__init__()
        self.width = width
        self.words = nn.Embedding(1 + num_words, width)
        self.places = nn.Parameter(START * torch.randn(LONGEST, width))
        self.question = Layer(width, num_heads)
        self.visual_norm = nn.LayerNorm(width)
        self.hops = nn.ModuleList(Layer(width, num_heads) for _ in range(num_hops))
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1 + num_answers))

    def forward(self, text: TextBatch, tokens: Tensor | None) -> Tensor:
        """Logits of each question's answer.

        Args:
            tokens: float[B, M, D] of a square grid, row-major; None: no image.
        Returns:
            float[Q, 1 + num_answers]; the unknown answer, which is none, has the lowest.
        """
        asked = self.read(text.ids, text.columns)
        if tokens is None:
            return self.name(asked)
        places = torch.arange(math.isqrt(tokens.shape[1]), device=tokens.device)
        memory = self.visual_norm(tokens) + START * sincos_positions(places, self.width)
        # questions of one scene side by side: they share its keys and values
        state = asked.new_zeros(len(tokens), text.most, self.width)
        state[text.scene, text.slot] = asked
        for hop in self.hops:
            state = hop(state, memory)
        return self.name(state[text.scene, text.slot])

    def read(self, ids: Tensor, num_words: Tensor) -> Tensor:
        """long[Q, n], of which the first num_words long[Q] are the question's, to float[Q, D]."""
        hidden = torch.arange(ids.shape[1], device=ids.device) >= num_words[:, None]
        states = self.question(self.words(ids * ~hidden) + self.places[: ids.shape[1]], hidden=hidden)
        shown = ~hidden[..., None]
        return (states * shown).sum(dim=1) / shown.sum(dim=1)

    def name(self, state: Tensor) -> Tensor:
        logits = self.answer(state)
        unknown = torch.arange(logits.shape[-1], device=logits.device) == UNKNOWN
        return logits.masked_fill(unknown, torch.finfo(logits.dtype).min)


def make_reader(settings: Reader, codec: Tokens | Words, seed: int) -> LanguageReader | SmallReader:
    """The same for every run of a seed, in float32."""
    torch.manual_seed(seed)
    if settings.path is not None:
        from transformers import AutoModelForCausalLM

        return LanguageReader(AutoModelForCausalLM.from_pretrained(settings.path, dtype=torch.float32))
    num = len(codec.words), len(codec.answers)  # type: ignore[union-attr]
    return SmallReader(*num, settings.width, settings.num_heads, settings.num_hops)
