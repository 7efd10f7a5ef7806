"""Where an archive's bytes are: a zip or a tar, read in place, or a folder.

A source has a `table()` of its files (name with `/`, size in bytes, a mark that changes with the
content) and reads one by its name. `travels`: whether it can be sent to worker processes that do
not share this one's open files.
"""

import errno
import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tinynet.data.parquet import ParquetSource, parquet_files
from tinynet.data.walk import LeftOut, reason_to_leave_out, walk
from tinynet.errors import InputError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BLOCK = 2**20  # bytes that are decompressed at once
_PART = 2**14  # bytes that are read of a zip's file at once; most images are smaller
_MOST_LARGER = 20  # a tar of images is hardly larger than its compressed file
# bytes; no image or text of an archive is larger, and one that says so is a bomb
LARGEST_FILE = 2**28

Row = tuple[str, int, int]


class Source(Protocol):
    """What every source has; `left_out` is filled by `table`."""

    path: Path
    travels: bool
    left_out: LeftOut

    def table(self) -> list[Row]:
        """The files, in the source's order."""

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `InputError` where they are damaged."""


def open_source(path: Path) -> "Source":
    """The source at `path`, a file or a folder; raises `InputError` for a file of another kind."""
    if path.is_dir():
        return (
            FolderSource(path)
            if (path / "wnids.txt").is_file() or not parquet_files(path)
            else ParquetSource(path)
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); name another with --data"
        ) from None
    # A zip at the end of a tar would pass for the zip itself, so the start decides.
    return TarSource(path) if start != b"PK" and _is_tar(path) else ZipSource(path)


def _is_tar(path: Path) -> bool:
    try:
        return path.name.endswith(TARS) or tarfile.is_tarfile(path)
    except Exception:  # a broken file raises nearly anything
        return False


def _no_data(name: str, size: int, path: Path) -> None:
    if size > LARGEST_FILE:
        raise InputError(
            f"{path}: {name} is {size:,} bytes uncompressed; at most {LARGEST_FILE:,} are allowed, "
            "so fetch the archive again"
        )


class ZipSource:
    """Files inside a zip, read in place; safe to send to worker processes, which open it again.

    Names written with `\\`, as some programs on Windows do, are read with `/`.
    """

    travels = True

    def __init__(self, path: Path):
        self.path, self.left_out = path, LeftOut()
        self._zip: zipfile.ZipFile | None = None
        self._pid = 0
        self._open()

    def _open(self) -> zipfile.ZipFile:
        # A forked child shares the parent's file position, so each process opens its own handle.
        if self._zip is None or self._pid != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except OSError as error:
                raise InputError(
                    f"{self.path}: cannot be read ({error.strerror}); name another with --data"
                ) from None
            except Exception:  # a broken zip raises nearly anything
                raise InputError(
                    f"{self.path}: not a zip, or cut short ({self.path.stat().st_size:,} bytes); "
                    "fetch it again with `python -m tinynet.data get`, or name another with --data"
                ) from None
            self._pid = os.getpid()
            self.__dict__.pop("_members", None)
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "left_out": self.left_out, "_zip": None, "_pid": 0}

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._open().infolist():
            name = info.filename.replace("\\", "/")
            other = members.setdefault(name, info)
            if (other.CRC, other.file_size) != (info.CRC, info.file_size):
                raise InputError(
                    f"{self.path}: has two different files {name!r}; fetch the archive again"
                )
        return members

    def table(self) -> list[Row]:
        """Name, size in bytes and CRC-32 of every file."""
        self._open()
        self.left_out = LeftOut()
        return [
            (name, info.file_size, info.CRC)
            for name, info in self._members.items()
            if not name.endswith("/") and _taken(name, self.left_out)
        ]

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `InputError` where they are not what the zip says of
        them.
        """
        archive = self._open()
        try:
            info = self._members[name]
            _no_data(name, info.file_size, self.path)
            return _read_member(archive, info)
        except InputError:
            raise
        except Exception as error:  # a broken zip raises nearly anything
            raise InputError(
                f"{self.path}: cannot read {name} ({error}); fetch the archive again"
            ) from None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of one file of a zip, in parts: what inflates to more than it says must not fill
    memory first.
    """
    with archive.open(info) as stream:
        return b"".join(iter(lambda: stream.read(_PART), b""))


def _taken(name: str, left_out: LeftOut) -> bool:
    """Whether a file of an archive is data; what is not is counted."""
    if reason := reason_to_leave_out(name):
        left_out.add(reason, name)
    return reason is None


class TarSource:
    """Files inside a tar, read in place; a compressed one is decompressed into a temporary file
    first.

    A forked process shares that file; any other would decompress it again.
    """

    travels = False

    def __init__(self, path: Path):
        self.path, self.left_out = path, LeftOut()
        self._stream = self._decompressed()
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as archive:
                self._members = {
                    _plain(member.name): member
                    for member in archive
                    if member.isfile() or member.islnk() or member.issym()
                }
                end = archive.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path}: damaged tar ({error}); fetch the archive again, or name another with "
                "--data"
            ) from None
        if _read_at(self._stream, end, tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise InputError(
                f"{path}: cut short (its end mark is missing); fetch the archive again, or name "
                "another "
                # tarfile takes a tar that ends behind one of its files for whole
                "with --data"
            )
        self._refuse_linked_folders()

    def __reduce__(self) -> tuple[Any, ...]:
        return TarSource, (self.path,)

    def _refuse_linked_folders(self) -> None:
        """Raise `InputError` for a link to a folder: what lies there would be missing in
        silence.
        """
        folders = {name.rsplit("/", 1)[0] for name in self._members if "/" in name}
        folders |= {parent for folder in folders for parent in _above(folder)}
        for name, member in self._members.items():
            if member.issym() and _place(member) in folders:
                raise InputError(
                    f"{self.path}: {name} links to the folder {member.linkname}; extract the "
                    "archive and name its folder with --data"
                )

    def _decompressed(self) -> BinaryIO:
        try:
            with tarfile.open(self.path, "r:"):
                return self.path.open("rb")
        except tarfile.TarError:
            pass  # compressed
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror}); name another with --data"
            ) from None
        stream = tempfile.TemporaryFile(prefix="tinynet-")  # noqa: SIM115  without a name: it goes with the process
        most = _MOST_LARGER * self.path.stat().st_size + LARGEST_FILE
        try:
            with tarfile.open(self.path, "r:*") as archive:
                archive.fileobj.seek(0)
                while block := archive.fileobj.read(_BLOCK):
                    stream.write(block)
                    if stream.tell() > most:
                        raise ValueError(f"decompresses to more than {most:,} bytes")
            stream.seek(0)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InputError(
                    f"{tempfile.gettempdir()}: no space to decompress {self.path}; free some, or "
                    "name another folder with TMPDIR"
                ) from None
            raise self._cut_short(error) from None  # gzip's own errors have no number
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise self._cut_short(error) from None
        return stream

    def _cut_short(self, error: Exception) -> InputError:
        return InputError(
            f"{self.path}: cut short or damaged ({error}); fetch the archive again, or name "
            "another with --data"
        )

    def table(self) -> list[Row]:
        """Name, size in bytes and modification time in seconds of every file."""
        self.left_out = LeftOut()
        return [
            (name, member.size, int(member.mtime))
            for name, member in self._members.items()
            if _taken(name, self.left_out)
        ]

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `InputError` where the tar is cut short."""
        member = self._target(self._members[name], name)
        _no_data(name, member.size, self.path)
        data = _read_at(self._stream, member.offset_data, member.size)
        if len(data) < member.size:
            raise InputError(f"{self.path}: truncated inside {name}; fetch the archive again")
        return data

    def _target(self, member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
        """The file that a link inside the tar leads to."""
        for _ in range(8):
            if member.isreg():
                return member
            member = self._members.get(_place(member), member)
        raise InputError(
            f"{self.path}: {name} links to {member.linkname}, which is not in the tar; fetch the "
            "archive again"
        )


def _place(member: tarfile.TarInfo) -> str:
    """Where a link inside a tar leads."""
    folder = "" if member.islnk() else os.path.dirname(member.name)
    return _plain(os.path.normpath(os.path.join(folder, member.linkname)))


def _above(folder: str) -> Iterator[str]:
    """The folders above a folder."""
    while "/" in folder:
        folder = folder.rsplit("/", 1)[0]
        yield folder


def _read_at(stream: BinaryIO, start: int, size: int) -> bytes:
    """Bytes of an open file, without its position where that is possible: processes that share the
    file share it.
    """
    if hasattr(os, "pread"):
        return os.pread(stream.fileno(), size, start)
    stream.seek(start)
    return stream.read(size)


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


class FolderSource:
    """Files below a folder."""

    travels = True

    def __init__(self, path: Path):
        self.path, self.left_out = path, LeftOut()

    def table(self) -> list[Row]:
        """Name, size in bytes and modification time in nanoseconds of every file."""
        entries, self.left_out = walk(self.path)
        return [(entry.name, entry.size, entry.modified) for entry in entries]

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `InputError` where it cannot be read."""
        try:
            _no_data(name, (self.path / name).stat().st_size, self.path)
            return (self.path / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"{self.path / name}: cannot be read ({error.strerror}); check its permissions, or "
                "fetch the archive again"
            ) from None
