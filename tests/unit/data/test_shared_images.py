"""Records on the same pictures share them in one sequence, and learn what they would learn from it alone."""

import json
from argparse import Namespace
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava.data.collator import Collator
from llava.data.dataset import SupervisedDataset
from llava.data.lengths import UNSHARED, ExactLengths, exact_lengths, prefix_key
from llava.data.packing import PackedDataset, share_prefixes
from llava.data.record import Picture
from llava.data.sample import EncodedRecord, SampleBuilder

NUM_VISUAL, LIMIT = 4, 160
SQUARE = Namespace(image_aspect_ratio="square")


def record(images: list[str], *values: str, **more) -> dict:
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": values[-1], **({"image": images} if images else {}), **more, "conversations": turns}


CHATS = [
    record(["0.png"], "<image>\nWhat is it?", "A bus."),
    record(["1.png"], "<image>\nWhich colour?", "Red.", "Sure?", "Yes."),
    record(["0.png"], "How many wheels?\n<image>", "Four."),
    record([], "Hi", "Hello!"),
    record(["0.png"], "<image>\nSay more.", "It is red, and it has four wheels.", "Is it old?", "No."),
    record(["1.png"], "<image>\nIs it new?", "No, old."),
    record(["1.png"], "<image>\nIs it big?", "No.", system="Be brief."),
    record(["0.png", "1.png"], "<image> and <image>\nAre they the same?", "Not at all."),
    record(["0.png", "1.png"], "<image> and <image>\nWhich is red?", "Both."),
    record(["1.png", "0.png"], "<image> and <image>\nWhich is old?", "The first."),
    record(["0.png"], "Hi", "Hello!", "<image>\nWhat is it?", "A bus."),
    record(["0.png"], "Hi", "Hello!", "<image>\nWhose is it?", "Mine."),
]
SHARED = [[0, 2, 4], [1, 5], [3], [6], [7, 8], [9], [10], [11]]
CAPTIONS = [
    record([image], "<image>", caption)
    for image, caption in (("0.png", "a bus"), ("1.png", "a red car"), ("0.png", "it has four wheels"))
]


@pytest.fixture
def make(tmp_path, bpe_tokenizer):
    def build(records=CHATS, template="qwen_2", config=SQUARE, visual=lambda size: NUM_VISUAL, **kwargs):
        for index in range(2):
            values = np.random.default_rng(index).integers(0, 256, (20, 30 + 40 * index, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / f"{index}.png")
        (tmp_path / "data.json").write_text(json.dumps(records))
        limit = kwargs.pop("limit", LIMIT)
        builder = SampleBuilder(bpe_tokenizer, tiny.image_processor(), template, config, visual, limit)
        return SupervisedDataset([tmp_path / "data.json"], builder, tmp_path, **kwargs)

    return build


def sequences(packed: PackedDataset) -> list[list[int]]:
    return [records for index in range(len(packed)) for records in packed.sequences(index)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    records=st.lists(
        st.tuples(st.sampled_from([UNSHARED, 3, 5, 8]), st.integers(1, 6), st.integers(0, 6)), max_size=30
    )
)
def test_every_record_is_in_one_sequence_of_its_own_prefix_and_no_sequence_overflows(records):
    capacity = 20
    keys, after, prefixes = (
        (torch.tensor(values, dtype=torch.long) for values in zip(*records, strict=True))
        if records
        else 3 * (torch.zeros(0).long(),)
    )
    prefixes = torch.where(keys == UNSHARED, prefixes, keys)  # records of one key have one prefix
    made = share_prefixes(ExactLengths(prefixes + after, prefixes, keys), capacity)
    members = [part.tolist() for part in made.order.tensor_split(made.ends[:-1])] if records else []
    assert sorted(chain(*members)) == list(range(len(records)))
    for own, length in zip(members, made.lengths, strict=True):
        assert own == sorted(own)
        assert len(own) == 1 or len({int(keys[one]) for one in own} - {UNSHARED}) == 1
        assert length == prefixes[own[0]] + after[own].sum() <= capacity
    firsts = [own[0] for own in members if keys[own[0]] == UNSHARED]
    assert firsts == sorted(firsts)


def test_records_share_a_sequence_if_they_begin_alike_with_the_same_pictures(make):
    packed = PackedDataset(make(), share_images=True)
    assert sorted(map(sorted, sequences(packed))) == SHARED
    again = PackedDataset(make(), share_images=True)
    assert sequences(again) == sequences(packed), "the seed decides all of it"
    assert sequences(PackedDataset(make(seed=1), share_images=True)) != sequences(packed)
    plain = PackedDataset(make())
    assert sorted(sequences(plain)) == [[index] for index in range(len(CHATS))]
    assert len(packed) < len(plain)


def test_pictures_are_shared_between_files_and_as_often_as_a_weight_says(make, tmp_path):
    dataset = make()
    (tmp_path / "more.json").write_text(json.dumps([record(["0.png"], "<image>\nReally?", "Really.")]))
    paths = [tmp_path / "data.json", tmp_path / "more.json"]
    mixed = SupervisedDataset(paths, replace(dataset.builder, model_max_length=400), tmp_path, weights=[1, 2])
    assert [0, 2, 4, 12, 12] in map(sorted, sequences(PackedDataset(mixed, share_images=True)))


def test_a_picture_with_more_records_than_a_row_holds_is_in_several(make):
    many = [record(["0.png"], f"<image>\nWhat is number {number}?", "A bus.") for number in range(30)]
    dataset = make(many)
    packed = PackedDataset(dataset, share_images=True)
    assert sorted(chain(*sequences(packed))) == list(range(30))
    assert 1 < len(packed) < len(PackedDataset(dataset))
    batch = Collator(pad_token_id=0)(list(packed))
    lengths = (batch["sequence_ids"] >= 0).sum(dim=1) + (NUM_VISUAL - 1)
    assert len(batch["images"]) == len(packed)
    assert lengths.max() <= LIMIT
    lengths = exact_lengths(dataset)
    own = packed.sequences(0)[0]
    row = int(lengths.prefix[own[0]] + (lengths.whole - lengths.prefix)[own].sum())
    assert row == int((batch["sequence_ids"][0] >= 0).sum()) + NUM_VISUAL - 1


def test_pictures_inside_a_file_of_records_are_not_shared():
    prefix = {"input_ids": [1, -200, 2], "labels": [-100, -100, 2], "length": 6, "truncated": False}
    of_path, stored = (EncodedRecord("", files=[file], **prefix) for file in ("a.png", Picture.numbered(0)))
    assert prefix_key(of_path, lambda file: file) == prefix_key(of_path, lambda file: file) >= 0
    assert prefix_key(of_path, lambda file: f"other/{file}") != prefix_key(of_path, lambda file: file)
    assert prefix_key(stored, lambda file: file) == UNSHARED


def test_if_the_first_record_is_bad_the_next_one_brings_the_picture(make, tmp_path):
    dataset = make(on_bad_record="skip")
    packed = PackedDataset(dataset, share_images=True)
    own = next(records for records in sequences(packed) if sorted(records) == [0, 2, 4])
    row = next(index for index in range(len(packed)) if own in packed.sequences(index))
    complete = sum(len(sample["images"]) for sample in packed[row])
    dataset._flags[own[0]] = 1
    samples = packed[row]
    assert sum(len(sample["images"]) for sample in samples) == complete
    assert len(samples) == len(list(chain(*packed.sequences(row)))) - 1
    (tmp_path / "0.png").write_bytes(b"")
    names = {sample["name"] for index in range(len(packed)) for sample in packed[index]}
    assert {int(name.split("record ")[1].split()[0]) for name in names} == {1, 3, 5, 6}


def loss_and_gradients(model, rows, padding_side="right", **options):
    batch = Collator(pad_token_id=0, padding_side=padding_side)(rows)
    model.config.tokenizer_padding_side = padding_side
    del batch["record_names"]
    model.zero_grad()
    loss = model(**batch, **options).loss
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return loss.detach(), gradients


def build(folder, family="llama", decoder=None, **fields):
    model = tiny.build(folder, family, scale_factor=2, decoder=decoder, **fields).train()
    model.get_projector().eval()  # its batch norms would see each picture as often as it is in the batch
    with torch.no_grad():
        for parameter in model.get_decoder().layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # loud enough for what a token sees to show in the loss
    return model


WINDOW = {"sliding_window": 24}
SOME_LAYERS = {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}
CASES = {
    "llama": ("llama", None, "sdpa"),
    "eager": ("llama", None, "eager"),
    "mistral": ("mistral", None, "sdpa"),
    "mistral_window": ("mistral", WINDOW, "eager"),
    "qwen2": ("qwen2", None, "sdpa"),
    "qwen2_window": ("qwen2", SOME_LAYERS, "sdpa"),
    "qwen3": ("qwen3", None, "sdpa"),
}


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.parametrize("case", CASES)
def test_shared_pictures_give_the_loss_and_the_gradients_of_separate_records(make, tmp_path, case):
    family, decoder, attention = CASES[case]
    model = build(tmp_path / "model", family, decoder)
    model.set_attn_implementation(attention)
    packed = PackedDataset(make(), share_images=True)
    alone = [sample for row in PackedDataset(make()) for sample in row]
    expected, expected_gradients = loss_and_gradients(model, alone)
    loss, gradients = loss_and_gradients(model, list(packed))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert set(gradients) == set(expected_gradients)
    for name, value in gradients.items():
        torch.testing.assert_close(value, expected_gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    # it is the borders of the branches that make it so
    blurred = [[{**one, "branch_ids": 0 * one["branch_ids"]} for one in row] for row in packed]
    assert (loss_and_gradients(model, blurred)[0] - expected).abs() > 1e-4


@pytest.mark.slow
def test_the_loss_is_the_same_on_either_side_of_padding_with_captions_and_with_other_budgets(make, tmp_path):
    model = build(tmp_path / "model")
    for records, template in ((CHATS, "qwen_2"), (CAPTIONS, "plain")):
        packed = list(PackedDataset(make(records, template), share_images=True))
        alone = [sample for row in PackedDataset(make(records, template)) for sample in row]
        for scale_factor in (2, 4):
            expected, _ = loss_and_gradients(model, alone, scale_factor=scale_factor)
            for side in ("right", "left"):
                loss, _ = loss_and_gradients(model, packed, side, scale_factor=scale_factor)
                torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    batch = Collator(pad_token_id=0, padding_side="left")(packed)
    del batch["record_names"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch, scale_factor=4).loss, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_tiled_pictures_are_shared_with_all_their_tiles(make, tmp_path, bpe_tokenizer):
    model = build(tmp_path / "model", image_aspect_ratio="slice")
    model.initialize_vision_tokenizer(model.config, bpe_tokenizer)
    dataset = make(CHATS[:6], config=model.config, visual=model.visual_positions_of, limit=600)
    packed = PackedDataset(dataset, share_images=True)
    rows = list(packed)
    batch = Collator(pad_token_id=0)(rows)
    del batch["record_names"], batch["branch_ids"]
    merged = model.merge_inputs(**batch, padding_side="right")
    lengths = exact_lengths(dataset)
    members = sequences(packed)
    assert sorted(map(sorted, members)) == [[0, 2, 4], [1, 5], [3]]
    shared = sum(int(lengths.prefix[own[0]]) * (len(own) - 1) for own in members)
    assert merged.attention_mask.sum() == lengths.whole.sum() - shared
    expected, _ = loss_and_gradients(model, [sample for row in PackedDataset(dataset) for sample in row])
    torch.testing.assert_close(loss_and_gradients(model, rows)[0], expected, rtol=0, atol=1e-5)
