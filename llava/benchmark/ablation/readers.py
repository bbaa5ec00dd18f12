"""Models that read visual tokens and answer: a language model, or a small, untrained transformer."""

# B scenes, Q questions, n ids of the longest one, M visual tokens, D reader width, k ids of answers

import math

import torch
from torch import Tensor, nn

from llava.benchmark.ablation.settings import Reader
from llava.benchmark.ablation.text import UNKNOWN, TextBatch, Tokens, Words
from llava.model.multimodal_projector.resampler import sincos_positions

LONGEST = 64  # words of a question at most
START = 0.3  # scale of position embeddings; visual tokens have a standard deviation of 1


class LanguageReader(nn.Module):
    """A causal language model of transformers; it reads image, question and answer in order, as in LLaVA."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        """D, the hidden size."""
        return self.model.config.hidden_size

    @property
    def embeddings(self) -> Tensor:
        """The embeddings of the words, float[words, D], whose size a projector's output norm takes."""
        return self.model.get_input_embeddings().weight

    def forward(self, text: TextBatch, tokens: Tensor | None) -> Tensor:
        """The logits that predict each id of the answers, given the right ids before it.

        Each scene's image is processed once. All questions about the scene continue from its cache, and do
        not attend to one another.

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
    """Multi-head attention written out; on a CPU it is faster than the fused one for sequences this short."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Map float[B, Q, D] and float[B, M, D] to float[B, Q, D]; `hidden`, bool[B, M], masks keys."""
        key, value = self.key_value(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        return self.out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then a two-layer MLP, each after a norm and with a residual connection."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.map = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, query: Tensor, memory: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Takes the arguments of Attention.forward; without `memory` the query attends to itself."""
        normed = self.norm(query)
        query = query + self.attention(normed, normed if memory is None else memory, hidden)
        return query + self.map(query)


class SmallReader(nn.Module):
    """Encodes a question as one vector, which attends to the visual tokens a few times and gives an answer.

    It is stacked attention (Yang et al. 2016, "Stacked Attention Networks for Image Question Answering") with
    the layers of a transformer. It is so small that a CPU trains it from scratch in minutes.

    Args:
        num_words, num_answers: numbers without the unknown word and answer.
        width: D, a multiple of 4 and of num_heads.
        num_hops: how often the vector attends to the visual tokens.
    """

    def __init__(self, num_words: int, num_answers: int, width: int, num_heads: int, num_hops: int):
        super().__init__()
        self.width, self.embeddings = width, None  # visual_norm gives the tokens a size, whatever they have
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
            float[Q, 1 + num_answers]; the unknown answer has the lowest logit, so that it is never given.
        """
        asked = self.read(text.ids, text.columns)
        if tokens is None:
            return self.name(asked)
        places = torch.arange(math.isqrt(tokens.shape[1]), device=tokens.device)
        memory = self.visual_norm(tokens) + START * sincos_positions(places, self.width)
        # the questions about a scene are in one row, so that they share the scene's keys and values
        state = asked.new_zeros(len(tokens), text.most, self.width)
        state[text.scene, text.slot] = asked
        for hop in self.hops:
            state = hop(state, memory)
        return self.name(state[text.scene, text.slot])

    def read(self, ids: Tensor, num_words: Tensor) -> Tensor:
        """Encode questions as float[Q, D]: the first num_words (long[Q]) ids of each row of long[Q, n]."""
        hidden = torch.arange(ids.shape[1], device=ids.device) >= num_words[:, None]
        states = self.question(self.words(ids * ~hidden) + self.places[: ids.shape[1]], hidden=hidden)
        shown = ~hidden[..., None]
        return (states * shown).sum(dim=1) / shown.sum(dim=1)

    def name(self, state: Tensor) -> Tensor:
        logits = self.answer(state)
        unknown = torch.arange(logits.shape[-1], device=logits.device) == UNKNOWN
        return logits.masked_fill(unknown, torch.finfo(logits.dtype).min)


def make_reader(settings: Reader, codec: Tokens | Words, seed: int) -> LanguageReader | SmallReader:
    """Make the reader in float32; it is the same for all runs with one seed."""
    torch.manual_seed(seed)
    if settings.path is not None:
        from transformers import AutoModelForCausalLM

        return LanguageReader(AutoModelForCausalLM.from_pretrained(settings.path, dtype=torch.float32))
    num = len(codec.words), len(codec.answers)  # type: ignore[union-attr]
    return SmallReader(*num, settings.width, settings.num_heads, settings.num_hops)
