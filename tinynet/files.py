"""Result files and folders appear whole or not at all: temporary name, fsync, rename."""

import errno
import glob
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from tinynet.console import log
from tinynet.errors import InputError
from tinynet.interrupts import postponed

if TYPE_CHECKING:
    import numpy as np


def _sync(path: Path) -> None:
    with open(path, "r+b") as stream:
        os.fsync(stream.fileno())


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only when the block ends without an exception.

    Missing parent folders are made. An earlier file of that name is replaced in one step; where the
    name is a link, the file that it leads to. Devices such as /dev/null are written to.
    """
    path = Path(path)
    if path.is_absolute() and path.parts[1:2] == ("dev",) and not path.is_file():
        with open(path, "wb") as stream:
            yield stream
        return
    path = _behind_link(path)
    partial = _partial(path)
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


def _behind_link(path: Path) -> Path:
    """Where a link leads to a file or folder, or to where one can be made; any other path as it
    is.
    """
    target = Path(os.path.realpath(path))
    return (
        target
        if path.is_symlink() and (target.is_file() or target.is_dir() or not target.exists())
        else path
    )


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `path` only when the block ends without an
    exception.

    An earlier folder of that name is replaced. One process at a time may write it (see `locked`).
    """
    path = _behind_link(Path(path))
    with temporary_folder(path) as partial:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, removed after the block, or by a later process where
    this one is killed.
    """
    partial = _partial(Path(path))
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# --- what is not whole yet, and whose it is ---


def _machine() -> str:
    """A word for where numbers of processes mean the same: a machine since its start, or a
    container on it.
    """
    words = [platform.node()[:40]]
    # Linux alone tells: nodes of a cluster, or containers, may share one name
    with suppress(OSError):
        words += [
            Path("/proc/sys/kernel/random/boot_id").read_text()[:8],
            str(os.stat("/proc/self/ns/pid").st_ino),
        ]
    return re.sub(r"\W", "-", "-".join(words))


_HOST = _machine()
_OWNER = re.compile(r"\..+\.tinynet-(?P<host>[\w-]+)-(?P<process>\d+)\.partial")
_LOCK = re.compile(r"\..+\.tinynet\.lock")
# seconds without a change after which what a process of another machine left is taken for dead
_LIVES = 3600.0
_cleared: set[tuple[int, Path]] = set()
_mine: set[tuple[int, Path]] = set()  # partial files of this process


def _partial(path: Path) -> Path:
    """A name beside `path` of this process alone: two that write the same file must not share
    it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*partial"):
        _clear(old)
        # The first edition named no machine, and for folders no process.
        number = old.name.removeprefix(f".{path.name}.").removesuffix("partial").rstrip(".")
        if not number or (number.isdecimal() and not _runs(int(number))):
            _remove(old)
    partial = path.with_name(f".{path.name}.tinynet-{_HOST}-{os.getpid()}.partial")
    _mine.add((os.getpid(), partial))
    return partial


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that are gone have left in `folder`, unfinished files and locks; each
    process looks once.

    The owner of a file stands in its name: its machine, and its number there. A lock has none if it
    can be had.
    """
    if (os.getpid(), folder) in _cleared:
        return
    _cleared.add((os.getpid(), folder))
    with suppress(OSError):  # what cannot be looked at or removed does no harm
        for place in list(folder.iterdir()):
            _clear(place)
            if _LOCK.fullmatch(place.name):
                with suppress(OSError), _locked(place, partial(_held, place)):
                    pass


def _held(place: Path) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, "is held", str(place))


def _clear(place: Path) -> None:
    """Remove what has an owner in its name that is gone."""
    owner = _OWNER.fullmatch(place.name)
    with suppress(OSError):  # it may have gone
        if owner and not _has_owner(place, owner["host"], int(owner["process"])):
            _remove(place)


def _has_owner(place: Path, host: str, process: int) -> bool:
    if host == _HOST and process == os.getpid():
        return (process, place) in _mine  # else of an earlier process with the same number
    if host == _HOST and os.name != "nt":
        return _runs(process)
    newest = max(file.lstat().st_mtime for file in (place, *place.rglob("*")))
    return time.time() - newest < _LIVES


def _runs(process: int) -> bool:
    if os.name == "nt":  # Windows would send a signal where others only ask
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


# --- locks ---


@contextmanager
def locked(path: str | Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of the file or folder `path` for the block: a hidden file beside it.

    While another process holds it, `busy` is called: it may raise, or say that this one waits. The
    lock ends with the process, however that ends; the file goes with the block. Where the system or
    the file system has no locks, nothing is held, which is said once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    with _locked(path.with_name(f".{path.name}.tinynet.lock"), busy):
        yield


@contextmanager
def _locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    try:
        import fcntl  # noqa: F401  only to see whether there is one
    except ImportError:  # Windows, which does not remove a file that is open either
        _tell_of_no_locks(os.name)
        yield
        return
    while True:
        with open(path, "a", opener=_open_at_once) as stream:
            try:
                _lock(stream, wait=False)
            except BlockingIOError:
                busy()
                _lock(stream, wait=True)
            if not _is_still(path, stream):
                continue  # removed by who held it: to hold that one would keep nobody out
            try:
                yield
                return
            finally:
                with postponed():
                    path.unlink(missing_ok=True)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, or raise; what has the name of a lock and is a pipe would be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def _lock(stream: Any, wait: bool) -> None:
    """Lock an open file for this process, by flock or, where a file system has no such locks, by
    fcntl's own.

    Raises `BlockingIOError` where another process holds it, unless `wait`.
    """
    import fcntl

    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return
        except OSError as error:
            # lockf has either
            if isinstance(error, BlockingIOError) or error.errno == errno.EACCES:
                raise BlockingIOError(*error.args) from None
            if error.errno not in _NO_LOCKS:
                raise
    _tell_of_no_locks(Path(stream.name).parent)


@cache
def _tell_of_no_locks(place: Any) -> None:
    log(f"note: {place} has no file locks; let one process at a time work there")


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
    """The path, once its folder exists, can be written to, and the path is no folder: told before
    the work, not after.

    Raises `OSError` where that is not so.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not can_write(path.parent) and not (path.exists() and not path.is_file()):
        read_only = hasattr(os, "statvfs") and os.statvfs(path.parent).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(path.parent))
    return path


def can_write(folder: str | Path) -> bool:
    """Whether files can be made in a folder, or it can be made itself."""
    folder = Path(folder)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def refuse_existing(flag: str, path: str | Path) -> None:
    """Raise `InputError` where something has the name that a new folder is to get."""
    if Path(path).exists():
        raise InputError(f"{flag} {path}: is there already; name a new folder")


def no_pipe(path: str | Path) -> Path:
    """The path of a file; raises `FileNotFoundError` where there is none, or a pipe, which would be
    waited for.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return Path(path)


def read_text(path: str | Path, most: int = 2**26) -> str:
    """The text of a file in UTF-8; raises `OSError`, and `ValueError` where it is not text or has
    more than `most` bytes.
    """
    with open(path, "rb") as stream:
        if (size := os.fstat(stream.fileno()).st_size) > most:
            raise ValueError(f"{size:,} bytes are too many")
        return stream.read(most).decode("utf-8")


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; raises `OSError`, and `ValueError` where it is not JSON."""
    try:
        return json.loads(read_text(no_pipe(path)))
    except RecursionError:
        raise ValueError("is nested too deep") from None


def map_array(path: str | Path, mode: str | None = "r") -> "np.ndarray":
    """An array on disk, of which only what is used is read, or all with `mode` None.

    Raises `OSError`, and `ValueError` where the file is no array.
    """
    import numpy as np

    try:
        return np.load(no_pipe(path), mmap_mode=mode)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a broken header raises nearly anything
        raise ValueError(str(error) or type(error).__name__) from None


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    try:
        data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name whose bytes are no text
        data = (json.dumps(value, indent=2) + "\n").encode()
    with atomic_file(path) as stream:
        stream.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; what UTF-8 has no letter for becomes a question
    mark.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8", "replace"))
