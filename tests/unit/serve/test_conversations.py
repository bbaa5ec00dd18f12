"""The storage behind the links: what comes back, what is refused, and what is deleted."""

import os
import re
import time
from io import BytesIO
from zipfile import ZipFile

import pytest
from messages import assert_names
from PIL import Image

from llava.errors import UserError
from llava.serve import conversations
from llava.serve.chat import Turn
from llava.serve.conversations import DAY, Conversations

TURNS = [
    Turn("what is <it>?", (Image.radial_gradient("L").convert("RGB"),), "a 🐘", (3, 1), 2),
    Turn("why?", (), "because", (4,), None),
]


@pytest.fixture
def store(tmp_path):
    return Conversations(tmp_path / "stored", days=30)


def test_a_conversation_comes_back_whole(store):
    assert store.load(store.save(TURNS)) == TURNS  # pixel by pixel


def test_nothing_is_written_before_a_conversation_is_stored_and_only_the_owner_reads_it_then(store):
    assert not store.folder.exists()
    store.save(TURNS)
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_each_id_is_of_128_bits_and_new(store):
    names = {store.save(TURNS) for _ in range(3)}
    assert len(names) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)


def test_a_picture_is_stored_without_the_metadata_of_its_file(store):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    data = BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JPEG", exif=exif)
    picture = Image.open(data)
    assert picture.getexif()
    name = store.save([Turn("what?", (picture.convert("RGB"),), "a square", (1,))])
    with ZipFile(store.folder / f"{name}.zip") as file, Image.open(file.open("0.png")) as stored:
        assert not stored.getexif()
        assert not stored.info


@pytest.mark.parametrize(
    "name", ["", "0" * 32, "0" * 31, "../secret", "/etc/passwd", "A" * 32, f"{'0' * 32}\n", "\x00"]
)
def test_what_is_no_stored_id_is_refused_in_words(store, tmp_path, name):
    store.save(TURNS)
    with ZipFile(tmp_path / "secret.zip", "w") as file:
        file.writestr("conversation.json", "[]")
    with pytest.raises(UserError, match="not stored here") as refusal:
        store.load(name)
    assert_names(str(refusal.value), 30)
    assert str(tmp_path) not in str(refusal.value)


def age(path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_what_is_too_old_is_deleted_and_the_files_of_others_stay(store):
    old, new = store.save(TURNS), store.save(TURNS)
    left = store.folder / f".{old}.zip.123"  # of a process that was killed
    others = store.folder / "notes.zip"
    for path in (left, others):
        path.write_text("text")
    for path in (store.folder / f"{old}.zip", left, others):
        age(path, 30.1)
    age(store.folder / f"{new}.zip", 29.9)
    with pytest.raises(UserError, match="not stored here"):
        store.load(old)
    assert store.load(new) == TURNS
    assert {path.name for path in store.folder.iterdir()} == {f"{new}.zip", "notes.zip"}


@pytest.mark.parametrize(
    "limit", [{"MAX_CONVERSATIONS": 1}, {"MAX_BYTES": 2048, "MAX_CONVERSATION_BYTES": 2048}]
)
def test_a_full_storage_takes_no_more_and_keeps_what_it_has(store, monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(conversations, name, value)
    plain = [Turn("why?", (), "because", (4,))]
    first = store.save(plain)
    with pytest.raises(UserError, match="full"):
        store.save(plain)
    assert store.load(first) == plain
    age(store.folder / f"{first}.zip", 31)
    assert store.load(store.save(plain)) == plain  # the old one made room


def test_a_conversation_with_too_large_pictures_is_refused_and_leaves_no_file(store, monkeypatch):
    monkeypatch.setattr(conversations, "MAX_CONVERSATION_BYTES", 100)
    with pytest.raises(UserError, match="pictures"):
        store.save(TURNS)
    assert list(store.folder.iterdir()) == []
