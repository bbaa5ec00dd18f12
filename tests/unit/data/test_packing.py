"""Packs contain each record once, within the limit; packing does not change the loss and the gradients."""

import copy
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
from transformers import CLIPImageProcessor

from llava.data.collator import Collator
from llava.data.dataset import SupervisedDataset
from llava.data.lengths import exact_lengths
from llava.data.packing import PackedDataset, pack
from llava.data.record import BadRecord
from llava.data.sample import SampleBuilder
from llava.model.multimodal_merge import one_row

SIDE = 56
PROCESSOR = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
NUM_VISUAL, LIMIT = 4, 260
SQUARE = Namespace(image_aspect_ratio="square")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 20), max_size=80), num_open=st.integers(1, 6))
def test_every_item_is_in_one_row_and_no_row_overflows(lengths, num_open):
    rows = list(pack(enumerate(lengths), 20, num_open))
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 20 for row in rows)


def test_an_item_goes_where_it_leaves_the_least_space():
    assert list(pack(enumerate([6, 7, 3, 4]), 10)) == [[1, 2], [0, 3]]


def test_rows_of_a_long_tail_are_nearly_full():
    drawn = np.random.default_rng(0).lognormal(5.3, 0.8, 5000)
    lengths = np.clip(drawn, 20, 2048).astype(int).tolist()
    rows = list(pack(enumerate(lengths), 2048))
    assert sum(lengths) / (2048 * len(rows)) > 0.97


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def some_records():
    """Records with text only, with one image and with two, of different lengths."""
    for index in range(9):
        images = [f"{index}.png", "0.png"][: index % 3]
        marks = "<image>\n" * len(images)
        words = "What is it? " * (1 + index % 4)
        record = {"id": index, "conversations": turns(marks + words, f"Number {index}.", "Sure?", "Yes.")}
        yield {**record, "image": images} if images else record


def maker(folder, tokenizer):
    """A function that makes a data set of records with pictures in a folder."""
    for index in range(9):
        values = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")

    def build(
        records=None, image_config=SQUARE, visual_positions=lambda size: NUM_VISUAL, limit=LIMIT, **kwargs
    ):
        (folder / "data.json").write_text(json.dumps(list(records or some_records())))
        builder = SampleBuilder(
            tokenizer,
            PROCESSOR,
            "qwen_2",
            image_config,
            visual_positions,
            model_max_length=limit,
        )
        return SupervisedDataset([folder / "data.json"], builder, folder, **kwargs)

    return build


@pytest.fixture
def make(tmp_path, bpe_tokenizer):
    return maker(tmp_path, bpe_tokenizer)


@pytest.fixture(scope="module")
def packs(tmp_path_factory, bpe_tokenizer):
    """Packs of some_records."""
    return list(PackedDataset(maker(tmp_path_factory.mktemp("packs"), bpe_tokenizer)()))


def members_of(packed, index):
    return list(chain(*packed.sequences(index)))


def all_members(packed):
    return list(chain(*(members_of(packed, index) for index in range(len(packed)))))


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_packs_are_fixed_by_the_seed_and_hold_each_record_within_the_limit(make, num_workers):
    dataset = make()
    packed = PackedDataset(dataset, num_workers)
    members = [members_of(packed, index) for index in range(len(packed))]
    assert sorted(chain(*members)) == list(range(9))
    assert len(packed) < 9
    assert all(sum(dataset.length(record) for record in row) <= LIMIT for row in members)
    again = PackedDataset(make())
    assert [members_of(again, index) for index in range(len(again))] == members
    other = PackedDataset(make(seed=1))
    assert [members_of(other, index) for index in range(len(other))] != members
    assert [sample["name"] for sample in packed[0]] == [dataset[record]["name"] for record in members[0]]


def test_a_weighted_file_is_packed_as_often_as_it_is_taken(make):
    packed = PackedDataset(make(weights=[2.0]))
    members = all_members(packed)
    assert sorted(members) == sorted(2 * list(range(9)))


def test_a_record_that_proves_bad_is_left_out_of_its_pack_and_counted(make, tmp_path):
    packed = PackedDataset(make(on_bad_record="skip"))
    for name in ("1.png", "0.png"):
        (tmp_path / name).write_bytes(b"")
    bad = {1, 2, 5, 8}  # two of three records have images, and every second one of these names 0.png
    names = {sample["name"] for index in range(len(packed)) for sample in packed[index]}
    assert {int(name.split("record ")[1].split()[0]) for name in names} == set(range(9)) - bad
    assert len(packed.bad_records) == len(bad)
    strict = PackedDataset(make([next(some_records())] * 3))
    assert len(strict[0]) == 3


def test_what_has_no_answer_within_the_limit_is_found_ahead_of_the_first_step(make):
    long = {"id": "long", "conversations": turns("What? " * LIMIT, "It.")}
    with pytest.raises(BadRecord, match=r"\(id long\).*--model_max_length"):
        PackedDataset(make([*some_records(), long]))
    packed = PackedDataset(make([*some_records(), long], on_bad_record="skip"))
    assert 9 not in all_members(packed)
    assert len(packed.bad_records) == 1
    with pytest.raises(BadRecord, match="record to pack"):
        PackedDataset(make([long], on_bad_record="skip"))


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_lengths_are_measured_once_for_later_runs_as_well(make, monkeypatch, num_workers):
    long = {"id": "long", "conversations": turns("What?", "It. " * LIMIT)}
    bad = {"id": "bad", "conversations": turns("What? " * LIMIT, "It.")}
    dataset = make([*some_records(), long, bad], on_bad_record="skip")
    state = torch.get_rng_state()
    lengths = exact_lengths(dataset, num_workers).whole
    assert torch.equal(torch.get_rng_state(), state), "a run that measures nothing must draw the same numbers"
    assert lengths.tolist() == [dataset.length(record) for record in range(11)]
    assert (dataset.num_truncated, len(dataset.bad_records)) == (1, 1)
    again = SupervisedDataset(dataset.data_paths, dataset.builder, dataset.image_folder, on_bad_record="skip")
    encoded = []
    monkeypatch.setattr(again, "encode", lambda index: encoded.append(index) or dataset.encode(index))
    assert torch.equal(exact_lengths(again).whole, lengths)
    assert encoded == [10], "what is bad is looked at again, for its message"
    assert (again.num_truncated, len(again.bad_records)) == (1, 1)


def test_lengths_are_measured_anew_for_another_tokenizer_limit_template_or_tower(make, bpe_tokenizer):
    dataset = make()
    builder = dataset.builder

    def lengths(**changes):
        changed = replace(builder, **changes)
        data = SupervisedDataset(dataset.data_paths, changed, dataset.image_folder)
        return exact_lengths(data).whole.tolist()

    wider = copy.deepcopy(bpe_tokenizer)
    wider.add_tokens(["What is it?"])
    first = lengths()
    for changes in (
        {"tokenizer": wider},
        {"model_max_length": 60},
        {"template": "v1"},
        {"visual_positions": lambda size: 7},
        {"mm_use_im_start_end": True},
    ):
        assert lengths(**changes) != first, changes
    assert lengths() == first


def loss_and_gradients(model, batch):
    batch = {name: value for name, value in batch.items() if name != "record_names"}
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def built(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp(request.param)
    built = tiny.build(folder, request.param, scale_factor=2, tokenizer_padding_side="right")
    assert built.num_visual_tokens == NUM_VISUAL
    with torch.no_grad():
        for parameter in built.get_decoder().layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # large enough that the tokens to which a token attends change the loss
    return built.train()


@pytest.fixture
def model(built):
    return copy.deepcopy(built)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_packed_rows_give_the_loss_and_the_gradients_of_separate_records(
    packs, model, attention, padding_side
):
    model.set_attn_implementation(attention)
    model.config.tokenizer_padding_side = padding_side
    assert max(map(len, packs)) > 1
    assert len(packs) > 1
    collate = Collator(pad_token_id=0, padding_side=padding_side)
    records = [sample for row in packs for sample in row]
    expected, expected_gradients = loss_and_gradients(model, collate(records))
    loss, gradients = loss_and_gradients(model, collate(packs))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert set(gradients) == set(expected_gradients)
    for name, value in gradients.items():
        torch.testing.assert_close(value, expected_gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    # the borders between records are the reason
    blurred = {**collate(packs), "sequence_ids": torch.zeros_like(collate(packs)["input_ids"])}
    assert (loss_and_gradients(model, blurred)[0] - expected).abs() > 1e-3


def test_tiled_images_are_packed_by_the_positions_their_size_takes(make, tmp_path, bpe_tokenizer):
    model = tiny.build(
        tmp_path / "model", scale_factor=2, image_aspect_ratio="slice", tokenizer_padding_side="right"
    ).train()
    model.initialize_vision_tokenizer(model.config, bpe_tokenizer)
    dataset = make(image_config=model.config, visual_positions=model.visual_positions_of, limit=600)
    packs = list(PackedDataset(dataset))
    collate = Collator(pad_token_id=0)
    batch = collate(packs)
    inputs = {
        name: batch[name] for name in ("input_ids", "attention_mask", "labels", "images", "image_sizes")
    }
    merged = model.merge_inputs(**inputs, padding_side="right", sequence_ids=batch["sequence_ids"])
    assert merged.attention_mask.sum() == exact_lengths(dataset).whole.sum()
    assert merged.attention_mask.shape[1] <= 600
    expected, _ = loss_and_gradients(model, collate([sample for row in packs for sample in row]))
    torch.testing.assert_close(loss_and_gradients(model, batch)[0], expected, rtol=0, atol=1e-4)


def test_one_long_row_as_flash_attention_takes_it_gives_the_same(packs, model):
    batch = Collator(pad_token_id=0)(packs)
    names = ("input_ids", "attention_mask", "labels", "images")
    merged = model.merge_inputs(
        **{name: batch[name] for name in names}, padding_side="right", sequence_ids=batch["sequence_ids"]
    )
    row = one_row(merged)
    assert row.inputs_embeds.shape[:2] == (1, merged.attention_mask.sum())
    loss = model(
        inputs_embeds=row.inputs_embeds, position_ids=row.position_ids, labels=row.labels, use_cache=False
    ).loss
    torch.testing.assert_close(loss, loss_and_gradients(model, batch)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "in_one_row"),
    [
        ("sdpa", False),
        ("eager", False),
        ("flash_attention_2", True),
        ("flash_attention_3", True),
        ("kernels-community/vllm-flash-attn3", True),  # transformers uses this instead of the previous one
    ],
)
def test_every_flash_attention_gets_packed_rows_as_one(packs, model, monkeypatch, attention, in_one_row):
    class Stop(Exception):
        pass

    def decode(**inputs):
        seen.append(inputs["inputs_embeds"].shape[0])
        raise Stop

    seen: list[int] = []
    batch = Collator(pad_token_id=0)(packs)
    del batch["record_names"]
    assert len(batch["input_ids"]) > 1
    model.config._attn_implementation = attention
    monkeypatch.setattr(model.get_decoder(), "forward", decode)
    with pytest.raises(Stop):
        model(**batch)
    assert seen == [1 if in_one_row else len(batch["input_ids"])]


def test_a_packed_evaluation_uses_no_cache_and_gives_the_same_loss(packs, model):
    batch = Collator(pad_token_id=0)(packs)
    del batch["record_names"]
    model.eval()
    records = Collator(pad_token_id=0)([sample for row in packs for sample in row])
    del records["record_names"]
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, model(**records).loss, rtol=0, atol=1e-5)
