"""A run removes the locks of killed builds, but not of builds that may still be running."""

import os
import time

import pytest

from llava.train.extension_locks import LONGEST_BUILD, remove_stale_locks


@pytest.mark.parametrize("folder", ["one_op", "py311_cu128/one_op"])
def test_old_locks_are_removed_and_named_and_new_ones_stay(tmp_path, monkeypatch, caplog, folder):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old, new = tmp_path / folder / "lock", tmp_path / f"{folder}_2" / "lock"
    for lock in (old, new):
        lock.parent.mkdir(parents=True)
        lock.touch()
    began = time.time() - LONGEST_BUILD - 60
    os.utime(old, (began, began))
    remove_stale_locks()
    assert not old.exists()
    assert new.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"removed {old}, the lock of a build of an extension that was killed"
    ]
