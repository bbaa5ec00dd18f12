"""The configuration of models that transformers has no class of its own for."""

from transformers import LlavaConfig

from llava.model.multimodal_projector.builder import VisionFields


class VisualPrismConfig(VisionFields, LlavaConfig):
    """vision_config and text_config as in LLaVA, and the multimodal keys of our config.json."""

    model_type = "visualprism"
    mm_projector_type: str | None = "visualprism"

    def vision_fields(self) -> VisionFields:
        """The settings that tower and projector are built from, with vision_config as the tower's."""
        fields = {name: getattr(self, name) for name in VisionFields.__dataclass_fields__}
        return VisionFields(**{**fields, "mm_vision_config": self.vision_config.to_dict()})
