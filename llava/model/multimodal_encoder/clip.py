"""CLIP vision towers (Radford et al. 2021, "Learning Transferable Visual Models")."""

from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.tower import VisionTower


class CLIPVisionTower(VisionTower):
    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    num_prefix_tokens = 1

    def embed(self, pixel_values: Tensor) -> Tensor:
        hidden = self.vision_tower.embeddings(pixel_values, interpolate_pos_encoding=True)
        return self.vision_tower.pre_layrnorm(hidden)
