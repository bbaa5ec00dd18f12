"""Our models as transformers models: after `import llava.hf` its Auto classes load exported folders."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

# transformers 5.17 has it at its top level only if torchvision is installed
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from llava.hf.configuration import VisualPrismConfig
from llava.hf.image_processing import VisualPrismImageProcessor
from llava.hf.modeling import VisualPrismForConditionalGeneration, VisualPrismModel
from llava.hf.processing import VisualPrismProcessor

__all__ = [
    "VisualPrismConfig",
    "VisualPrismForConditionalGeneration",
    "VisualPrismImageProcessor",
    "VisualPrismModel",
    "VisualPrismProcessor",
]

AutoConfig.register(VisualPrismConfig.model_type, VisualPrismConfig, exist_ok=True)
AutoModel.register(VisualPrismConfig, VisualPrismModel, exist_ok=True)
AutoModelForImageTextToText.register(VisualPrismConfig, VisualPrismForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VisualPrismConfig, VisualPrismProcessor, exist_ok=True)
# for both backends: its arithmetic is the same with and without torchvision
AutoImageProcessor.register(
    VisualPrismConfig,
    image_processor_classes=dict.fromkeys(("pil", "torchvision"), VisualPrismImageProcessor),
    exist_ok=True,
)
