"""An index is made once, equals a new one, and is made again when it no longer describes its file."""

import json
import logging
import multiprocessing
import os
import pickle
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

import llava.data.index
import llava.data.kept
import llava.data.measure
from llava.data.dataset import SupervisedDataset
from llava.data.kept import ENVIRONMENT, ArrayCache, default_folder
from llava.data.record import BadRecord
from llava.data.sample import SampleBuilder
from llava.errors import UserError
from llava.filelock import FileLock

PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})
SQUARE, TILED = Namespace(image_aspect_ratio="square"), Namespace(image_aspect_ratio="slice")
CONTEXT = multiprocessing.get_context("fork")


def record(number, image=None):
    said = [("human", "<image>\nWhat?" if image else "What?"), ("gpt", "It. " * (number + 1))]
    turns = [{"from": speaker, "value": words} for speaker, words in said]
    return {"id": number, "conversations": turns} | ({"image": image} if image else {})


RECORDS = [record(0, "a.png"), record(1), record(2, "b.png"), {"id": "odd"}, record(4, "a.png")]


@pytest.fixture
def make(tmp_path, bpe_tokenizer):
    for name, size in (("a.png", (30, 20)), ("b.png", (10, 40))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "data.json").write_text(json.dumps(RECORDS))

    def build(template="v1", image_config=SQUARE, visual_positions=lambda size: 10, **kwargs):
        builder = SampleBuilder(bpe_tokenizer, PROCESSOR, template, image_config, visual_positions)
        options = {"on_bad_record": "skip", "index_folder": tmp_path / "index", **kwargs}
        return SupervisedDataset([tmp_path / "data.json"], builder, tmp_path, **options)

    return build


@pytest.fixture
def scans(monkeypatch):
    """Counts how often a file is read from start to end."""
    made = []

    class Scan(llava.data.index._Scan):
        def __init__(self, *arguments):
            made.append(1)
            super().__init__(*arguments)

    monkeypatch.setattr(llava.data.index, "_Scan", Scan)
    return made


def ids(dataset):
    return [dataset._record(index)[0]["id"] for index in range(len(dataset))]


def test_a_second_start_reads_nothing_and_finds_the_same(make, scans):
    first, second = make(), make()
    assert len(scans) == 1
    assert ids(first) == ids(second) == [0, 1, 2, 4]
    assert first.bad_records == second.bad_records
    assert "record 3 (id odd)" in second.bad_records[0]
    assert first.modality_lengths.tolist() == second.modality_lengths.tolist()
    with pytest.raises(BadRecord, match=r"^1 bad record\(s\) in .*\n  .*record 3 \(id odd\)"):
        make(on_bad_record="fail")
    assert len(scans) == 1


def test_another_file_or_template_has_an_index_of_its_own(make, scans, tmp_path):
    assert len(make()) == 4
    assert len(make(template="plain")) == 3
    assert len(make()) == 4
    assert len(scans) == 2
    (tmp_path / "data.json").write_text(json.dumps([*RECORDS[:2], record(9, "b.png"), *RECORDS[3:]]))
    assert ids(make()) == [0, 1, 9, 4]
    assert len(scans) == 3


def test_a_file_written_twice_within_a_moment_at_one_size_is_read_twice(make, tmp_path):
    good = json.dumps([record(1), record(2)])
    for _ in range(3):
        for text, found in ((good, [1, 2]), (good.replace("gpt", "bot", 1), [2])):
            (tmp_path / "data.json").write_text(text)
            assert ids(make()) == found


def test_image_files_that_come_and_go_are_noticed(make, tmp_path, scans):
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    for _ in range(2):
        dataset = make()
        assert ids(dataset) == [1, 2]
        assert [problem.split(": ")[1].split()[0] for problem in dataset.bad_records] == [
            "image",
            "'conversations'",
            "image",
        ]
    assert len(scans) == 1
    (tmp_path / "c.png").rename(tmp_path / "a.png")
    assert ids(make()) == [0, 1, 2, 4]
    (tmp_path / "b.png").unlink()
    assert ids(make()) == [0, 1, 4]
    assert len(scans) == 3


def test_lazily_an_image_file_is_missed_when_it_is_needed(make, tmp_path):
    (tmp_path / "b.png").unlink()
    dataset = make(check_images="lazy")
    assert len(dataset) == 4
    assert dataset.read(2) is None
    assert "b.png does not exist; check --image_folder" in dataset.bad_records[1]
    with pytest.raises(UserError, match="--check_images must be 'start' or 'lazy', got 'never'"):
        make(check_images="never")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_index_is_made_anew(make, tmp_path, scans, keep):
    make()
    (path,) = (tmp_path / "index").glob("*.npy")
    path.write_bytes(path.read_bytes()[:keep])
    assert ids(make()) == [0, 1, 2, 4]
    assert len(scans) == 2
    make()
    assert len(scans) == 2
    assert [other.name for other in (tmp_path / "index").iterdir()] == [path.name]


def test_an_index_of_another_format_is_not_taken(make, scans, monkeypatch):
    make()
    monkeypatch.setattr(llava.data.index, "FORMAT", llava.data.index.FORMAT + 1)
    make()
    assert len(scans) == 2


def test_a_folder_that_cannot_be_written_is_said_and_another_is_taken(make, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(llava.data.kept.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    dataset = make(index_folder=tmp_path / "file" / "index", image_config=TILED)
    assert len(dataset.modality_lengths) == 4
    assert caplog.text.count("cannot be written to") == 1
    assert "Choose a folder with --index_folder" in caplog.text
    (folder,) = tmp_path.glob("llava-records-*")
    assert len(list(folder.glob("*.npy"))) == 2
    assert folder.stat().st_mode & 0o77 == 0


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    assert str(default_folder()) == os.environ[ENVIRONMENT]
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "llava" / "records"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "llava" / "records"


def get_slowly(folder, results):
    """A call that several ranks make at the same time."""
    logging.basicConfig(level=logging.INFO)

    def make():
        results.put("made")
        time.sleep(0.3)
        return torch.arange(3).numpy(), "notes"

    kept = ArrayCache(folder).get(["key"], "an array", make)
    results.put((kept.array.tolist(), kept.notes))


def test_one_of_several_processes_makes_it_and_the_others_wait(tmp_path):
    results = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=get_slowly, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in range(4)]
    for process in processes:
        process.join()
    assert found[0] == "made"
    assert found[1:] == [([0, 1, 2], "notes")] * 3


def test_a_waiting_process_names_the_process_that_it_waits_for(tmp_path, caplog, monkeypatch):
    def wait_for_nobody(path, wait):
        wait("process 7 on node 3")
        return FileLock(path, wait)

    monkeypatch.setattr(llava.data.kept, "FileLock", wait_for_nobody)
    with caplog.at_level(logging.INFO):
        ArrayCache(tmp_path).get(["key"], "the index of a.json", lambda: (torch.zeros(1).numpy(), []))
    assert "waiting for the index of a.json, made by process 7 on node 3" in caplog.text


def test_a_data_set_is_cheap_to_hand_to_a_worker(make):
    dataset = make()
    few = len(pickle.dumps(dataset.indices))
    assert few < 2000
    assert [index.read(0)[0] for index in pickle.loads(pickle.dumps(dataset.indices))] == [RECORDS[0]]


def test_image_sizes_are_read_once_and_tell_how_long_tiled_records_are(make, tmp_path, monkeypatch):
    opened = []

    def positions(size):
        return sum(size)

    def open_header(source):
        opened.append(source.name)
        return real(source)

    real = llava.data.measure.image_size
    monkeypatch.setattr(llava.data.measure, "image_size", open_header)
    lengths = make(image_config=TILED, visual_positions=positions).modality_lengths.tolist()
    assert opened == ["a.png", "b.png", "a.png"]
    dataset = make(image_config=TILED, visual_positions=positions)
    assert dataset.modality_lengths.tolist() == lengths
    assert lengths == [dataset.builder.estimate(*dataset._record(index)) for index in range(4)]
    monkeypatch.setattr(llava.data.measure, "SPOT_CHECKS", 1)
    opened.clear()
    other = make(image_config=TILED, visual_positions=lambda size: size[0]).modality_lengths.tolist()
    assert opened == ["a.png"], "another rule needs no image again, and a few are looked at"
    assert other == [lengths[0] - 20, lengths[1], lengths[2] - 40, lengths[3] - 20]
    Image.new("RGB", (7, 7)).save(tmp_path / "a.png")
    changed = make(image_config=TILED, visual_positions=positions).modality_lengths.tolist()
    assert changed == [lengths[0] - 36, lengths[1], lengths[2], lengths[3] - 36]


def test_an_array_that_was_not_used_for_long_is_removed_when_another_is_made(tmp_path):
    cache, long_ago = ArrayCache(tmp_path), time.time() - 100 * 24 * 60 * 60

    def get(key: str) -> Path:
        return cache.get([key], "an array", lambda: (np.zeros(1), [])).path

    used, unused = get("used"), get("unused")
    (others := tmp_path / "others.npy").write_bytes(b"")
    for path in (used, unused, others):
        os.utime(path, (long_ago, long_ago))
    assert get("used") == used  # reading it counts as a use
    assert unused.exists()
    get("new")
    assert used.exists()
    assert others.exists()
    assert not unused.exists()
