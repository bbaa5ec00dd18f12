"""Parquet and Arrow files, folders and data sets of the hub give the same samples as JSON records."""

import json
import os
import pickle
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from messages import assert_names
from PIL import Image
from pyarrow import parquet
from record_forms import (
    RECORDS,
    WITHOUT_SYSTEM,
    embedded,
    messages,
    sharegpt,
    texts,
    with_all_keys,
    with_parts,
    write_arrow,
    write_json,
    write_jsonl,
    write_parquet,
)
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

import llava.data.index
import llava.data.table_reader
from llava.data import tables
from llava.data.dataset import SupervisedDataset
from llava.data.files import check_data_file, reader_of
from llava.data.record import BadRecord, Picture, image_files
from llava.data.sample import SampleBuilder
from llava.data.validate import validate
from llava.errors import UserError

PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def dataset(tmp_path, bpe_tokenizer):
    def build(*paths, image_folder=None, aspect_ratio="square", **options):
        config = Namespace(image_aspect_ratio=aspect_ratio)
        builder = SampleBuilder(bpe_tokenizer, PROCESSOR, "v1", config, lambda size: sum(size))
        return SupervisedDataset(paths, builder, image_folder, index_folder=tmp_path / "index", **options)

    return build


def tables_of(rows, images):
    return with_all_keys([embedded(row, images) for row in rows])


def nested(rows, images):
    """In a table, all parts of a turn have the same keys too."""
    for row in rows:
        for turn in row["messages"]:
            for part in turn["content"]:
                name = part.get("image")
                part["image"] = name and {"bytes": (images / name).read_bytes(), "path": name}
                part.setdefault("text", None)
    return with_all_keys(rows)


def saved_by_datasets(path, rows):
    import datasets

    picture = datasets.Image()
    data = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(picture))
    data.save_to_disk(str(path), num_shards=2)
    return path


def shards_of_the_hub(path, rows):
    half = len(rows) // 2
    write_parquet(path / "data" / "train-00000-of-00002.parquet", rows[:half])
    write_parquet(path / "data" / "train-00001-of-00002.parquet", rows[half:])
    write_parquet(path / "data" / "test-00000-of-00001.parquet", rows[:1])
    return path


WRITERS = {
    "messages.json": lambda path, records, images: write_json(path, list(map(messages, records))),
    "parts.jsonl": lambda path, records, images: write_jsonl(path, list(map(with_parts, records))),
    "sharegpt.json": lambda path, records, images: write_json(path, list(map(sharegpt, records))),
    "texts.json": lambda path, records, images: write_json(path, list(map(texts, records))),
    "names.parquet": lambda path, records, images: write_parquet(
        path, with_all_keys(list(map(messages, records)))
    ),
    "llava.parquet": lambda path, records, images: write_parquet(
        path, tables_of([{**r, "image": image_files(r)} for r in records], images)
    ),
    "messages.parquet": lambda path, records, images: write_parquet(
        path, tables_of(map(messages, records), images)
    ),
    "parts.parquet": lambda path, records, images: write_parquet(
        path, nested([with_parts(record, "image") for record in records], images)
    ),
    "texts.parquet": lambda path, records, images: write_parquet(
        path, tables_of(map(texts, records), images)
    ),
    "texts.arrow": lambda path, records, images: write_arrow(path, tables_of(map(texts, records), images)),
    "stream": lambda path, records, images: write_arrow(path, tables_of(map(texts, records), images), True),
    "saved": lambda path, records, images: saved_by_datasets(path, tables_of(map(texts, records), images)),
    "hub": lambda path, records, images: shards_of_the_hub(path, tables_of(map(messages, records), images)),
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_form_gives_the_same_samples(dataset, images, tmp_path, form, num_workers):
    records = WITHOUT_SYSTEM if "texts" in form or form in ("saved", "stream") else RECORDS
    expected = list(dataset(write_json(tmp_path / "expected.json", records), image_folder=images))
    path = WRITERS[form](tmp_path / form, records, images)
    found = dataset(path, image_folder=images)
    loader = DataLoader(found, batch_size=None, num_workers=num_workers, collate_fn=lambda sample: sample)
    samples = list(loader)
    assert len(samples) == len(expected)
    for sample, other in zip(samples, expected, strict=True):
        assert sample["name"] != other["name"]
        assert torch.equal(sample["input_ids"], other["input_ids"])
        assert torch.equal(sample["labels"], other["labels"])
        assert sample["image_sizes"] == other["image_sizes"]
        assert all(map(torch.equal, sample["images"], other["images"]))
    problems = []
    counts = validate([str(path)], str(images), check_images=True, report=problems.append)
    assert (problems, counts["records"], counts["images"]) == ([], len(records), 3)


def test_pictures_within_need_no_folder_and_a_mixture_has_weights(dataset, images, tmp_path):
    inside = write_parquet(tmp_path / "a.parquet", tables_of(map(texts, WITHOUT_SYSTEM), images))
    assert [len(sample["images"]) for sample in dataset(inside)] == [1, 2, 0]
    text = write_jsonl(tmp_path / "b.jsonl", [messages(RECORDS[3])])
    mixed = dataset(inside, text, weights=[1, 2])
    assert mixed.mixture.counts == [3, 2]
    assert len(mixed[3]["images"]) == 0
    names = write_json(tmp_path / "c.json", [messages(RECORDS[0])])
    with pytest.raises(BadRecord, match="--image_folder is missing"):
        dataset(names)


def test_measures_of_pictures_are_those_of_files(dataset, images, tmp_path):
    expected = dataset(
        write_json(tmp_path / "x.json", WITHOUT_SYSTEM), image_folder=images, aspect_ratio="slice"
    ).modality_lengths.tolist()
    path = write_parquet(tmp_path / "a.parquet", tables_of(map(messages, WITHOUT_SYSTEM), images))
    for _ in range(2):
        found = dataset(path, aspect_ratio="slice")
        assert found.modality_lengths.tolist() == expected


def test_the_bytes_of_pictures_are_read_for_pixels_alone(images, tmp_path, monkeypatch):
    rows = tables_of(map(texts, WITHOUT_SYSTEM), images)
    reader = reader_of(write_parquet(tmp_path / "a.parquet", rows, 3))
    monkeypatch.setattr(llava.data.table_reader._Parquet, "whole", None)
    monkeypatch.setattr(llava.data.table_reader, "_light", None)
    (record, place), *_ = reader.scan()
    assert reader.read(place) == record
    assert isinstance(record["image"][0], Picture)
    with pytest.raises(TypeError):
        reader.source_of(place)(record["image"][0])


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_pictures_within_rows_and_in_files_may_be_mixed(dataset, images, tmp_path, write):
    rows = tables_of(map(messages, RECORDS[:2]), images)
    rows[1]["images"][0]["bytes"] = None
    path = write(tmp_path / "mixed", rows)
    records = [record for record, _ in reader_of(path).scan()]
    assert [[type(file) is str for file in image_files(record)] for record in records] == [
        [False],
        [True, False],
    ]
    assert len(dataset(path, image_folder=images)[1]["images"]) == 2
    (images / "b.png").unlink()
    with pytest.raises(BadRecord, match=r"mixed, record 1 \(id 1\): .*b\.png"):
        dataset(path, image_folder=images)


def test_few_groups_are_held_and_a_group_is_read_when_it_is_needed(images, tmp_path):
    rows = with_all_keys([{**messages(RECORDS[2]), "id": str(number)} for number in range(60)])
    folder = tmp_path / "a"
    for number in range(3):
        write_parquet(folder / f"train-{number}.parquet", rows[number * 20 : number * 20 + 20])
    reader = reader_of(folder)
    places = [place for _, place in reader.scan()]
    order = np.random.default_rng(0).permutation(60).tolist()
    assert [reader.read(places[number])["id"] for number in order] == list(map(str, order))
    assert reader._texts.cache_info().currsize == llava.data.table_reader.GROUPS_HELD < 30
    assert len(pickle.dumps(reader)) < 1000
    done = [reader.done(place) for place in places[40:]]
    assert done == sorted(done)
    assert done[-1] == reader.size


def test_an_index_of_a_table_is_kept_and_made_anew_when_a_file_changes(
    dataset, images, tmp_path, monkeypatch
):
    scans = []
    real = llava.data.index._Scan
    monkeypatch.setattr(llava.data.index, "_Scan", lambda *args: scans.append(1) or real(*args))
    rows = tables_of(map(messages, RECORDS), images)
    folder = shards_of_the_hub(tmp_path / "hub", rows)
    for _ in range(2):
        assert len(dataset(folder)) == 4
    assert len(scans) == 1
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows[2:3])
    assert len(dataset(folder)) == 3
    assert len(scans) == 2


def test_a_table_that_changes_while_it_is_used_is_named(images, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", with_all_keys(list(map(messages, RECORDS))))
    reader = reader_of(path)
    (_, place), *_ = reader.scan()
    write_parquet(path, with_all_keys(list(map(messages, RECORDS[:1]))))
    with pytest.raises(UserError, match="a.parquet.*changed"):
        pickle.loads(pickle.dumps(reader)).read(place)


def test_a_broken_picture_is_a_bad_record_with_file_and_row(dataset, images, tmp_path):
    rows = tables_of(map(messages, RECORDS), images)
    rows[1]["images"][1]["bytes"] = b"no picture"
    path = write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(
        BadRecord, match=r"a\.parquet, record 1 \(id 1\): .*picture 1 \(a\.png\).*cannot be read"
    ):
        dataset(path)[1]
    skipping = dataset(path, on_bad_record="skip")
    assert len([skipping.read(index) for index in range(4) if skipping.read(index)]) == 3
    folder = tmp_path / "hub"
    write_parquet(folder / "train-0.parquet", rows)
    write_parquet(folder / "train-1.parquet", rows)
    with pytest.raises(BadRecord, match=r"hub, record 5 \(id 1\): .*train-1\.parquet, row 1"):
        dataset(folder)[5]


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
@pytest.mark.parametrize("keep", [4, 200, -30])
def test_a_damaged_table_is_named_in_one_line(dataset, images, tmp_path, write, keep):
    path = write(tmp_path / "cut", tables_of(map(messages, RECORDS), images))
    content = path.read_bytes()
    path.write_bytes(content[:8] + content[8:keep])
    problems = []
    validate([str(path)], report=problems.append)
    with pytest.raises(UserError) as error:
        dataset(path)
    assert problems == [str(error.value)]
    assert_names(problems[0], "cut cannot be read", "fetch it again")
    assert len(problems[0].splitlines()) == 1


def test_damage_within_a_table_names_its_file(dataset, images, tmp_path):
    folder = tmp_path / "f"
    rows = with_all_keys(list(map(messages, RECORDS)))
    write_parquet(folder / "train-0.parquet", rows)
    path = write_parquet(folder / "train-1.parquet", rows)
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-1\.parquet cannot be read") as error:
        dataset(folder, image_folder=images)
    assert len(str(error.value).splitlines()) == 1


def test_a_table_without_rows_or_with_other_columns(dataset, tmp_path):
    empty = write_parquet(tmp_path / "a.parquet", [{"id": "1"}])
    with pytest.raises(BadRecord, match=r"a\.parquet, record 0 \(id 1\): 'conversations' is missing"):
        dataset(empty)
    parquet.write_table(pyarrow.table({"id": pyarrow.array([], pyarrow.string())}), empty)
    with pytest.raises(UserError, match=r"a\.parquet has no rows"):
        dataset(empty)


def folder_of(tmp_path, *names) -> Path:
    for name in names:
        file = tmp_path / "f" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"PAR1" if name.endswith("parquet") else b"{}")
    return tmp_path / "f"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("b.parquet", "a.parquet"), None),
        (("0000.parquet", "0001.parquet"), ["0000.parquet", "0001.parquet"]),
        (("part-0.parquet", "part-1.parquet", "README.md"), ["part-0.parquet", "part-1.parquet"]),
        (("train.parquet", "test.parquet"), ["train.parquet"]),
        (("data/train-00000-of-00002-abc.parquet", "data/train-00001-of-00002-def.parquet"), 2),
        (("x-train-00000-of-00002.arrow", "x-train-00001-of-00002.arrow", "dataset_info.json"), 2),
        (("train-0.parquet", "train-0.arrow"), None),
        (("validation-0.parquet", "test-0.parquet"), None),
    ],
)
def test_what_a_folder_holds_is_told_by_its_names(tmp_path, names, found):
    folder = folder_of(tmp_path, *names)
    if found is None:
        with pytest.raises(UserError, match="several sets") as error:
            check_data_file(folder)
        assert_names(str(error.value), str(folder), *(name.split("-")[0].split(".")[0] for name in names))
    else:
        files = check_data_file(folder)
        assert [file.name for file in files] == found if isinstance(found, list) else len(files) == found


def test_folders_that_hold_something_else_say_what_to_name(tmp_path, images):
    with pytest.raises(UserError, match="parquet or Arrow.*JSON"):
        check_data_file(images)
    with pytest.raises(UserError, match="one of them, .*f/ai2d or .*f/aokvqa"):
        check_data_file(folder_of(tmp_path, "ai2d/train-0.parquet", "aokvqa/train-0.parquet"))
    splits = folder_of(tmp_path / "g", "dataset_dict.json", "train/state.json", "test/state.json")
    with pytest.raises(UserError, match="several splits.*f/test or .*f/train"):
        check_data_file(splits)
    (splits / "train" / "state.json").write_text("[]")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        check_data_file(splits / "train")
    (splits / "train" / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    with pytest.raises(UserError, match=r"lacks data-0\.arrow"):
        check_data_file(splits / "train")
    pointer = folder_of(tmp_path / "h", "train-0.parquet") / "train-0.parquet"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(UserError, match=r"train-0\.parquet.*Git LFS"):
        list(reader_of(pointer.parent).scan())


@pytest.mark.parametrize("name", ["missing.parquet", "a/missing.arrow"])
def test_a_table_that_is_not_there_is_no_data_set_of_the_hub(name):
    with pytest.raises(UserError, match=f"{name}.*check --data_path"):
        check_data_file(name)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, images, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", tables_of(map(messages, RECORDS), images))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"a\.parquet.*pyarrow.*pip install"):
        check_data_file(path)


@pytest.fixture
def hub_cache(tmp_path, images, monkeypatch):
    """The cache of the datasets library for a data set of the hub, which cannot be reached."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    train = write_parquet(tmp_path / "train.parquet", tables_of(map(texts, WITHOUT_SYSTEM), images))
    cache = tmp_path / "cache"
    builder = Parquet(
        cache_dir=str(cache),
        dataset_name="the_cauldron",
        config_name="ai2d",
        hash="0123",
        data_files={"train": [str(train)], "test": [str(train)]},
    )
    builder.download_and_prepare()
    shutil.move(builder.cache_dir, cache / "HuggingFaceM4___the_cauldron" / "ai2d" / "0.0.0" / "0123")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    tables.hub_files.cache_clear()
    yield cache
    tables.hub_files.cache_clear()


def test_a_data_set_of_the_hub_is_read_from_the_cache(dataset, images, tmp_path, hub_cache):
    expected = list(dataset(write_json(tmp_path / "expected.json", WITHOUT_SYSTEM), image_folder=images))
    for name in ("HuggingFaceM4/the_cauldron:ai2d", "HuggingFaceM4/the_cauldron:ai2d:test"):
        for sample, other in zip(dataset(name), expected, strict=True):
            assert sample["name"].startswith(f"{name}, record ")
            assert torch.equal(sample["input_ids"], other["input_ids"])
            assert all(map(torch.equal, sample["images"], other["images"]))
    for name in ("HuggingFaceM4/the_cauldron:ocrvqa", "HuggingFaceM4/the_cauldron:ai2d:val", "no/such_set"):
        with pytest.raises(UserError, match=f"--data_path {name}.*OWNER/NAME:CONFIG:SPLIT") as error:
            dataset(name)
        assert len(str(error.value).splitlines()) == 1


def test_what_is_here_is_never_sought_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tables.is_hub_name("data/train")
    os.makedirs("data/train")
    assert not tables.is_hub_name("data/train")
    for path in (
        "data/train.json",
        "a.json",
        "/data/train",
        "./data/train",
        "a/b/c",
        "a/b.tar",
        "a/{0..3}.tar",
    ):
        assert not tables.is_hub_name(path)
    Path("a.json").write_text(json.dumps(RECORDS))
    assert check_data_file("a.json") is None
