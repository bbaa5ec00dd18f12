"""llava/wholefile.py: a file is either complete or unchanged, and no other file is left beside it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava import wholefile
from llava.wholefile import whole_file, write_text

ROOT = Path(__file__).parents[2]
RENAMES = re.compile(r"\bos\.(replace|rename)\(|\.rename\(|shutil\.move\(")
OF_FOLDERS = {
    *("llava/train/saving.py", "llava/benchmark/prismvqa/dataset.py", "llava/export/folder.py"),
    *("scripts/output_folder.py", "scripts/bundle_wheels.py"),
}


def test_a_file_is_written_in_a_folder_that_is_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "größer\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "größer\n".encode()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c.txt"]


def test_a_failure_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    (tmp_path / "c.txt").write_text("old")

    def fail() -> None:
        with whole_file(tmp_path / "c.txt") as scratch:
            scratch.write_text("half")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"c.txt": "old"}


def test_a_kill_leaves_the_file_as_it_was_and_a_hidden_one_beside_it(tmp_path):
    (tmp_path / "c.txt").write_text("old")
    code = f"""import os, signal
from pathlib import Path
from llava.wholefile import whole_file
with whole_file(Path({str(tmp_path)!r}) / "c.txt") as scratch:
    scratch.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / "c.txt").read_text() == "old"
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["c.txt"]
    write_text(tmp_path / "c.txt", "new")
    assert (tmp_path / "c.txt").read_text() == "new"


@pytest.mark.parametrize("synced", [True, False])
def test_many_files_need_not_wait_for_the_disk(tmp_path, monkeypatch, synced):
    waited = []
    monkeypatch.setattr(wholefile, "sync", waited.append)
    with whole_file(tmp_path / "c.txt", synced=synced) as scratch:
        scratch.touch()
    assert waited == ([scratch, tmp_path] if synced else [])


def test_no_other_code_renames_files():
    """The listed exceptions rename folders, or move the contents of one."""
    found = {
        path.relative_to(ROOT).as_posix()
        for room in ("llava", "scripts")
        for path in (ROOT / room).rglob("*.py")
        if RENAMES.search(path.read_text())
    }
    assert found == {"llava/wholefile.py", *OF_FOLDERS}
