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
        return self.vision_tower.embeddings(pixel_values)  # interpolates its position embeddings itself

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return layer(hidden)  # in transformers 5.17 it takes no mask

    def attention_parts(self, layer: nn.Module) -> tuple[nn.Module, nn.Linear, nn.Linear]:
        attention = layer.attention
        if hasattr(attention, "attention"):  # older transformers nest it and use other names
            return layer.norm1, attention.attention.query, attention.attention.key
        return layer.norm1, attention.q_proj, attention.k_proj
