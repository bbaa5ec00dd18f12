"""What vLLM asks for in each of its processes, so that `vllm serve` takes exported folders."""


def register() -> None:
    """Our class as vLLM's own, run by its backend for transformers' models; in vllm.general_plugins."""
    from vllm import ModelRegistry

    from llava.hf import VisualPrismForConditionalGeneration

    ModelRegistry.register_model(
        VisualPrismForConditionalGeneration.__name__,
        "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM",
    )
