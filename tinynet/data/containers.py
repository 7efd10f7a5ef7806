"""Read the files of a zip, a tar or a folder in place."""

import errno
import hashlib
import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from tinynet.console import advice, log
from tinynet.data.parquet import ParquetContainer, parquet_files
from tinynet.data.walk import NO_FILES, SkippedFiles, skip_reason, walk
from tinynet.errors import InputError
from tinynet.records import Json

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_TAR_BLOCK = 2**20  # bytes to decompress at once
_ZIP_BLOCK = 2**14  # bytes to read at once; most images are smaller
_MAX_RATIO = 20  # decompressed to compressed size; images hardly compress
# In bytes. No image or text of the data set is larger, so a larger size means a zip bomb.
MAX_FILE_SIZE = 2**28
_ENCRYPTED = 1  # the flag of a zip's entry

Row = tuple[str, int, int]


class Container(Protocol):
    """A container of files.

    `picklable`: whether the source can be sent to worker processes that do not share the open files
    of this process. `skipped`: files that are not data, counted by `table`.
    """

    path: Path
    picklable: bool
    skipped: SkippedFiles

    def table(self) -> list[Row]:
        """List the files: name with `/`, size in bytes, and a number that changes with content."""

    def folders(self) -> set[str]:
        """The folders, also empty ones, without those that are skipped."""

    def seal(self) -> str:
        """Return a digest of the content if the numbers of `table` may miss a change; else ''."""

    def read(self, name: str) -> bytes:
        """Read one file; raises `InputError` if it is damaged."""


class Listing(NamedTuple):
    """A container and the list of its files."""

    container: Container
    table: list[Row]


def list_files(path: Path) -> Listing:
    """Open a zip, a tar or a folder, and list its files; raises as `open_container`."""
    container = open_container(path)
    return Listing(container, container.table())


def open_container(path: Path) -> Container:
    """Open a zip, a tar or a folder; raises `InputError` if `path` is something else."""
    if path.is_dir():
        return (
            FolderContainer(path)
            if (path / "wnids.txt").is_file() or not parquet_files(path)
            else ParquetContainer(path)
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); name another" + advice(" with --data")
        ) from None
    # `zipfile` also finds a zip at the end of a tar, so the first bytes decide.
    return TarContainer(path) if start != b"PK" and _is_tar(path) else ZipContainer(path)


def _is_tar(path: Path) -> bool:
    try:
        return path.name.endswith(TARS) or tarfile.is_tarfile(path)
    except Exception:  # a broken file raises almost any exception
        return False


def _check_size(name: str, size: int, path: Path) -> None:
    if size > MAX_FILE_SIZE:
        raise InputError(
            f"{path}: {name} is {size:,} bytes uncompressed; at most {MAX_FILE_SIZE:,} are "
            "allowed, so fetch the archive again"
        )


class ZipContainer:
    """Files in a zip; worker processes open the zip again.

    Some programs on Windows write names with `\\`; these names get `/`.
    """

    picklable = True

    def __init__(self, path: Path):
        self.path, self.skipped = path, SkippedFiles()
        self._zip: zipfile.ZipFile | None = None
        self._pid = 0
        self._open()

    def _open(self) -> zipfile.ZipFile:
        # A forked child shares the file position of its parent, so each process opens the zip.
        if self._zip is None or self._pid != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except OSError as error:
                raise InputError(
                    f"{self.path}: cannot be read ({error.strerror}); name another"
                    + advice(" with --data")
                ) from None
            except Exception:  # a broken zip raises almost any exception
                if self.path.suffix.lower() != ".zip":
                    raise InputError(
                        f"{self.path}: is neither a zip nor a tar; if it is another kind of "
                        "archive, extract it and name the extracted folder" + advice(" with --data")
                    ) from None
                raise InputError(
                    f"{self.path}: not a zip, or cut short ({self.path.stat().st_size:,} bytes); "
                    "fetch it again with `python -m tinynet.data get`, or name another"
                    + advice(" with --data")
                ) from None
            self._pid = os.getpid()
            self.__dict__.pop("_members", None)
        return self._zip

    def __getstate__(self) -> Json:
        return {"path": self.path, "skipped": self.skipped, "_zip": None, "_pid": 0}

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._open().infolist():
            name = _plain(info.filename)
            if _is_folder(info):
                continue
            first = members.setdefault(name, info)
            if (first.CRC, first.file_size) != (info.CRC, info.file_size):
                raise InputError(
                    f"{self.path}: has two different files {name!r}; fetch the archive again"
                )
        return members

    def table(self) -> list[Row]:
        """List name, size in bytes and CRC-32 of every file."""
        self._open()
        self.skipped = SkippedFiles()
        return [
            (name, info.file_size, info.CRC)
            for name, info in self._members.items()
            if _is_data(name, self.skipped)
        ]

    def folders(self) -> set[str]:
        """The folders that have an entry or contain a file."""
        entries = (_plain(info.filename) for info in self._open().infolist() if _is_folder(info))
        return _without_skipped(_folders(entries, self._members))

    def seal(self) -> str:
        """Return '': the table has checksums."""
        return ""

    def read(self, name: str) -> bytes:
        """Read one file; raises `InputError` if it does not match its entry in the zip."""
        archive = self._open()
        try:
            info = self._members[name]
            if info.flag_bits & _ENCRYPTED:
                raise InputError(
                    f"{self.path}: {name} is encrypted; extract the zip and name the extracted "
                    "folder" + advice(" with --data")
                )
            _check_size(name, info.file_size, self.path)
            return _read_member(archive, info)
        except InputError:
            raise
        except NotImplementedError as error:
            raise InputError(
                f"{self.path}: cannot read {name} ({error}); extract the zip and name the "
                "extracted folder" + advice(" with --data")
            ) from None
        except Exception as error:  # a broken zip raises almost any exception
            raise InputError(
                f"{self.path}: cannot read {name} ({error}); fetch the archive again"
            ) from None


def _is_folder(info: zipfile.ZipInfo) -> bool:
    """Whether an entry is a folder; `ZipInfo.is_dir` does not know the `\\` of Windows."""
    return info.filename.endswith(("/", "\\"))


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read a file in blocks: a zip bomb then fails before it fills the memory."""
    with archive.open(info) as stream:
        return b"".join(iter(lambda: stream.read(_ZIP_BLOCK), b""))


def _is_data(name: str, skipped: SkippedFiles) -> bool:
    """Whether a file is data; counts the file in `skipped` otherwise."""
    if reason := skip_reason(name):
        skipped.add(reason, name)
    return reason is None


class TarContainer:
    """Files in a tar; a compressed tar is first decompressed into a temporary file.

    Forked processes share the temporary file. Other processes would have to decompress again, so
    the source is not picklable.
    """

    picklable = False

    def __init__(self, path: Path):
        self.path, self.skipped = path, SkippedFiles()
        self._seals: dict[tuple[int, int], str] = {}  # by size and time of the tar
        self._stream = self._decompressed()
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as archive:
                members = list(archive)
                end = archive.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path}: damaged tar ({error}); fetch the archive again, or name another"
                + advice(" with --data")
            ) from None
        if _read_at(self._stream, end, tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            # `tarfile` accepts a tar that ends after one of its files.
            raise InputError(
                f"{path}: cut short (its end mark is missing); fetch the archive again, or name "
                "another" + advice(" with --data")
            )
        self._folders = {_plain(member.name) for member in members if member.isdir()}
        files = [member for member in members if member.isfile() or _is_link(member)]
        self._members = {_plain(member.name): member for member in files}
        self._others = [_plain(member.name) for member in members if not _is_known(member)]
        self._note_versions(files)
        self._refuse_linked_folders()

    def _note_versions(self, files: Sequence[tarfile.TarInfo]) -> None:
        """Note files that the tar has in several versions, of which `tar` extracts the last."""
        older = [
            name
            for member in files
            if not skip_reason(name := _plain(member.name))
            and (last := self._members[name]) is not member
            and not self._same(member, last)
        ]
        if older:
            log(
                f"note: {self.path}: contains several versions of some files: {len(set(older)):,} "
                f"(first: {older[0]}); the last version of each file is used"
            )

    def _same(self, member: tarfile.TarInfo, other: tarfile.TarInfo) -> bool:
        """Whether two members have the same content."""
        if not (member.isreg() and other.isreg()) or member.issparse() or other.issparse():
            return (member.type, member.linkname) == (other.type, other.linkname)
        return member.size == other.size and all(
            _read_at(self._stream, member.offset_data + start, _TAR_BLOCK)[: member.size - start]
            == _read_at(self._stream, other.offset_data + start, _TAR_BLOCK)[: member.size - start]
            for start in range(0, member.size, _TAR_BLOCK)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TarContainer, (self.path,)

    def _refuse_linked_folders(self) -> None:
        """Raise `InputError` for a link to a folder, because its files would be missing."""
        folders = _folders(self._folders, self._members)
        for name, member in self._members.items():
            if member.issym() and _link_target(member) in folders:
                raise InputError(
                    f"{self.path}: {name} links to the folder {member.linkname}; extract the "
                    "archive and name its folder" + advice(" with --data")
                )

    def _decompressed(self) -> BinaryIO:
        try:
            with tarfile.open(self.path, "r:"):
                return self.path.open("rb")
        except tarfile.TarError:
            pass  # the tar is compressed
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror}); name another"
                + advice(" with --data")
            ) from None
        stream = tempfile.TemporaryFile(prefix="tinynet-")  # noqa: SIM115  deleted at exit
        limit = _MAX_RATIO * self.path.stat().st_size + MAX_FILE_SIZE
        try:
            with tarfile.open(self.path, "r:*") as archive:
                archive.fileobj.seek(0)
                while block := archive.fileobj.read(_TAR_BLOCK):
                    stream.write(block)
                    if stream.tell() > limit:
                        raise ValueError(f"decompresses to more than {limit:,} bytes")
            stream.seek(0)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InputError(
                    f"{tempfile.gettempdir()}: no space to decompress {self.path}; free some, or "
                    "name another folder with TMPDIR"
                ) from None
            raise self._damaged(error) from None  # gzip's errors have no number
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise self._damaged(error) from None
        return stream

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self.path}: cut short or damaged ({error}); fetch the archive again, or name "
            "another" + advice(" with --data")
        )

    def table(self) -> list[Row]:
        """List name, size in bytes and modification time in seconds of every file."""
        self.skipped = SkippedFiles()
        for name in self._others:
            self.skipped.add(NO_FILES, name)
        self.skipped.links += [
            f"{name} (to {member.linkname}, outside the tar)"
            for name, member in self._members.items()
            if member.issym() and _link_target(member) not in self._members
        ]
        return [
            (name, member.size, int(member.mtime))
            for name, member in self._members.items()
            if _is_data(name, self.skipped)
        ]

    def folders(self) -> set[str]:
        """The folders that have an entry or contain a file."""
        return _without_skipped(_folders(self._folders, self._members))

    def seal(self) -> str:
        """Return the SHA-256 of the tar: its table has no checksums, and times may be the same."""
        stamp = self.path.stat().st_size, self.path.stat().st_mtime_ns
        if stamp not in self._seals:
            with self.path.open("rb") as stream:
                digest = hashlib.sha256()
                while block := stream.read(_TAR_BLOCK):
                    digest.update(block)
            self._seals[stamp] = digest.hexdigest()
        return self._seals[stamp]

    def read(self, name: str) -> bytes:
        """Read one file; raises `InputError` if the tar is cut short."""
        member = self._target(self._members[name], name)
        if member.issparse():
            raise InputError(
                f"{self.path}: {name} is stored as a sparse file; extract the tar and name the "
                "extracted folder" + advice(" with --data")
            )
        _check_size(name, member.size, self.path)
        data = _read_at(self._stream, member.offset_data, member.size)
        if len(data) < member.size:
            raise InputError(f"{self.path}: truncated inside {name}; fetch the archive again")
        return data

    def _target(self, member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
        """Follow links inside the tar to a file."""
        for _ in range(8):
            if member.isreg():
                return member
            member = self._members.get(_link_target(member), member)
        raise InputError(
            f"{self.path}: {name} links to {member.linkname}, which is not in the tar; fetch the "
            "archive again"
        )


def _link_target(member: tarfile.TarInfo) -> str:
    """The name that a link inside a tar leads to."""
    folder = "" if member.islnk() else os.path.dirname(member.name)
    return _plain(os.path.normpath(os.path.join(folder, member.linkname)))


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.islnk() or member.issym()


def _is_known(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file, a folder or a link, and not a pipe or a device."""
    return member.isfile() or member.isdir() or _is_link(member)


def _folders(folders: Iterable[str], files: Iterable[str]) -> set[str]:
    """The `folders`, those of the `files`, and their parents."""
    complete: set[str] = set()
    for folder in (*folders, *(name.rpartition("/")[0] for name in files)):
        while folder and folder not in complete:
            complete.add(folder)
            folder = folder.rpartition("/")[0]
    return complete


def _without_skipped(folders: Iterable[str]) -> set[str]:
    return {folder for folder in folders if not skip_reason(folder)}


def _read_at(stream: BinaryIO, start: int, size: int) -> bytes:
    """Read at an offset, without moving the file position, which forked processes share."""
    if hasattr(os, "pread"):
        return os.pread(stream.fileno(), size, start)
    stream.seek(start)
    return stream.read(size)


def _plain(name: str) -> str:
    """A name with `/`, without `.` and empty pieces: `./rose//a.jpg` is `rose/a.jpg`."""
    return "/".join(piece for piece in name.replace("\\", "/").split("/") if piece not in ("", "."))


class FolderContainer:
    """Files in a folder and its subfolders."""

    picklable = True

    def __init__(self, path: Path):
        self.path, self.skipped = path, SkippedFiles()
        self._folders: list[str] = []

    def table(self) -> list[Row]:
        """List name, size in bytes and a number from the times of every file."""
        entries, self._folders, self.skipped = walk(self.path)
        return [(entry.name, entry.size, entry.mark) for entry in entries]

    def folders(self) -> set[str]:
        """The folders that `table` found."""
        return set(self._folders)

    def seal(self) -> str:
        """Return '': the numbers in the table change with every change of a file."""
        return ""

    def read(self, name: str) -> bytes:
        """Read one file; raises `InputError` if it cannot be read."""
        try:
            _check_size(name, (self.path / name).stat().st_size, self.path)
            return (self.path / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"{self.path / name}: cannot be read ({error.strerror}); check its permissions, or "
                "fetch the archive again"
            ) from None
