"""A whole model folder with random weights, small enough to answer in milliseconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

IMAGE_SIZE, PATCH_SIZE, SCALE_FACTOR = 48, 8, 2  # a 6x6 grid, 9 visual tokens


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's and Vicuna's end marks."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        ["what colour is the red circle? the answer is a blue triangle."] * 4,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=special[3:],
    )


def save_tiny_llava(folder: Path, seed: int = 0, **config) -> Path:
    """Write model, tokenizer and image processor; `config` overrides keys of config.json."""
    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,  # large: answers should differ from one another
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "mm_vision_tower": "tiny",
        "mm_vision_config": vision.to_dict(),
        "mm_projector_type": "visualprism",
        "scale_factor": SCALE_FACTOR,
        "image_aspect_ratio": "square",
    }
    torch.manual_seed(seed)
    model = LlavaLlamaForCausalLM(LlavaConfig(**{**settings, **config}))
    with torch.no_grad():
        model.get_projector().mlp[-1].weight.mul_(2000)  # visual tokens as loud as words
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ).save_pretrained(folder)
    return folder
