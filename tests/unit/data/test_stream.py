"""Tar shards: the parts of a sample, and a stream that loses and repeats nothing and can start anywhere."""

import gzip
import io
import shutil
import tarfile
from argparse import Namespace
from itertools import chain, islice, pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from shards import png, turns, with_image, write
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from llava.data.collator import Collator
from llava.data.record import BadRecord
from llava.data.sample import SampleBuilder
from llava.data.shards import check_data_paths, expand_shards, read_shard
from llava.data.stream import ShardDataset

PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})
NUM_SHARDS, PER_SHARD = 12, 3
NUM_SAMPLES = NUM_SHARDS * PER_SHARD
workers = pytest.mark.parametrize("num_workers", [0, pytest.param(3, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 shards of 3 samples."""
    made = tmp_path_factory.mktemp("shards")
    for shard in range(NUM_SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        write(made / f"{shard:03}.tar", {f"{n:06}": with_image(n) for n in numbers})
    return made


@pytest.fixture(scope="module")
def shards(folder) -> str:
    """Their --data_path."""
    return f"{folder}/{{000..{NUM_SHARDS - 1:03}}}.tar"


@pytest.fixture
def stream(bpe_tokenizer):
    def build(*paths, model_max_length=2048, template="qwen_2", **kwargs):
        builder = SampleBuilder(
            bpe_tokenizer,
            PROCESSOR,
            template,
            Namespace(image_aspect_ratio="square"),
            visual_positions=lambda size: 4,
            model_max_length=model_max_length,
        )
        return ShardDataset(list(paths), builder, **kwargs)

    return build


def keys(samples) -> list[str]:
    return [sample["name"].split("sample ")[1] for sample in samples]


def batches_of(dataset, num_batches: int) -> list[dict]:
    num_workers = dataset.num_readers if dataset.num_readers > 1 else 0
    loader = DataLoader(
        dataset, batch_size=dataset.batch_size, num_workers=num_workers, collate_fn=Collator(pad_token_id=0)
    )
    return list(islice(loader, num_batches))


def test_a_sample_is_a_record_with_its_images_or_an_image_with_its_caption(tmp_path, stream):
    red, blue = png(1), png(2)
    path = write(
        tmp_path / "a.tar",
        {
            "one": {"json": {"conversations": turns("<image>\nWhat?", "A bus.")}, "png": red},
            "two": {
                "json": {"id": 7, "image": ["x", "y"], "conversations": turns("<image><image>?", "Both.")},
                **{"1.png": red, "0.png": blue},
            },
            "text": {"json": {"conversations": turns("Hi", "Hello!")}},
            "caption": {"txt": "a red bus", "png": red, "json": {"url": "as img2dataset writes"}},
        },
    )
    samples = list(read_shard(path))
    assert [sample.name for sample in samples] == [
        f"{path}, sample {k}" for k in ("one", "two", "text", "caption")
    ]
    records = [sample.record() for sample in samples]
    assert [record["image"] for record in records] == [["png"], ["0.png", "1.png"], [], ["png"]]
    assert [record["id"] for record in records] == ["one", 7, "text", "caption"]
    assert records[3]["conversations"] == turns("<image>", "a red bus")
    loaded = {
        key: sample
        for sample, key in zip(*(lambda s: (s, keys(s)))(list(islice(stream(path), 4))), strict=True)
    }
    first = torch.from_numpy(np.array(Image.open(io.BytesIO(blue))))
    expected = PROCESSOR(images=Image.fromarray(first.numpy()), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(loaded["two"]["images"][0], expected)
    assert loaded["text"]["images"] == []


def test_ten_images_and_more_come_in_the_order_of_their_numbers(tmp_path):
    path = write(tmp_path / "a.tar", {"k": {"json": {}, **{f"{i}.png": b"" for i in range(12)}}})
    (sample,) = read_shard(path)
    assert sample.record()["image"] == [f"{i}.png" for i in range(12)]


@workers
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_over_all_ranks_and_workers_is_each_sample_once(shards, stream, world_size, num_workers):
    readers = max(num_workers, 1)
    seen, taken = [], []
    for rank in range(world_size):
        dataset = stream(shards, rank=rank, world_size=world_size, num_workers=num_workers, shuffle_buffer=7)
        own = [dataset.shards_of(0, reader) for reader in range(readers)]
        taken += chain(*own)
        num_batches = len(own[0]) * PER_SHARD * readers  # here all readers have equally many shards
        seen += chain(*(batch["record_names"] for batch in batches_of(dataset, num_batches)))
    assert sorted(taken) == sorted(dataset.shards)
    assert len(seen) == len(set(seen)) == NUM_SAMPLES


def test_seed_and_epoch_choose_the_order(shards, stream):
    epoch = NUM_SAMPLES
    two_epochs = keys(islice(stream(shards), 2 * epoch))
    assert two_epochs == keys(islice(stream(shards), 2 * epoch))
    assert sorted(two_epochs[:epoch]) == sorted(two_epochs[epoch:])
    assert two_epochs[:epoch] != two_epochs[epoch:]
    assert two_epochs != keys(islice(stream(shards, seed=1), 2 * epoch))
    assert two_epochs[:epoch] != sorted(two_epochs[:epoch])


def test_neighbours_in_a_shard_are_shuffled_apart(shards, stream):
    order = [int(key) for key in keys(islice(stream(shards), NUM_SAMPLES))]
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 6


def same(left: list[dict], right: list[dict]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a["input_ids"], b["input_ids"])
        and torch.equal(a["images"], b["images"])
        and a["record_names"] == b["record_names"]
        for a, b in zip(left, right, strict=True)
    )


@workers
@pytest.mark.parametrize(("packing", "starts"), [(False, (1, 5, 22)), (True, (1, 5, 10))])
def test_a_stream_started_at_any_batch_goes_on_as_the_uninterrupted_one(
    shards, stream, num_workers, packing, starts
):
    """The last start is in the second epoch."""
    settings = {
        "num_workers": num_workers,
        "batch_size": 2,
        "packing": packing,
        "shuffle_buffer": 7,
        "model_max_length": 150,
    }
    whole = batches_of(stream(shards, **settings), starts[-1] + 3)
    taken = chain(*(batch["record_names"] for batch in whole[: starts[-1]]))
    assert len(list(taken)) > NUM_SAMPLES
    for start in starts:
        resumed = stream(shards, **settings)
        resumed.start_batch = start
        assert same(batches_of(resumed, 3), whole[start : start + 3]), start


@pytest.mark.parametrize("packing", [False, True])
def test_skipped_samples_are_not_decoded(shards, stream, packing, monkeypatch):
    dataset = stream(shards, packing=packing, batch_size=2)
    dataset.start_batch = 8
    opened = []
    load = dataset.builder.load
    monkeypatch.setattr(dataset.builder, "load", lambda *args: opened.append(args) or load(*args))
    first = next(iter(dataset))
    assert len(opened) == (len(first) if packing else 1)


def test_packs_keep_within_the_limit_and_lose_nothing(shards, stream):
    dataset = stream(shards, packing=True, model_max_length=200)
    packs = []
    for row in dataset:
        packs.append(row)
        if sum(map(len, packs)) >= NUM_SAMPLES:
            break
    assert sorted(keys(chain(*packs))) == [f"{n:06}" for n in range(NUM_SAMPLES)]
    assert max(map(len, packs)) > 1
    assert max(sum(len(s["input_ids"]) + 3 for s in row) for row in packs) <= 200


def test_weights_are_passes_over_a_path_in_an_epoch(tmp_path, stream):
    for name in "ab":
        for index in range(4):
            write(tmp_path / f"{name}{index}.tar", {f"{name}{index}": with_image(0)})
    paths = [f"{tmp_path}/{name}{{0..3}}.tar" for name in "ab"]
    epoch = keys(islice(stream(*paths, weights=[2, 0.5]), 10))
    assert sorted(key[0] for key in epoch) == ["a"] * 8 + ["b"] * 2


def test_fewer_shards_than_readers_are_refused_with_all_numbers(shards, stream):
    with pytest.raises(ValueError, match=r"12 shard\(s\) .* 4 process\(es\) with 5 reader\(s\) each"):
        stream(shards, world_size=4, num_workers=5)


def test_missing_shards_and_mixed_kinds_are_refused(shards, stream, folder):
    with pytest.raises(ValueError, match=r"1 of 13 shard.*012.tar.*--data_path"):
        expand_shards(f"{folder}/{{000..012}}.tar")
    with pytest.raises(ValueError, match="--data_path mixes.*a.json"):
        stream(shards, "a.json")


BAD = {
    "picture": ({**with_image(1), "png": b"no picture"}, "picture.png cannot be read"),
    "turns": ({"json": {"conversations": turns("Hi")}}, "last of 1 turns"),
    "syntax": ({"json": b"{"}, "syntax.json cannot be read"),
    "lone": ({"png": png(1)}, "lone.json nor lone.txt.* png"),
    "images": ({"json": with_image(1)["json"]}, "1 <image> .*0 image file"),
    "video": ({**with_image(1), "mp4": b"film"}, "video.mp4 is not read"),
    "images_key": ({"json": {"images": ["a"], **with_image(1)["json"]}}, "1 <image> .*0 image file"),
    "half": ({"json": {"conversations": turns("a \ud800", "b")}}, r"turn 0 contains U\+D800"),
    "a_list": ({"json": [1]}, "it is a list"),
}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_sample_is_named_or_skipped_and_counted(tmp_path, stream, bad, packing, caplog):
    members, message = BAD[bad]
    path = write(tmp_path / "a.tar", {"good1": with_image(2), bad: members, "good2": with_image(3)})
    with pytest.raises(BadRecord, match=rf"a.tar, sample {bad}: .*{message}"):
        list(islice(stream(path, packing=packing), 6))
    dataset = stream(path, packing=packing, on_bad_record="skip", model_max_length=200)
    samples = list(islice(dataset, 6))
    assert set(keys(chain(*samples) if packing else samples)) == {"good1", "good2"}
    assert "bad sample(s)" in dataset.bad_records[0]
    assert f"a.tar, sample {bad}: " in caplog.text


@workers
def test_bad_samples_do_not_move_the_place_a_resumed_stream_starts_at(tmp_path, stream, num_workers):
    for shard in range(3):
        samples = {f"{shard}{n}": with_image(10 * shard + n) for n in range(6)}
        for n in (1, 2, 5):
            samples[f"{shard}{n}"]["png"] = b""
        write(tmp_path / f"{shard}.tar", samples)
    settings = {"num_workers": num_workers, "on_bad_record": "skip", "batch_size": 2}
    whole = batches_of(stream(f"{tmp_path}/{{0..2}}.tar", **settings), 14)
    for start in (1, 4, 11) if num_workers else range(1, 12):
        resumed = stream(f"{tmp_path}/{{0..2}}.tar", **settings)
        resumed.start_batch = start
        assert same(batches_of(resumed, 3), whole[start : start + 3]), start


def third_member(path) -> int:
    """The start of the third member's header. For tarfile, any error there is the end of the archive."""
    with tarfile.open(path) as tar:
        return tar.getmembers()[2].offset


def cut(path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def overwrite(path, position: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:position] + b"\xff\xff" + content[position + 2 :])


CORRUPTIONS = {
    "cut within a member": lambda path: cut(path, third_member(path) - 600),
    "cut within a header": lambda path: cut(path, third_member(path) + 100),
    "cut between members": lambda path: cut(path, third_member(path)),
    "a broken header": lambda path: overwrite(path, third_member(path) + 10),
    "empty": lambda path: cut(path, 0),
    "no tar": lambda path: path.write_bytes(b"<html>not found</html>" * 100),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_shard_is_named_or_skipped_and_counted(folder, stream, tmp_path, corruption):
    for shard in range(1, 4):
        shutil.copy(folder / f"{shard:03}.tar", tmp_path)
    CORRUPTIONS[corruption](tmp_path / "003.tar")
    shards = f"{tmp_path}/{{001..003}}.tar"
    with pytest.raises(BadRecord, match=r"003.tar: .*cut short.*--data_path"):
        list(islice(stream(shards), 4 * PER_SHARD))
    dataset = stream(shards, on_bad_record="skip")
    samples = set(keys(islice(dataset, 3 * PER_SHARD)))
    assert samples >= {f"{n:06}" for n in range(PER_SHARD, 3 * PER_SHARD)}
    assert dataset.bad_records


@pytest.mark.parametrize(
    "content", [gzip.compress(bytes(10_240)), b"PK\x03\x04" + bytes(999)], ids=["gzip", "zip"]
)
def test_a_shard_of_another_kind_is_named(tmp_path, stream, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(BadRecord, match=r"a.tar is .*unpack"):
        next(iter(stream(f"{tmp_path}/a.tar")))


def test_data_paths_of_other_kinds_are_refused_before_they_are_read(shards, tmp_path):
    (tmp_path / "a.json").write_text("[")
    check_data_paths([shards])
    check_data_paths([f"{tmp_path}/a.json"])
    with pytest.raises(ValueError, match="a.tar.gz.*gzip"):
        check_data_paths([shards, f"{tmp_path}/a.tar.gz"])
    with pytest.raises(ValueError, match="--data_path mixes"):
        check_data_paths([shards, f"{tmp_path}/a.json"])
    with pytest.raises(ValueError, match="do not exist"):
        check_data_paths([f"{tmp_path}/none.tar"])


def test_a_stream_with_nothing_good_ends_with_a_reason(tmp_path, stream):
    path = write(tmp_path / "a.tar", {"bad": {"json": {}}})
    with pytest.raises(BadRecord, match="epochs.*good record"):
        next(iter(stream(path, on_bad_record="skip")))
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(BadRecord, match="epochs.*good record"):
        next(iter(stream(path, on_bad_record="skip")))
