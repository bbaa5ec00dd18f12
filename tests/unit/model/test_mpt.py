"""MPT: transformers' own results, padding on either side, published names, and its limits."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import MptForCausalLM

from llava.constants import IGNORE_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import PROJECTOR_FILE, PROJECTOR_PREFIX
from llava.model.language_model.builder import read_config, type_of
from llava.train.saving import save_projector
from llava.train.trainable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, part_of

ROWS = [[1, 5, 9, 7, 8, 9, 10, 11], [1, 6, 4], [1, 2, 3, 4, 9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpt")
    tiny.build(folder, "mpt", mm_projector_type="linear").save_pretrained(folder / "whole")
    return folder


@pytest.fixture
def model(folder):
    config = read_config(folder / "whole")
    return type_of(config).from_pretrained(folder / "whole", config=config).eval()


@pytest.fixture
def theirs(folder):
    return MptForCausalLM.from_pretrained(folder / "language_model").eval()


def batch(padding_side):
    pad = {"batch_first": True, "padding_side": padding_side}
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in ROWS], **pad).long()
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ROWS], **pad), mask


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_logits_and_loss_of_text_are_transformers_own(model, theirs, padding_side):
    ids, mask = batch(padding_side)
    labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)
    model.config.tokenizer_padding_side = padding_side
    in_training = model.train()(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(in_training, expected.loss)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_no_logit(model, padding_side):
    ids, mask = batch(padding_side)
    together = model(input_ids=ids, attention_mask=mask).logits
    for row, kept, logits in zip(ROWS, mask.bool(), together, strict=True):
        alone = model(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(logits[kept], alone, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    ids, mask = batch("right")
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model.train()(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append([block.attn.Wqkv.weight.grad.clone() for block in model.get_model().blocks])
    assert gradients[0][0].any()
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_weights_have_the_published_names(folder, model):
    names = set(load_file(folder / "whole" / "model.safetensors"))
    for name in ("wte.weight", "blocks.0.attn.Wqkv.weight", "norm_f.weight", "mm_projector.weight"):
        assert f"transformer.{name}" in names
    assert "lm_head.weight" not in names  # tied
    assert model.lm_head.weight is model.get_model().wte.weight
    parts = {part_of(name) for name, _ in model.named_parameters()}
    assert parts == {VISION_TOWER, PROJECTOR, LANGUAGE_MODEL}
    assert part_of("base_model.model.transformer.mm_projector.0.weight") == PROJECTOR


def test_a_published_folder_loads_without_its_tower_and_with_the_keys_of_its_time(
    folder, tmp_path, bpe_tokenizer, model
):
    model.save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    published = {name: value for name, value in weights.items() if "vision_tower" not in name}
    torch.save(published, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "attn_config": {"attn_impl": "torch", "alibi": True},
        "verbose": 0,
        "init_config": {"name": "x"},
    }
    del config["mm_vision_config"], config["mm_projector_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, loaded, _, context_length = load_pretrained_model(str(tmp_path))
    assert context_length == config["max_seq_len"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def test_stage_1_writes_and_reads_its_projector_under_transformer(folder, tmp_path, bpe_tokenizer, model):
    save_projector(model, tmp_path)
    bpe_tokenizer.save_pretrained(folder / "language_model")
    names = set(torch.load(tmp_path / PROJECTOR_FILE))
    assert names == {f"transformer.{PROJECTOR_PREFIX}{name}" for name in ("weight", "bias")}
    loaded = load_pretrained_model(str(tmp_path), str(folder / "language_model"))[1]
    assert torch.equal(loaded.get_projector().weight, model.get_projector().weight)


def test_a_sequence_beyond_its_length_is_refused(model):
    model.config.max_seq_len = 4
    with pytest.raises(ValueError, match="5 tokens.*max_seq_len.*4"):
        model(input_ids=torch.tensor([[1, 2, 3, 4, 5]]))
    with pytest.raises(ValueError, match="5 tokens.*max_seq_len"):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, eos_token_id=None, pad_token_id=0)
