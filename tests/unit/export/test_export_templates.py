"""An exported folder's chat template gives the ids of conv_templates and encode_prompt."""

import copy
import json

import exports
import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoProcessor, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.chat_template import Marks, chat_template
from llava.conversation import SeparatorStyle, chat_prompt, conv_templates, place_images
from llava.data.targets import build_targets
from llava.mm_utils import encode_prompt

pytestmark = pytest.mark.slow

CHATS = [
    [("What is it?", 1, None)],
    [("<image>", 1, None)],
    [(" Compare <image> <image><image>with one another.\n", 3, "They differ."), ("Why?", 0, None)],
    [("Good day!", 0, "Good day."), ("What is it?", 1, "A bus."), ("And this?", 1, None)],
]
ANSWERED = [
    [("<image>", 1, "A red bus.")],
    [("Compare <image> and <image>.", 2, "They differ."), ("Why?", 0, "One is red, \nthe other blue.")],
]
NUM_PATCHES = 4


def processor_of(tokenizer, folder):
    """The processor as it is loaded from a folder, with <image> as a token."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<image>"], special_tokens=True)
    side = {"height": 28, "width": 28}
    images = LlavaImageProcessorPil(size=side, crop_size=side)
    LlavaProcessor(images, own, 14, "full").save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llava"})
    )  # this also names a class of tokenizer
    return AutoProcessor.from_pretrained(folder)


def expanded(ids, image_token_id):
    """The prompt with NUM_PATCHES tokens for each image."""
    return [i for token in ids for i in ([image_token_id] * NUM_PATCHES if token == -200 else [token])]


@pytest.mark.transformers
@pytest.mark.parametrize("kind", ["legacy", "non_legacy", "bpe", "llama_3"])
def test_the_processor_gives_our_ids_of_every_template(kind, tmp_path, request):
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    processor = processor_of(tokenizer, tmp_path)
    mark, tokenizers = processor.image_token_id, processor.tokenizer
    for template in conv_templates.values():
        processor.chat_template = chat_template(template, marks=Marks.of(tokenizers))
        chats = CHATS[:2] if template.sep_style is SeparatorStyle.PLAIN else CHATS
        for chat in chats:
            expected = expanded(encode_prompt(chat_prompt(chat, template), tokenizer)[0], mark)
            conversation = exports.messages(chat, iter(exports.pictures(3)))
            options = {"add_generation_prompt": True, "return_dict": True}
            inputs = processor.apply_chat_template(conversation, tokenize=True, **options)
            assert list(inputs["input_ids"][0]) == expected
            text = processor.apply_chat_template(conversation, add_generation_prompt=True)
            ids = tokenizers.encode(
                text, add_special_tokens=False
            )  # as a server does that adds no special tokens
            assert expanded([-200 if token == mark else token for token in ids], mark) == expected


@pytest.mark.parametrize("kind", ["legacy", "non_legacy", "bpe", "llama_3"])
def test_the_assistant_s_tokens_are_those_with_a_label_in_training(kind, tmp_path, request):
    """TRL computes its loss over them if assistant_only_loss is set."""
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    processor = processor_of(tokenizer, tmp_path)
    for template in conv_templates.values():
        processor.chat_template = chat_template(template, marks=Marks.of(processor.tokenizer))
        if kind.endswith("legacy") and template.sep.startswith("<|"):
            continue  # the vocabulary lacks these marks, so a token can reach from one turn into the next
        for chat in ANSWERED[:1] if template.sep_style is SeparatorStyle.PLAIN else ANSWERED:
            conversation = template.copy()
            for question, num_images, answer in chat:
                conversation.append_message(template.roles[0], place_images(question, num_images, template))
                conversation.append_message(template.roles[1], answer)
            trained = list(zip(*build_targets(conversation, tokenizer), strict=True))
            inputs = processor.apply_chat_template(
                exports.messages(chat, iter(exports.pictures(3))),
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            pairs = zip(inputs["input_ids"][0], inputs["assistant_masks"][0], strict=True)
            found = [(token, token if is_said else -100) for token, is_said in pairs]
            mark = (processor.image_token_id, -100)
            assert [pair for pair in found if pair != mark] == [pair for pair in trained if pair[0] != -200]


def test_parts_of_another_kind_are_refused(bpe_tokenizer, tmp_path):
    processor = processor_of(bpe_tokenizer, tmp_path)
    processor.chat_template = chat_template(conv_templates["qwen_2"], marks=Marks.of(processor.tokenizer))
    with pytest.raises(TemplateError, match="got video"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}])
