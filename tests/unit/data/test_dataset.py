"""Samples, truncation, and bad records, which fail or are skipped with a message."""

import json
import logging
from argparse import Namespace

import numpy as np
import pytest
import torch
from messages import assert_names
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import Collator
from llava.data.dataset import SupervisedDataset
from llava.data.record import BadRecord
from llava.data.sample import SampleBuilder
from llava.data.targets import build_targets, conversation_from_record
from llava.mm_utils import load_image

PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def with_image(name, **kwargs):
    return {
        "id": name,
        "image": f"{name}.png",
        "conversations": turns("<image>\nWhat?", f"A {name}."),
        **kwargs,
    }


TEXT_ONLY = {"id": "text", "conversations": turns("Count the dogs.", "There are 12 dogs.")}


SQUARE = Namespace(image_aspect_ratio="square")


@pytest.fixture
def make(tmp_path, bpe_tokenizer):
    """Write files of records and an image for each name, then build the dataset."""
    for index, name in enumerate(["bus", "dog", "cat"]):
        values = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{name}.png")

    def build(
        *files,
        template="v1",
        image_config=SQUARE,
        visual_positions=lambda size: 0,
        model_max_length=2048,
        jpeg_draft=False,
        **kwargs,
    ):
        paths = [tmp_path / f"data{index or ''}.json" for index in range(len(files))]
        for path, records in zip(paths, files, strict=True):
            path.write_text(json.dumps(records))
        builder = SampleBuilder(
            bpe_tokenizer,
            PROCESSOR,
            template,
            image_config,
            visual_positions,
            model_max_length=model_max_length,
            jpeg_draft=jpeg_draft,
        )
        return SupervisedDataset(paths, builder, tmp_path, **kwargs)

    return build


def cut_short(path):
    path.write_bytes(path.read_bytes()[:200])


def test_a_sample_has_ids_labels_and_pixels(make, tmp_path, bpe_tokenizer):
    dataset = make([with_image("bus"), TEXT_ONLY])
    sample, text = dataset[0], dataset[1]
    ids, labels = build_targets(conversation_from_record(with_image("bus"), "v1"), bpe_tokenizer)
    assert sample["input_ids"].tolist() == ids
    assert sample["labels"].tolist() == labels
    expected = PROCESSOR(images=load_image(tmp_path / "bus.png"), return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.stack(sample["images"]), expected)
    assert sample["image_sizes"] == [(30, 20)]
    assert (text["images"], text["image_sizes"]) == ([], [])
    assert dataset.bad_records == []
    assert sample["name"] == f"{tmp_path}/data.json, record 0 (id bus)"
    assert len(list(dataset)) == 2


def test_an_images_size_decides_its_number_of_positions_if_tiles_depend_on_it(make, tmp_path):
    asked = []

    def positions(size):
        asked.append(size)
        return 36

    slices = {"image_config": Namespace(image_aspect_ratio="slice"), "visual_positions": positions}
    words = make([with_image("bus")]).lengths[0].item()
    dataset = make([with_image("bus")], **slices)
    assert dataset.lengths.tolist() == [words + 36]
    assert dataset[0]["images"][0].ndim == 4
    assert set(asked) == {(30, 20)}
    (tmp_path / "dog.png").write_text("no picture")
    for measure in (lambda d: d.length(0), lambda d: d.modality_lengths):
        with pytest.raises(BadRecord, match=r"record 0 \(id dog\): .*dog\.png.*cannot be read"):
            measure(make([with_image("dog")], **slices))
    skipping = make([with_image("dog"), TEXT_ONLY], on_bad_record="skip", **slices)
    assert skipping.lengths.tolist() == [1, 7]
    assert len(skipping.bad_records) == 1


def test_pad_reaches_the_pixels(make):
    square, pad = (
        make([with_image("bus")], image_config=Namespace(image_aspect_ratio=name))[0]["images"][0]
        for name in ("square", "pad")
    )
    assert square.shape == pad.shape
    assert not torch.equal(square, pad)


def test_lengths_tell_the_modality_by_sign(make):
    dataset = make([with_image("bus"), TEXT_ONLY], visual_positions=lambda size: 36)
    assert dataset.modality_lengths.tolist() == [36 + 4, -7]
    assert dataset.lengths.tolist() == [40, 7]


def test_exact_lengths_are_those_of_the_models_input(make):
    dataset = make([with_image("bus"), TEXT_ONLY], visual_positions=lambda size: 36)
    assert dataset.length(0) == len(dataset[0]["input_ids"]) - 1 + 36
    assert dataset.length(1) == len(dataset[1]["input_ids"])


def test_several_files_are_one_set_whose_messages_name_file_and_record(make, tmp_path):
    dataset = make([with_image("bus"), TEXT_ONLY], [TEXT_ONLY, with_image("dog"), with_image("cat")])
    names = [dataset[index]["name"].rsplit("/")[-1] for index in range(5)]
    assert names[1:4] == [
        "data.json, record 1 (id text)",
        "data1.json, record 0 (id text)",
        "data1.json, record 1 (id dog)",
    ]
    assert dataset.mixture.sizes == [2, 3]
    with pytest.raises(
        BadRecord, match=r"1 bad record\(s\) in .*data.json, .*data1.json:\n  .*data1.json, record 1"
    ):
        make([TEXT_ONLY], [TEXT_ONLY, {"id": "odd"}])


BAD = [{"id": "none"}, with_image("ghost"), {**TEXT_ONLY, "id": "odd", "image": "bus.png"}]


def test_fail_lists_every_record_that_is_bad_on_disk(make):
    with pytest.raises(BadRecord) as error:
        make([with_image("bus"), *BAD])
    message = str(error.value)
    assert message.startswith("3 bad record(s)")
    assert "record 1 (id none): 'conversations'" in message
    assert_names(message, "record 2 (id ghost): ", "ghost.png does not exist", "--image_folder")
    assert "record 3 (id odd): 0 <image>" in message
    assert "--on_bad_record skip" in message


def test_the_list_stops_at_twenty(make):
    with pytest.raises(BadRecord, match=r"^23 bad record\(s\)(.|\n)*\n  and 3 more\n"):
        make([{"id": i} for i in range(23)])


def test_skip_leaves_out_and_lists_what_is_bad_on_disk(make):
    dataset = make([*BAD, with_image("bus")], on_bad_record="skip")
    assert len(dataset) == 1
    assert dataset[0]["image_sizes"] == [(30, 20)]
    assert [message.split(": ")[0].rsplit("/")[-1] for message in dataset.bad_records] == [
        "data.json, record 0 (id none)",
        "data.json, record 1 (id ghost)",
        "data.json, record 2 (id odd)",
    ]


def test_skip_with_nothing_left_fails(make):
    with pytest.raises(BadRecord, match="3 bad record"):
        make(BAD, on_bad_record="skip")


def test_a_corrupt_image_fails_the_run_by_name(make, tmp_path):
    dataset = make([with_image("bus"), with_image("dog")])
    cut_short(tmp_path / "dog.png")
    with pytest.raises(BadRecord, match=r"record 1 \(id dog\).*dog.png.*cannot be read"):
        dataset[1]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skip_takes_the_next_good_record_and_says_so(make, tmp_path, num_workers, caplog):
    dataset = make([with_image("bus"), with_image("dog"), with_image("cat")], on_bad_record="skip")
    cut_short(tmp_path / "cat.png")
    with caplog.at_level(logging.WARNING):
        loader = DataLoader(dataset, batch_size=1, collate_fn=Collator(0), num_workers=num_workers)
        ids = [batch["input_ids"] for batch in loader]
    assert torch.equal(ids[2], ids[0])
    assert not torch.equal(ids[1], ids[0])
    assert len(dataset.bad_records) == 1
    assert "record 2 (id cat): Image file" in dataset.bad_records[0]
    if num_workers == 0:
        assert caplog.text.count("Skipped: ") == 1


def test_skip_fails_once_no_record_is_left(make, tmp_path):
    dataset = make([with_image("bus")], on_bad_record="skip")
    cut_short(tmp_path / "bus.png")
    with pytest.raises(BadRecord, match="All records of .* are bad"):
        dataset[0]


def test_what_is_too_long_is_cut_at_its_end_and_counted(make, bpe_tokenizer):
    whole = make([with_image("bus")])[0]
    num_tokens = len(whole["input_ids"]) - 1 + 36
    assert (
        make([with_image("bus")], visual_positions=lambda size: 36, model_max_length=num_tokens).num_truncated
        == 0
    )
    dataset = make([with_image("bus")], visual_positions=lambda size: 36, model_max_length=num_tokens - 2)
    for _ in range(2):
        sample = dataset[0]
    assert torch.equal(sample["input_ids"], whole["input_ids"][:-2])
    assert torch.equal(sample["labels"], whole["labels"][:-2])
    assert dataset.num_truncated == 1


def test_a_cut_image_placeholder_takes_its_image_with_it(make):
    record = {
        "id": 0,
        "image": ["bus.png", "dog.png"],
        "conversations": turns("<image>", "A.", "<image>", "B."),
    }
    dataset = make([record], visual_positions=lambda size: 400, model_max_length=700)
    sample = dataset[0]
    assert sample["input_ids"].tolist().count(IMAGE_TOKEN_INDEX) == len(sample["images"]) == 1
    assert len(sample["image_sizes"]) == 1


def test_an_answer_beyond_the_limit_is_a_bad_record(make):
    long = with_image("dog", conversations=turns("<image>\n" + "What? " * 200, "A dog."))
    with pytest.raises(BadRecord, match=r"record 1 \(id dog\).*150 tokens.*--model_max_length"):
        make([with_image("bus"), long], model_max_length=150)[1]
    dataset = make([with_image("bus"), long], model_max_length=150, on_bad_record="skip")
    assert (dataset[1]["labels"] != IGNORE_INDEX).any()
    assert "no word of an answer" in dataset.bad_records[0]


def test_plain_counts_a_conversation_as_bad(make):
    with pytest.raises(BadRecord, match=r"record 1 \(id text\).*'plain'"):
        make([with_image("bus"), TEXT_ONLY], template="plain")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"template": "v9"}, "--version.*'v9'"),
        ({"image_config": Namespace(image_aspect_ratio="wide")}, "--image_aspect_ratio.*'wide'"),
        ({"on_bad_record": "hide"}, "--on_bad_record.*'fail'.*'skip'"),
        ({"jpeg_draft": True, "image_config": Namespace(image_aspect_ratio="slice")}, "--jpeg_draft.*slice"),
    ],
)
def test_unknown_arguments_are_refused_at_once(make, argument, message):
    with pytest.raises(ValueError, match=message):
        make([with_image("bus")], **argument)


def test_a_large_jpeg_is_decoded_smaller_where_that_is_asked_for(make, tmp_path):
    """At least twice the input's 14 pixels remain: 224 px are decoded at an eighth, 50 px at full size."""
    gradient = np.linspace(0, 255, 320 * 224 * 3).reshape(224, 320, 3).astype(np.uint8)
    for name, picture in {"large.jpg": gradient, "small.jpg": gradient[:50]}.items():
        Image.fromarray(picture).save(tmp_path / name)
    records = [with_image("large", image="large.jpg"), with_image("small", image="small.jpg")]
    plain = [sample["images"][0] for sample in make(records)]
    draft = list(make(records, jpeg_draft=True))
    assert draft[0]["image_sizes"] == [(40, 28)]
    large, small = (sample["images"][0] for sample in draft)
    assert not torch.equal(large, plain[0])
    torch.testing.assert_close(large, plain[0], atol=0.05, rtol=0)
    assert torch.equal(small, plain[1])


def test_access_holds_no_memory(make):
    dataset = make([with_image("bus"), with_image("dog")])
    before = {name: id(value) for name, value in vars(dataset).items()}
    for index in range(2):
        dataset[index]
    assert {name: id(value) for name, value in vars(dataset).items()} == before
