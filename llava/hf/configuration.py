"""The configuration of a model whose projector transformers has no class for."""

from transformers import LlavaConfig

from llava.model.multimodal_projector.builder import VisionFields


class VisualPrismConfig(VisionFields, LlavaConfig):
    """vision_config and text_config as in LLaVA, and the multimodal keys of our config.json."""

    model_type = "visualprism"
    mm_projector_type: str | None = "visualprism"

    def vision_fields(self) -> VisionFields:
        """What tower and projector are built by; the tower's own configuration is vision_config alone."""
        fields = {name: getattr(self, name) for name in VisionFields.__dataclass_fields__}
        return VisionFields(**{**fields, "mm_vision_config": self.vision_config.to_dict()})
