"""Atomic files and folders, leftovers, locks."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, full_disk

from tinynet import files
from tinynet.files import (
    atomic_file,
    atomic_folder,
    clear_leftovers,
    locked,
    new_array,
    temporary_folder,
)

# --- locks and space ---


def test_a_lock_keeps_others_out_until_its_block_ends(tmp_path):
    inside, waited, turns = [], [], []

    def enter(name):
        for _ in range(20):
            with locked(tmp_path / "lock", lambda: waited.append(name)):
                inside.append(name)
                turns.append(list(inside))
                time.sleep(0.0005)  # others have their chance
                inside.remove(name)

    threads = [threading.Thread(target=enter, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 80 and all(len(turn) == 1 for turn in turns)
    assert waited and not list(tmp_path.iterdir())


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="space is not reserved on this system"
)
def test_an_array_without_its_space_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    with pytest.raises(OSError) as caught:
        new_array(tmp_path / "array.npy", (3, 4), np.float32)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(
        tmp_path / "array.npy"
    )
    assert not list(tmp_path.iterdir())


needs_flock = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
NOBODY = 2**22 + 7  # no process has this number


# --- what killed processes leave ---


def leftovers(folder, *owners):
    """Partial files of these owners, and a partial folder of another machine."""
    made = [folder / f".best.pt.{owner}.partial" for owner in owners]
    for path in made:
        path.write_bytes(b"70 MB")
    (folder / ".packed.tinynet-elsewhere-12.partial").mkdir()
    (folder / ".packed.tinynet-elsewhere-12.partial/a.npy").write_bytes(b"1.5 GB")
    return made


def clear_in_another_process(folder):
    code = (
        "import pathlib, sys\n"
        "from tinynet.files import clear_leftovers\n"
        "clear_leftovers(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, check=True)


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path):
    earlier, dead, foreign = leftovers(
        tmp_path,
        f"tinynet-{files.HOST}-{os.getpid()}",  # of a process with this one's number
        f"tinynet-{files.HOST}-{NOBODY}",
        f"tinynet-elsewhere-{NOBODY}",
    )
    others = [
        tmp_path / ".movie.mp4.partial",
        tmp_path / f".movie.{NOBODY}.partial",
        tmp_path / "best.pt",
    ]
    for path in others:
        path.write_bytes(b"of another program")
    with atomic_file(tmp_path / "scores.jsonl"):
        (mine,) = tmp_path.glob(".scores.jsonl.*")
        assert not dead.exists() and not earlier.exists()
        # One of another machine may be at work, until it has not written for an hour.
        assert mine.exists() and foreign.exists() and all(path.exists() for path in others)
        old = time.time() - 4000
        for path in (
            foreign,
            tmp_path / ".packed.tinynet-elsewhere-12.partial/a.npy",
            tmp_path / ".packed.tinynet-elsewhere-12.partial",
        ):
            os.utime(path, (old, old))
        clear_leftovers(tmp_path)  # each process looks once
        assert foreign.exists()
        clear_in_another_process(tmp_path)
        assert not foreign.exists() and not list(tmp_path.glob(".packed*"))
        assert mine.exists() and all(path.exists() for path in others)


def test_what_the_first_edition_left_is_cleared_where_its_file_is_written_again(tmp_path):
    first, alive = (tmp_path / f".best.pt.{process}.partial" for process in (NOBODY, os.getpid()))
    folder = tmp_path / ".a.packed.partial"
    first.write_bytes(b"70 MB")
    alive.write_bytes(b"70 MB")
    folder.mkdir()
    with atomic_file(tmp_path / "best.pt"), atomic_folder(tmp_path / "a.packed"):
        pass
    assert not first.exists() and alive.exists() and not folder.exists()


def test_a_partial_folder_of_an_earlier_process_with_this_number_is_replaced(tmp_path):
    left = tmp_path / f".a.packed.tinynet-{files.HOST}-{os.getpid()}.partial"
    left.mkdir()
    (left / "train.pictures.npy").write_bytes(b"1.5 GB")
    with atomic_folder(tmp_path / "a.packed") as partial:
        (partial / "a").write_bytes(b"a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.packed"]
    assert [path.name for path in (tmp_path / "a.packed").iterdir()] == ["a"]


def test_locks_of_other_programs_are_left_alone(tmp_path):
    others = [
        tmp_path / name
        for name in (".base.lock", ".a.packed.lock", ".scores.jsonl.lock", "poetry.lock")
    ]
    for path in (*others, tmp_path / ".base.tinynet.lock"):
        path.touch()
    clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_unfinished_folders_are_gone_after_their_block(tmp_path):
    with pytest.raises(KeyError), temporary_folder(tmp_path / "a") as room:
        (room / "b").write_text("c")
        raise KeyError
    assert not list(tmp_path.iterdir())


# --- file systems ---


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    file, folder = tmp_path / "best.pt", tmp_path / "a.packed"
    for link in (file, folder):
        link.symlink_to(tmp_path / "disk" / link.name)
    for _ in range(2):
        with atomic_file(file) as stream, atomic_folder(folder) as partial:
            stream.write(b"weights")
            (partial / "a").touch()
        assert file.is_symlink() and (tmp_path / "disk/best.pt").read_bytes() == b"weights"
        assert folder.is_symlink() and (tmp_path / "disk/a.packed/a").exists()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs the devices of Unix")
def test_devices_are_written_to_and_not_replaced(monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("replaces a device"))
    reader, writer = os.pipe()
    try:
        for path in ("/dev/null", f"/dev/fd/{writer}"):
            with atomic_file(path) as stream:
                stream.write(b"rows")
        assert os.read(reader, 9) == b"rows" and Path("/dev/null").is_char_device()
    finally:
        os.close(reader)
        os.close(writer)


def test_a_system_without_locks_gets_no_files_of_locks(tmp_path):
    code = (
        "import os, sys\n"
        "sys.modules['fcntl'] = None\n"
        "from tinynet.files import locked\n"
        "for _ in range(2):\n"
        "    with locked(os.path.join(sys.argv[1], 'base'), sys.exit):\n"
        "        assert os.listdir(sys.argv[1]) == []\n"
        "print('went on')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.stdout == "went on\n" and ran.stderr.count("has no file locks") == 1


@needs_flock
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_another_lock_is_taken_and_without_any_work_goes_on(
    tmp_path, monkeypatch, capsys, number
):
    import fcntl

    def missing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", missing)
    code = (
        "import fcntl, sys\n"
        f"fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError({number}, 'no flock'))\n"
        "from tinynet.files import locked\n"
        "def busy(): raise SystemExit(7)\n"
        "with locked(sys.argv[1], busy): pass"
    )
    with locked(tmp_path / "lock", lambda: None):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], cwd=ROOT)
    assert other.returncode == 7 and capsys.readouterr().err == ""
    monkeypatch.setattr(fcntl, "lockf", missing)
    for _ in range(2):
        with locked(tmp_path / "lock", lambda: pytest.fail("nobody holds it")):
            assert [path.name for path in tmp_path.iterdir()] == [".lock.tinynet.lock"]
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("has no file locks") == 1


@needs_flock
def test_other_lock_errors_are_raised(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(
        fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken"))
    )
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "lock", lambda: None):
        pass


# --- names that are not text ---


def test_a_recipe_keeps_a_path_whose_bytes_are_no_text(tmp_path):
    files.write_json(tmp_path / "a.json", {"data": "caf\udce9", "name": "naïve"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "data": "caf\udce9",
        "name": "naïve",
    }
