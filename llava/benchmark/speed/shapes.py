"""Shapes of whole models by name, and their computed costs: multiplications, additions, and cache."""

# B sequences, T positions, N patches, S = N + class tokens, D width, F width inside the MLP, h heads of d

from __future__ import annotations

from dataclasses import dataclass, replace

from llava.errors import UserError

IMAGE_SIZE, PATCH_SIZE = 336, 14  # 24x24 patches, 576 tokens without compression

# Vision towers. DINOv2 keeps its training size and interpolates its positions.
CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}
DINOV2_S = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": PATCH_SIZE,
}
TINY_TOWER = {
    **CLIP_L,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
}


@dataclass(frozen=True)
class Shape:
    """A language model behind a vision tower.

    Attributes:
        family: "llama" or "qwen2".
        layers: layers that are built; if fewer than full_layers, the model is truncated to fit the machine.
    """

    name: str
    tower: dict
    width: int
    layers: int
    full_layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    family: str = "llama"
    tied: bool = False

    def truncated(self, layers: int | None) -> Shape:
        """The same shape with only its first layers. Raises UserError if there are not so many."""
        if layers is None:
            return self
        if not 1 <= layers <= self.full_layers:
            raise UserError(
                f"--layers must be 1 to {self.full_layers} for --shape {self.name}, got {layers}."
            )
        return replace(self, layers=layers)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def language_config(self) -> dict:
        """The shape as arguments of transformers' configuration of the family."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", TINY_TOWER, 256, 4, 4, 4, 2, 704, 1024),
        Shape("smollm2", DINOV2_S, 576, 30, 30, 9, 3, 1536, 49152, tied=True),
        Shape("1.5b", CLIP_L, 1536, 28, 28, 12, 2, 8960, 151936, family="qwen2", tied=True),
        Shape("7b", CLIP_L, 4096, 32, 32, 32, 32, 11008, 32000),
        Shape("13b", CLIP_L, 5120, 40, 40, 40, 40, 13824, 32000),
    )
}
DEFAULT_DTYPE = {"tiny": "float32"}  # bfloat16 for all others


def language_flop(shape: Shape, batch: int, positions: int, logits: int) -> int:
    """FLOPs of a forward pass of the language model over float[B, T, D].

    Attention is counted as its two products over all T x T positions, as torch's own counter does.

    Args:
        logits: number of positions of each sequence that go through the head.
    """
    attention_width, kv_width = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    maps = shape.layers * shape.width * (2 * attention_width + 2 * kv_width + 3 * shape.ffn)
    head = logits * shape.width * shape.vocabulary
    return 2 * batch * (positions * maps + head) + attention_flop(shape, batch, positions)


def attention_flop(shape: Shape, batch: int, positions: int) -> int:
    """FLOPs of the two products of the language model's attention, which are part of language_flop."""
    return 4 * batch * shape.layers * shape.heads * shape.head_width * positions**2


def tower_flop(tower: dict, batch: int, layers: int) -> int:
    """FLOPs of a forward pass of the first layers of a CLIP or DINOv2 tower at IMAGE_SIZE."""
    width, patches = tower["hidden_size"], (IMAGE_SIZE // PATCH_SIZE) ** 2
    positions = patches + 1
    inner = tower.get("intermediate_size", 4 * width)
    layer = 2 * positions * (4 * width**2 + 2 * width * inner) + 4 * positions**2 * width
    return batch * (2 * patches * 3 * PATCH_SIZE**2 * width + layers * layer)


def kv_bytes(shape: Shape, positions: int, bytes_per_number: int) -> int:
    """Bytes of the keys and values of one sequence over all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_width * positions * bytes_per_number
