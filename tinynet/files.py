"""Result files and folders appear whole or not at all: temporary name, fsync, rename."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tinynet.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def _sync(path: Path) -> None:
    with open(path, "r+b") as stream:
        os.fsync(stream.fileno())


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only when the block ends without an exception.

    Missing parent folders are made. An earlier file of that name is replaced in one step.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes writing the same name must not share a temporary file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not know its file
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `path` only when the block ends without an exception.

    An earlier folder of that name is replaced. One process at a time may write it (see `locked`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(path: str | Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path` for the block.

    While another process holds it, `busy` is called: it may raise, or say that this one waits.
    The lock ends with the process, however that ends; the file goes with the block. Where the system has
    no such locks (Windows), nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_still(path, stream):
                continue  # removed by who held it: to hold that one would keep nobody out
            try:
                yield
                return
            finally:
                path.unlink(missing_ok=True)


def _is_still(path: Path, stream: Any) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def new_array(path: str | Path, shape: tuple[int, ...], dtype: Any) -> "np.memmap":
    """Make a writable `.npy` array on disk whose space is reserved at once.

    Raises `OSError` (ENOSPC) where the disk is too small: writing to an array without its space
    would end the process with a bus error instead.
    """
    import numpy as np  # here, because every command reads this file before its flags

    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    size = os.path.getsize(path)
    try:
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, size)
        elif shutil.disk_usage(Path(path).parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        Path(path).unlink()
        error.filename, error.strerror = str(path), f"{error.strerror} ({size:,} bytes are needed)"
        raise
    return array


def can_hold(path: str | Path) -> Path:
    """The path, once its folder exists and nothing but a file stands there: told before the work, not after it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path


def refuse_existing(flag: str, path: str | Path) -> None:
    """Raise `InputError` where something has the name that a new folder is to get."""
    if Path(path).exists():
        raise InputError(f"{flag} {path}: is there already; name a new folder")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with whole_file(path) as stream:
        stream.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with whole_file(path) as stream:
        stream.write(text.encode())
