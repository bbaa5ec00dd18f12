"""The model: vision tower, projector, merge and language model, and how they are loaded.

Published code imports the language models' classes from here; each is loaded when it is first accessed.
"""

from importlib import import_module

_MODULES = {
    "LlavaConfig": "llava_llama",
    "LlavaLlamaForCausalLM": "llava_llama",
    "LlavaMistralConfig": "llava_mistral",
    "LlavaMistralForCausalLM": "llava_mistral",
    "LlavaMptConfig": "llava_mpt",
    "LlavaMptForCausalLM": "llava_mpt",
    "LlavaQwenConfig": "llava_qwen",
    "LlavaQwenForCausalLM": "llava_qwen",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.language_model.{_MODULES[name]}"), name)
