"""The plugin that vLLM loads in each of its processes, so that `vllm serve` takes exported folders."""


def register() -> None:
    """Register our class with vLLM's backend for transformers models; entry point vllm.general_plugins."""
    from vllm import ModelRegistry

    from llava.hf import VisualPrismForConditionalGeneration

    ModelRegistry.register_model(
        VisualPrismForConditionalGeneration.__name__,
        "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM",
    )
