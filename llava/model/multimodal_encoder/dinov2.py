"""DINOv2 vision towers (Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision")."""

from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from llava.model.multimodal_encoder.tower import VisionTower


class Dinov2VisionTower(VisionTower):
    config_class = Dinov2Config
    model_class = Dinov2Model
    num_prefix_tokens = 1

    @property
    def layers(self) -> nn.ModuleList:
        return self.vision_tower.encoder.layer

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.vision_tower.embeddings(pixel_values)  # interpolates its positions by itself
