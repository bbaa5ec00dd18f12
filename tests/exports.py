"""Models that tests export, and the questions that they answer before and after the export."""

from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava.hf  # noqa: F401  # registers its classes
from llava.conversation import chat_prompt, template_of
from llava.mm_utils import left_pad, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

FOR_VLLM = {"head_dim": 32, "max_position_embeddings": 512}  # vLLM refuses narrower heads on CPUs
SIZES = ((70, 100), (56, 56), (120, 40))


def pictures(number: int) -> list[Image.Image]:
    """Images of noise in several shapes."""
    draw = np.random.default_rng(0)
    shapes = (SIZES[i % len(SIZES)] for i in range(number))
    return [Image.fromarray(draw.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in shapes]


def save_whole(folder: Path, tokenizer, family: str = "llama", tower: str = "clip", **fields) -> Path:
    """Writes a whole model's folder as training does, with its language model and tower beside it."""
    parts = folder.with_name(f"{folder.name}-parts")
    model = tiny.build(parts, family, tower, **fields)
    with torch.no_grad():
        for (
            parameter
        ) in model.get_projector().parameters():  # so that batch norms, gains and biases have an effect
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.initialize_vision_tokenizer(model.config, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)
    return folder


Turns = list[tuple[str, int, str | None]]  # the argument of chat_prompt


class Ours:
    """A loaded folder in the layout that training writes."""

    def __init__(self, folder: Path, model_base: str | None = None):
        loaded = load_pretrained_model(str(folder), model_base, device="cpu", torch_dtype="auto")
        self.tokenizer, self.model, self.image_processor, _ = loaded
        self.template = template_of(self.model.config)

    def ids(self, turns: Turns) -> list[int]:
        config = self.model.config
        prompt = chat_prompt(turns, self.template, config.mm_use_im_start_end)
        return tokenizer_image_token(prompt, self.tokenizer)

    @torch.no_grad()
    def logits(self, chats: list[Turns], images: list[Image.Image], scale_factor=None) -> list[torch.Tensor]:
        """The logits float[T, V] of each chat, without padding."""
        pixels = process_images(images, self.image_processor, self.model.config)
        ids, mask = left_pad([self.ids(turns) for turns in chats], self.tokenizer.pad_token_id)
        merged = self.model.merge_inputs(
            *(ids, mask, None, pixels, [image.size for image in images]), scale_factor=scale_factor
        )
        logits = self.model(
            inputs_embeds=merged.inputs_embeds,
            attention_mask=merged.attention_mask,
            position_ids=merged.position_ids,
        ).logits
        return [row[kept] for row, kept in zip(logits, merged.attention_mask, strict=True)]

    @torch.no_grad()
    def answers(self, question: str, images: list[Image.Image], budgets: list[int | None], length: int):
        """`length` greedy token ids list[int] for the question about each image, asked one by one."""
        found = []
        for image, budget in zip(images, budgets, strict=True):
            answer = self.model.generate(
                torch.tensor([self.ids([(question, 1, None)])]),
                images=process_images([image], self.image_processor, self.model.config),
                image_sizes=[image.size],
                scale_factor=budget,
                max_new_tokens=length,
                min_new_tokens=length,
                do_sample=False,
            )
            found.append(answer[0].tolist())
        return found


class Theirs:
    """An exported folder, loaded with transformers."""

    def __init__(self, folder: Path, **options):
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")  # the same arithmetic as ours
        self.model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()

    def inputs(self, chats: list[Turns], images: list[Image.Image], **options):
        left = iter(images)
        conversations = [messages(turns, left) for turns in chats]
        return self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, **options},
        )

    def ids(self, turns: Turns, images: list[Image.Image]) -> list[int]:
        """The prompt's ids, in which each image is one IMAGE_TOKEN_INDEX."""
        found, mark = [], self.processor.image_token_id
        for token in self.inputs([turns], images).input_ids[0].tolist():
            if token != mark:
                found.append(token)
            elif not found or found[-1] != -200:
                found.append(-200)
        return found

    @torch.no_grad()
    def logits(self, chats: list[Turns], images: list[Image.Image], **options) -> list[torch.Tensor]:
        inputs = self.inputs(chats, images, **options)
        logits = self.model(**inputs).logits
        return [row[kept] for row, kept in zip(logits, inputs.attention_mask.bool(), strict=True)]


def messages(turns: Turns, images) -> list[dict]:
    """A chat in the form that transformers, TRL and the OpenAI API share; it uses the images in order."""
    found = []
    for question, num_images, answer in turns:
        content = [{"type": "image", "image": next(images)} for _ in range(num_images)]
        found.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        if answer is not None:
            found.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return found


def assert_same_logits(ours: Ours, theirs: Theirs, chats, images, scale_factor: int | None = None) -> None:
    """Compares the logits of the words that our model has, position by position."""
    options = {} if scale_factor is None else {"scale_factor": scale_factor}
    pairs = zip(
        ours.logits(chats, images, scale_factor), theirs.logits(chats, images, **options), strict=True
    )
    for own, exported in pairs:
        torch.testing.assert_close(exported[:, : own.shape[-1]], own, atol=1e-5, rtol=1e-5)
