"""Files reach the disk before they get their name, and a failure gives its reason."""

import errno
import os
from pathlib import Path

import pytest
from messages import assert_names
from safetensors import SafetensorError

from llava import wholefile
from llava.train import run_record, saving


@pytest.fixture
def order(monkeypatch):
    """The order of calls: ("sync", path) and ("rename", source, target)."""
    done, fsync = [], os.fsync

    def record_sync(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def record_rename(original):
        def rename(source, target, **options):
            done.append(("rename", Path(source), Path(target)))
            original(source, target, **options)

        return rename

    monkeypatch.setattr(os, "fsync", record_sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, record_rename(getattr(os, name)))
    return done


def write(folder: Path, *names: str) -> list[Path]:
    """Writes files; returns them and their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return [*folder.rglob("*"), folder]


def assert_synced_around(order, target: Path, paths: list[Path]) -> None:
    """All paths are synced before the rename to `target`, and the folder of `target` after it."""
    (at,) = (index for index, event in enumerate(order) if event[0] == "rename" and event[2] == target)
    assert {("sync", path) for path in paths} <= set(order[:at])
    assert ("sync", target.parent) in order[at:]


def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_named_before_old_ones_go(tmp_path, order):
    write(tmp_path / "checkpoint-2", saving.STATE_FILE)
    paths = write(tmp_path / saving.STAGING / "checkpoint-4", "model", "global_step4/part", saving.STATE_FILE)
    saving.publish_checkpoint(tmp_path, "checkpoint-4", limit=1)
    assert_synced_around(order, tmp_path / "checkpoint-4", paths)
    renames = [index for index, event in enumerate(order) if event[0] == "rename"]
    assert ("sync", tmp_path) in order[renames[0] : renames[1]]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (1, None, [8]),
        (1, 2, [2, 8]),
        (2, 2, [2, 8]),
        (3, 2, [2, 6, 8]),
        (1, 8, [8]),
        (2, 3, [6, 8]),
        (0, 2, [2, 4, 6, 8]),
    ],
)
def test_the_newest_and_the_best_checkpoint_stay_within_the_limit(tmp_path, limit, best, left):
    for step in (2, 4, 6):
        write(tmp_path / f"checkpoint-{step}", saving.STATE_FILE)
    write(tmp_path / saving.STAGING / "checkpoint-8", saving.STATE_FILE)
    saving.publish_checkpoint(tmp_path, "checkpoint-8", limit, best and f"checkpoint-{best}")
    assert [folder.name for folder in saving.checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]


def test_a_new_result_takes_the_state_of_the_old_one_away_first(tmp_path, order):
    """A kill in between leaves no mixture of both that looks complete."""
    write(tmp_path, saving.STATE_FILE, "model")
    write(tmp_path / saving.STAGING, saving.STATE_FILE, "model")
    unlinked = []
    replace = saving.os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            saving.os,
            "replace",
            lambda *paths: unlinked.append((tmp_path / saving.STATE_FILE).exists()) or replace(*paths),
        )
        saving.publish_result(tmp_path)
    assert unlinked == [False, False]


def test_a_result_is_on_disk_before_the_state_says_that_it_is_there(tmp_path, order):
    paths = write(tmp_path / saving.STAGING, "model", "config.json", "zzz", saving.STATE_FILE)
    saving.publish_result(tmp_path)
    for name in ("model", "config.json", "zzz", saving.STATE_FILE):
        assert_synced_around(order, tmp_path / name, paths)
    last = max(index for index, event in enumerate(order) if event[0] == "rename")
    assert order[last][2] == tmp_path / saving.STATE_FILE
    assert order[last - 1] == ("sync", tmp_path)
    assert not (tmp_path / saving.STAGING).exists()


def test_a_file_that_describes_a_run_is_on_disk_before_it_has_its_name(tmp_path, order):
    row = {"step": 1, "loss": 2.0}
    args = type("Args", (), {"output_dir": str(tmp_path)})
    state = type("State", (), {"log_history": [row]})
    run_record.rewrite_metrics(args, state)
    run_record.draw_loss(args, state)
    for name in (run_record.METRICS_FILE, run_record.CURVE_FILE):
        (source,) = (event[1] for event in order if event[0] == "rename" and event[2] == tmp_path / name)
        assert_synced_around(order, tmp_path / name, [source])
        assert not source.exists()


def test_a_folder_may_be_impossible_to_sync_and_a_file_may_not(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    wholefile.sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        wholefile.sync(tmp_path / "file")


# ---- The message of a failure


def safetensors_error(number: int) -> SafetensorError:
    return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def error_in_between(number: int) -> RuntimeError:
    error = RuntimeError("the writer failed")
    error.__context__ = system_error(number)
    return error


@pytest.mark.parametrize("kind", [system_error, safetensors_error, error_in_between])
@pytest.mark.parametrize(
    ("number", "is_space"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True)]
    + [(number, False) for number in (errno.ENOENT, errno.EACCES, errno.EIO, errno.EROFS, errno.EFBIG)],
)
def test_free_space_is_reported_only_if_space_is_short(tmp_path, kind, number, is_space):
    message = saving.describe_failure("checkpoint-2", kind(number), tmp_path)
    assert_names(message, "checkpoint-2", f"not be written to {tmp_path}: ")
    assert os.strerror(number) in message
    assert ("GiB are free" in message) == is_space
    assert "no complete checkpoint" in message


def test_a_part_of_a_file_that_torch_could_not_write_is_like_a_full_disk(tmp_path):
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 22\nframes")
    message = saving.describe_failure("the result", error, tmp_path)
    assert_names(message, "full disk", "quota")
    assert "GiB are free" in message
    assert "frames" not in message


def test_a_folder_that_is_gone_is_described_too(tmp_path):
    gone = tmp_path / "gone"
    assert "No such file" in saving.describe_failure("checkpoint-2", system_error(errno.ENOENT), gone)
