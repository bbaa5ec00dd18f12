"""Every language model with its own template and tokenizer: a training step, saving, loading, answers."""

import json
import math

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates, question_prompt
from llava.data.targets import build_targets, conversation_from_record
from llava.decoding import Stopping
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.language_model.builder import MODEL_CLASSES
from llava.train.train import train

LOUD = {"initializer_range": 0.3}  # so that answers differ from one another
ROPE_OF_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name: (family of tiny.LANGUAGE_MODELS, changes of its configuration, template, kind of tokenizer)
BACKBONES = {
    "Vicuna": ("llama", {"num_key_value_heads": 2}, "v1", "sentencepiece"),
    "Llama 2": ("llama", {"num_key_value_heads": 2}, "llava_llama_2", "sentencepiece"),
    "Llama 3": ("llama", {"rope_parameters": ROPE_OF_LLAMA_3}, "llava_llama_3", "llama_3"),
    "Mistral": ("mistral", {"sliding_window": 8}, "mistral_instruct", "sentencepiece"),
    "Qwen2": ("qwen2", {}, "qwen_2", "chatml"),
    "Qwen2.5": ("qwen2", {"tie_word_embeddings": True}, "qwen_2", "chatml"),
    "Qwen3": ("qwen3", {}, "qwen_2", "chatml"),
    "SmolLM2": ("llama", {"tie_word_embeddings": True}, "qwen_2", "chatml"),
    "MPT": ("mpt", {}, "mpt", "neox"),
}


@pytest.fixture(scope="module")
def tokenizers(bpe_tokenizer, llama_3_tokenizer, legacy_tokenizer):
    """Tokenizers by kind."""
    neox = tiny.byte_level_tokenizer(
        ["A chat. What is shown? A red bus."],
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    return {
        "sentencepiece": legacy_tokenizer,
        "llama_3": llama_3_tokenizer,
        "chatml": bpe_tokenizer,
        "neox": neox,
    }


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tower, pictures, and records with and without a picture."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("parts")
    tiny.save_tower(folder / "tower")
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
    turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": "A red bus."}]
    text = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    records = [{"image": "red.png", "conversations": turns}, {"conversations": text}]
    (folder / "records.json").write_text(json.dumps(records))
    return folder


def train_a_step(folder, parts, name, tokenizer, *more) -> None:
    family, changes, template, _ = BACKBONES[name]
    torch.manual_seed(0)
    language_model = tiny.save_language_model(
        folder / "language_model", family, **LOUD, **{"vocab_size": len(tokenizer), **changes}
    )
    tokenizer.save_pretrained(language_model)
    flags = {
        "model_name_or_path": language_model,
        "vision_tower": parts / "tower",
        "data_path": parts / "records.json",
        "image_folder": parts,
        "output_dir": folder / "out",
        "mm_projector_type": "visualprism",
        "version": template,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": True,
        "report_to": "none",
    }
    train([item for flag, value in flags.items() for item in (f"--{flag}", str(value))] + [*more])


def losses(folder) -> list[float]:
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def answers(model, tokenizer, image_processor, template, questions) -> list[list[int]]:
    """Greedy answers of one batch; a question is (text, file of its image or None)."""
    rows, images = [], []
    for text, file in questions:
        prompt = question_prompt(text, int(file is not None), conv_templates[template])
        rows.append(torch.tensor(tokenizer_image_token(prompt, tokenizer)))
        images += [Image.open(file)] if file is not None else []
    pad = {"batch_first": True, "padding_side": "left"}
    ids = torch.nn.utils.rnn.pad_sequence(rows, padding_value=tokenizer.pad_token_id, **pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], **pad).bool()
    pixels = process_images(images, image_processor, model.config) if images else None
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, images=pixels, attention_mask=mask, **options).tolist()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_trains_is_saved_loaded_and_answers_alike_in_batches_and_alone(
    tmp_path, parts, tokenizers, name
):
    family, changes, template, kind = BACKBONES[name]
    train_a_step(tmp_path, parts, name, tokenizers[kind])
    assert math.isfinite(losses(tmp_path)[0])

    tokenizer, model, image_processor, _ = load_pretrained_model(str(tmp_path / "out"))
    assert type(model) is MODEL_CLASSES[family]
    assert model.config.conv_version == template
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (
        family == "mpt" or changes.get("tie_word_embeddings", False)
    )
    record = json.loads((parts / "records.json").read_text())[0]
    conversation = conversation_from_record(record, template)
    labels = [label for label in build_targets(conversation, tokenizer)[1] if label != IGNORE_INDEX]
    assert tokenizer.decode(labels).replace(" ", "") == f"Aredbus.{conversation.stop_str}"

    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    ends = generation["eos_token_id"]
    ends = set(ends) if isinstance(ends, list) else {ends}
    assert ends == set(Stopping(model, tokenizer, conv_templates[template]).eos_token_ids)
    assert tokenizer.get_added_vocab().get(conversation.stop_str) in {None, *ends}
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert asked == question_prompt("Which colour?", 1, conv_templates[template])

    questions = [
        ("Which colour?", parts / "red.png"),
        ("Is this a picture of a bus, of two white houses, or of neither?", parts / "blue.png"),
        ("Hi", None),
    ]
    together = answers(model, tokenizer, image_processor, template, questions)
    alone = [answers(model, tokenizer, image_processor, template, [question])[0] for question in questions]
    assert together == alone
    assert len({tuple(answer) for answer in together}) > 1


def test_packing_is_refused_where_positions_cannot_start_anew(tmp_path, parts, tokenizers):
    with pytest.raises(SystemExit, match="--packing: LlavaMptForCausalLM"):
        train_a_step(tmp_path, parts, "MPT", tokenizers["neox"], "--packing", "True")
    assert not (tmp_path / "out").exists()


def test_compiled_training_has_the_losses_and_leaves_the_folder_of_plain_training(
    tmp_path, parts, tokenizers
):
    more = ["--max_steps", "2", "--gradient_checkpointing", "False", "--mm_projector_type", "tokenpacker"]
    train_a_step(tmp_path / "plain", parts, "SmolLM2", tokenizers["chatml"], *more)
    more += ["--torch_compile", "True", "--torch_compile_backend", "aot_eager"]
    counters.clear()
    train_a_step(tmp_path / "compiled", parts, "SmolLM2", tokenizers["chatml"], *more)
    assert counters["stats"]["unique_graphs"] > 0
    assert not any("item()" in reason for reason in counters["graph_break"])  # plan_merge is not compiled
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    plain, compiled = (
        load_file(tmp_path / run / "out" / "model.safetensors") for run in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=0)
