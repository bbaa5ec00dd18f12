"""Rules that every benchmark keeps."""

import benchmarks
import open_benchmarks
import pytest

from llava.eval.records import images_of
from llava.eval.tasks import TASKS

NAMES = [*benchmarks.BUILDERS, *open_benchmarks.BUILDERS]


def test_every_task_but_easy_vqa_has_a_miniature():
    assert TASKS.keys() - set(NAMES) == {"easy_vqa"}


@pytest.mark.parametrize("name", NAMES)
def test_every_image_is_at_its_place(load, tmp_path, name):
    images = [image for row in load(name) for image in images_of(row)]
    assert images
    for image in images:
        assert isinstance(image, bytes) or (tmp_path / TASKS[name].folder / image).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_named_with_their_source(tmp_path, name):
    lines = TASKS[name].missing(tmp_path)
    assert len(lines) == len(TASKS[name].needs)
    assert all(
        line.startswith(f"{name}: {tmp_path}") and ("http" in line or "python -m " in line) for line in lines
    )


@pytest.mark.parametrize("name", NAMES)
def test_text_files_may_start_with_a_byte_order_mark(load, tmp_path, name):
    rows = load(name)
    folder = tmp_path / TASKS[name].folder
    marked = [
        file for file in folder.rglob("*") if file.suffix in (".json", ".jsonl", ".tsv", ".txt", ".csv")
    ]
    for file in marked:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert marked or name.startswith("mmmu")  # its files are parquet
    assert TASKS[name].load(folder) == rows


@pytest.mark.parametrize("name", NAMES)
def test_text_files_of_another_encoding_are_named_with_the_remedy(load, tmp_path, name):
    load(name)
    folder = tmp_path / TASKS[name].folder
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".tsv", ".txt", ".csv"):
            file.write_bytes(file.read_text(encoding="utf-8").encode("utf-16"))
    if not name.startswith("mmmu"):
        with pytest.raises(ValueError, match="UTF-16.*UTF-8"):
            TASKS[name].load(folder)
