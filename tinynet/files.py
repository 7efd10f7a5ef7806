"""Write result files and folders completely or not at all: temporary name, fsync, rename."""

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
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn

from tinynet.console import log
from tinynet.errors import InputError
from tinynet.interrupts import postponed

if TYPE_CHECKING:
    import numpy as np

UNFINISHED = ".unfinished"  # the end of a resumable folder's name until it is complete


def _sync(path: Path) -> None:
    with open(path, "r+b") as stream:
        os.fsync(stream.fileno())


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets the name `path` when the block ends without an exception.

    Missing parent folders are created. An existing file is replaced in one step. If `path` is a
    link, its target is replaced. Devices such as /dev/null are written directly.
    """
    path = Path(path)
    if path.is_absolute() and path.parts[1:2] == ("dev",) and not path.is_file():
        with open(path, "wb") as stream:
            yield stream
        return
    path = _link_target(path)
    temporary = _partial_path(path)
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a write has no file name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _link_target(path: Path) -> Path:
    """The target of a link, if it is a file or a folder or can become one; else `path`."""
    target = Path(os.path.realpath(path))
    return (
        target
        if path.is_symlink() and (target.is_file() or target.is_dir() or not target.exists())
        else path
    )


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder that gets the name `path` when the block ends without an exception.

    An existing folder is replaced. Only one process may write it at a time (see `locked`).
    """
    path = _link_target(Path(path))
    with temporary_folder(path) as temporary:
        yield temporary
        _put_in_place(temporary, path)


@contextmanager
def resumable_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder that gets the name `path` when the block ends without an exception.

    If the block is interrupted or the process is killed, the folder stays, as `path` with
    `UNFINISHED`, and the next call yields it again. After an error it is removed. Only one process
    may write it at a time (see `locked`).
    """
    path = _link_target(Path(path))
    unfinished = path.with_name(path.name + UNFINISHED)
    unfinished.mkdir(exist_ok=True)
    try:
        yield unfinished
        _put_in_place(unfinished, path)
    except Exception:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def sync_files(folder: Path) -> None:
    """Wait until all files in a folder and its subfolders are on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)


def _put_in_place(folder: Path, path: Path) -> None:
    sync_files(folder)
    if path.exists():
        shutil.rmtree(path)
    os.replace(folder, path)


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder next to `path` that is removed after the block.

    If this process is killed, a later process removes it.
    """
    temporary = _partial_path(Path(path))
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- partial files and their owners ---


def _machine_id() -> str:
    """An identifier of the machine since its start, or of a container: the scope of process ids."""
    words = [platform.node()[:40]]
    # Nodes of a cluster, or containers, may share a host name. Only Linux can tell them apart.
    with suppress(OSError):
        words += [
            Path("/proc/sys/kernel/random/boot_id").read_text()[:8],
            str(os.stat("/proc/self/ns/pid").st_ino),
        ]
    return re.sub(r"\W", "-", "-".join(words))


HOST = _machine_id()
_OWNER = re.compile(r"\..+\.tinynet-(?P<host>[\w-]+)-(?P<process>\d+)\.partial")
_LOCK = re.compile(r"\..+\.tinynet\.lock")
# Seconds without a change after which a partial file of another machine counts as abandoned.
_ABANDONED_AFTER = 3600.0
_cleared_folders: set[tuple[int, Path]] = set()  # with the process that cleared them
_own_partials: set[tuple[int, Path]] = set()  # with the process that owns them


def _partial_path(path: Path) -> Path:
    """A temporary name next to `path` for this process: two processes must not share one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    for file in path.parent.glob(f".{glob.escape(path.name)}.*partial"):
        _remove_abandoned(file)
        # Version 1 did not put the machine into the name, nor the process for folders.
        number = file.name.removeprefix(f".{path.name}.").removesuffix("partial").rstrip(".")
        if not number or (number.isdecimal() and not _is_running(int(number))):
            _remove(file)
    temporary = path.with_name(f".{path.name}.tinynet-{HOST}-{os.getpid()}.partial")
    _own_partials.add((os.getpid(), temporary))
    return temporary


def clear_leftovers(folder: Path) -> None:
    """Remove partial files and locks that killed processes left in `folder`.

    The name of a partial file contains the machine and the process id of its owner. A lock is
    abandoned if it can be acquired. Each process clears a folder once.
    """
    if (os.getpid(), folder) in _cleared_folders:
        return
    _cleared_folders.add((os.getpid(), folder))
    with suppress(OSError):  # leftovers that cannot be removed do no harm
        for path in list(folder.iterdir()):
            _remove_abandoned(path)
            if _LOCK.fullmatch(path.name):
                with suppress(OSError), _locked(path, partial(_raise_locked, path)):
                    pass


def _raise_locked(path: Path) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, "is locked", str(path))


def _remove_abandoned(path: Path) -> None:
    """Remove a partial file or folder whose owner no longer runs."""
    owner = _OWNER.fullmatch(path.name)
    with suppress(OSError):  # another process may have removed it
        if owner and not _is_owned(path, owner["host"], int(owner["process"])):
            _remove(path)


def _is_owned(path: Path, host: str, process: int) -> bool:
    if host == HOST and process == os.getpid():
        return (process, path) in _own_partials  # else of an earlier process with this id
    if host == HOST and os.name != "nt":
        return _is_running(process)
    newest = max(file.lstat().st_mtime for file in (path, *path.rglob("*")))
    return time.time() - newest < _ABANDONED_AFTER


def _is_running(process: int) -> bool:
    if os.name == "nt":  # on Windows os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- locks ---


@contextmanager
def locked(path: str | Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of the file or folder `path` during the block.

    The lock is a hidden file next to `path`. If another process holds it, `busy` is called, which
    may raise or log that this process waits. The lock ends with its process in any case. If the
    file system has no locks, nothing is locked, and a note is logged once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    with _locked(path.with_name(f".{path.name}.tinynet.lock"), busy):
        yield


@contextmanager
def _locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    try:
        import fcntl  # noqa: F401  only to see whether it exists
    except ImportError:  # Windows; there an open file cannot be removed either
        _note_no_locks(os.name)
        yield
        return
    while True:
        with open(path, "a", opener=_open_at_once) as stream:
            try:
                _lock(stream, wait=False)
            except BlockingIOError:
                busy()
                _lock(stream, wait=True)
            if not _is_open_file(path, stream):
                continue  # its holder removed the file, so its lock keeps nobody out
            try:
                yield
                return
            finally:
                with postponed():
                    path.unlink(missing_ok=True)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting, even if it is a pipe with the name of a lock."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def _lock(stream: IO[str], wait: bool) -> None:
    """Lock an open file with flock, or with lockf if the file system has no flock.

    Raises `BlockingIOError` if another process holds the lock, unless `wait`.
    """
    import fcntl

    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return
        except OSError as error:
            # lockf raises either of the two
            if isinstance(error, BlockingIOError) or error.errno == errno.EACCES:
                raise BlockingIOError(*error.args) from None
            if error.errno not in _NO_LOCKS:
                raise
    _note_no_locks(Path(stream.name).parent)


@cache
def _note_no_locks(place: Path | str) -> None:
    log(f"note: {place} has no file locks; run only one process at a time there")


def _is_open_file(path: Path, stream: IO[str]) -> bool:
    """Whether `path` is still the name of the open file."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


# --- arrays, paths, text and JSON ---


def new_array(path: str | Path, shape: tuple[int, ...], dtype: Any) -> "np.memmap":
    """Create a writable `.npy` array on disk, and reserve its space.

    Raises `OSError` (ENOSPC) if the disk is too small. Writing to an array without reserved space
    would end the process with a bus error.
    """
    import numpy as np  # here, because every command imports this module before it reads its flags

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


def check_writable(path: str | Path) -> Path:
    """Create the parent folder of a file to be written, and return the path.

    Raises `OSError` if the path is a folder, or its folder cannot be written to. So a command
    fails before its work, not after it.
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
    """Whether files can be created in a folder, which need not exist yet."""
    folder = Path(folder)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def refuse_existing(flag: str, path: str | Path) -> None:
    """Raise `InputError` if `path`, the value of `flag`, already exists."""
    if Path(path).exists():
        raise InputError(f"{flag} {path}: already exists; choose a new folder")


def regular_file(path: str | Path) -> Path:
    """Return the path of an existing file.

    Raises `FileNotFoundError` if it does not exist, or is a pipe: reading would wait for a pipe.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return Path(path)


def read_text(path: str | Path, limit: int = 2**26) -> str:
    """Read a UTF-8 file of at most `limit` bytes.

    Raises `OSError`, and `ValueError` if the file is not UTF-8 or too large.
    """
    with open(path, "rb") as stream:
        if (size := os.fstat(stream.fileno()).st_size) > limit:
            raise ValueError(f"{size:,} bytes are too many")
        return stream.read(limit).decode("utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises `OSError`, and `ValueError` if it is not JSON."""
    try:
        return json.loads(read_text(regular_file(path)))
    except RecursionError:
        raise ValueError("is nested too deep") from None


def map_array(path: str | Path, mode: Literal["r", "r+"] | None = "r") -> "np.ndarray":
    """Map a `.npy` file into memory; `mode` None: read it whole instead.

    Raises `OSError`, and `ValueError` if the file is not an array.
    """
    import numpy as np

    try:
        return np.load(regular_file(path), mmap_mode=mode)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged header raises nearly any exception
        raise ValueError(str(error) or type(error).__name__) from None


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all."""
    try:
        data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is not valid UTF-8
        data = (json.dumps(value, indent=2) + "\n").encode()
    with atomic_file(path) as stream:
        stream.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, completely or not at all.

    Characters that UTF-8 cannot encode become question marks.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8", "replace"))
