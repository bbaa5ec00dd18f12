"""Only one run at a time in an output folder, however the previous run ended."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import time

import pytest

from llava.errors import UserError
from llava.train.folder_lock import LOCK_FILE, FolderLock

CONTEXT = multiprocessing.get_context("fork")


def hold(folder, pipe, forks: bool) -> None:
    """Lock the folder, send the ids of the processes, and run until killed."""
    FolderLock(folder)
    child = os.fork() if forks else None
    if child != 0:
        pipe.send(child)
    while True:
        time.sleep(60)


@pytest.fixture
def holder(tmp_path, request):
    """(A process that holds the lock of tmp_path / "run", the id of a child that it forked or None)."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path / "run", theirs, getattr(request, "param", False)))
    process.start()
    child = ours.recv()
    yield process, child
    process.kill()
    process.join()
    if child is not None:
        os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_and_told_which_process_is_there(tmp_path, holder):
    process, _ = holder
    with pytest.raises(UserError) as refusal:
        FolderLock(tmp_path / "run")
    (line,) = str(refusal.value).splitlines()
    assert f"--output_dir '{tmp_path / 'run'}' is in use" in line
    assert f"process {process.pid} on {socket.gethostname()} since 2" in line
    assert (tmp_path / "run" / LOCK_FILE).is_file()


@pytest.mark.parametrize("holder", [False, True], indirect=True, ids=["alone", "with a child that lives on"])
def test_a_killed_run_holds_the_folder_no_longer(tmp_path, holder):
    process, child = holder
    process.kill()
    process.join()
    if child is not None:
        os.kill(child, 0)  # it is alive
    FolderLock(tmp_path / "run").release()


def test_what_is_released_leaves_no_trace(tmp_path):
    FolderLock(tmp_path / "new" / "run").release()
    assert not (tmp_path / "new" / "run").exists()
    lock = FolderLock(tmp_path / "run")
    (tmp_path / "run" / "result").touch()
    lock.release()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]
    (tmp_path / "earlier").mkdir()
    FolderLock(tmp_path / "earlier").release()
    assert (tmp_path / "earlier").is_dir()


def test_a_file_that_the_run_before_removes_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    path, lockf, calls = tmp_path / LOCK_FILE, fcntl.lockf, []

    def remove_first(*arguments):
        calls.append(1)
        if len(calls) == 1:
            path.unlink()
        lockf(*arguments)

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    lock = FolderLock(tmp_path)
    assert len(calls) == 2
    assert f"process {os.getpid()} on" in path.read_text()
    lock.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_where_files_cannot_be_locked_the_run_goes_on_and_says_so(tmp_path, monkeypatch, caplog, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    FolderLock(tmp_path / "run").release()
    assert f"{tmp_path / 'run' / LOCK_FILE} cannot be locked" in caplog.text
    assert os.strerror(number) in caplog.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output_dir .*cannot be written"):
        FolderLock(tmp_path / "file" / "run")
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(UserError, match="--output_dir .*cannot be written"):
        FolderLock(tmp_path)
