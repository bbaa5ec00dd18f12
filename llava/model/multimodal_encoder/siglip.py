"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025) vision towers; they have no class token."""

import torch.nn.functional as F
from torch import Tensor
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

from llava.model.multimodal_encoder.tower import VisionTower


class SiglipVisionTower(VisionTower):
    """SigLIP, and SigLIP 2 of fixed resolution, which has the same form."""

    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.vision_tower.embeddings(pixel_values, interpolate_pos_encoding=True)


class Siglip2VisionTower(VisionTower):
    """SigLIP 2 "NaFlex", which takes patches cut beforehand; here they always make up a full square."""

    config_class = Siglip2VisionConfig
    model_class = Siglip2VisionModel

    def __init__(self, fields, needs_levels, needs_attention=False):
        config = dict(fields.mm_vision_config)
        native = round(config.get("num_patches", 256) ** 0.5) * config.get("patch_size", 16)
        config.setdefault("image_size", native)  # the configuration counts patches, not pixels
        fields.mm_vision_config = config
        super().__init__(fields, needs_levels, needs_attention)

    def embed(self, pixel_values: Tensor) -> Tensor:
        size = self.patch_size
        # Each patch is read row by row, colours innermost: (3*p*p, N) of unfold becomes (N, p*p*3).
        patches = F.unfold(pixel_values, size, stride=size).unflatten(1, (-1, size * size))
        patches = patches.permute(0, 3, 2, 1).flatten(2)
        embeddings = self.vision_tower.embeddings
        side = embeddings.position_embedding_size
        table = embeddings.position_embedding.weight.float().T.reshape(1, -1, side, side)
        positions = F.interpolate(table, size=(self.grid_side,) * 2, mode="bilinear", antialias=True)
        return embeddings.patch_embedding(patches) + positions.flatten(2).transpose(1, 2).to(patches.dtype)
