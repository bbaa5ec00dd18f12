"""New words of a model start at the mean of the known ones, wherever their rows are."""

import copy

import pytest
import tiny
import torch

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.language_model.builder import read_config, type_of
from llava.model.multimodal_projector.builder import VisionFields

ALL = VisionFields(mm_use_im_start_end=True, mm_use_im_patch_token=True)
WORDS = [DEFAULT_IMAGE_PATCH_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]


def load(folder, family, spare, tokenizer, dtype, **changes):
    """A language model with `spare` more rows than the tokenizer has words, far from all other rows."""
    rows = {"vocab_size": len(tokenizer) + spare, **changes}
    config = read_config(tiny.save_language_model(folder / family, family, **rows))
    model = type_of(config).from_pretrained(folder / family, config=config, dtype=dtype)
    with torch.no_grad():
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            table[len(tokenizer) :] = 100
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spare", [0, 1, 2, 3, 64])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("qwen2", {"tie_word_embeddings": True}), ("mpt", {})],
    ids=["untied", "tied", "mpt"],
)
def test_an_added_word_starts_at_the_mean_of_the_known_words(
    tmp_path, bpe_tokenizer, family, changes, spare, dtype
):
    tokenizer = copy.deepcopy(bpe_tokenizer)
    num_words = len(tokenizer)
    model = load(tmp_path, family, spare, tokenizer, dtype, **changes)
    known = [
        table.weight[:num_words].clone()
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    model.initialize_vision_tokenizer(ALL, tokenizer)
    added = tokenizer.convert_tokens_to_ids(WORDS)
    assert added == [num_words, num_words + 1, num_words + 2]
    assert model.get_input_embeddings().num_embeddings == num_words + max(spare, 3)
    assert model.config.vocab_size == model.lm_head.out_features == num_words + max(spare, 3)
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for before, table in zip(known, tables, strict=True):
        assert torch.equal(table[:num_words], before)
        mean = before.float().mean(dim=0)
        for row in table[added]:
            torch.testing.assert_close(row.float(), mean, atol=1e-3, rtol=1e-2)
        assert torch.equal(table[num_words + 3 :], torch.full_like(table[num_words + 3 :], 100))


def test_words_that_are_there_keep_what_they_learnt(tmp_path, bpe_tokenizer):
    tokenizer = copy.deepcopy(bpe_tokenizer)
    model = load(tmp_path, "llama", 8, tokenizer, torch.float32)
    model.initialize_vision_tokenizer(ALL, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(WORDS)] = 7
    before = model.get_input_embeddings().weight.clone()
    model.initialize_vision_tokenizer(ALL, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, before)
