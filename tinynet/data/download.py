"""Download the official archive, and check its size and MD5 before the file gets its name."""

import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tinynet.console import advice, log, progress
from tinynet.data.containers import TARS
from tinynet.data.places import DEFAULT_PATH, expand_user, locate
from tinynet.errors import InputError
from tinynet.files import atomic_file

# Nine independent dataset classes use this MD5; the site itself publishes none.
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SIZE = 248_100_043
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 18  # bytes to read at once
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def download(
    target: str | Path,
    url: str = URL,
    size: int = SIZE,
    md5: str = MD5,
    tries: int = 4,
    pause: float = 2.0,
) -> Path:
    """Download `url` to the file `target`, which is created only if size and MD5 are right.

    `size`: in bytes. `md5`: in hex. After a network error the download continues where it stopped,
    in up to `tries` tries in total. The first pause is `pause` seconds; each further pause is twice
    as long.

    Raises `InputError` if the site does not answer or sends another file; no file remains then.
    """
    target = expand_user(target)
    way_out = f"fetch {url} elsewhere and put it at {target}"
    way_out += advice(", or name the file with --data")
    with atomic_file(target) as stream:
        for wait in [pause * 2**i for i in range(tries - 1)] + [None]:
            try:
                _receive(url, stream, size)
                break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                    raise  # another try would fail too
                status = error.code if isinstance(error, urllib.error.HTTPError) else None
                reason = (
                    f"status {status}"
                    if status
                    else " ".join(str(getattr(error, "reason", error)).split())
                )
                if wait is None or (status and status < 500):
                    raise InputError(f"{url}: cannot be fetched ({reason}); {way_out}") from None
            log(f"{url}: {reason}; trying again in {wait:g} s")
            time.sleep(wait)
        stream.flush()
        _check(Path(stream.name), url, size, md5, way_out)
    return target


def _receive(url: str, stream: BinaryIO, size: int) -> None:
    """Append the rest of the body to `stream`, or write all of it if the site cannot resume."""
    offset = stream.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
        if offset and reply.status != http.client.PARTIAL_CONTENT:
            offset = stream.seek(0)
            stream.truncate()
        length = reply.headers["Content-Length"] or ""
        body_size = int(length) if length.isdecimal() else 0
        with progress(total=size, label=f"fetching {url}", unit="B", done=offset) as bar:
            while block := reply.read(_BLOCK):
                stream.write(block)
                bar.update(len(block))
                if stream.tell() > size:  # an endless reply would fill the disk
                    return
    # `read` in blocks raises no error if the connection closes too early.
    if stream.tell() < offset + body_size:
        raise ConnectionError(f"cut short at {stream.tell():,} of {offset + body_size:,} bytes")


def _check(path: Path, url: str, size: int, md5: str, way_out: str) -> None:
    if path.stat().st_size != size:
        raise InputError(
            f"{url}: sent {path.stat().st_size:,} bytes, but the official archive has {size:,}; "
            f"{way_out}"
        )
    if (digest := _md5(path)) != md5:
        raise InputError(
            f"{url}: sent a file with MD5 {digest}, but the official archive has {md5}; {way_out}"
        )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def get(target: Path, force: bool = False) -> Path:
    """Return the archive at `target`; download the official one if there is none.

    `target`: the name of a zip, or a folder for it. A zip that is cut short is replaced. Any other
    archive is replaced only with `force`.
    """
    path: Path | None
    try:
        path = locate(target, 1, any_images=False)
    except InputError:
        path = target if target.is_file() else None
    if path and path.is_file() and path.suffix == ".zip" and not zipfile.is_zipfile(path):
        path = None
    if path and path.is_file() and path.stat().st_size == SIZE and _md5(path) == MD5:
        log(f"{path}: exists already; size and MD5 are those of the official archive")
        return path
    if path and not force:
        log(
            f"{path}: exists already, but is not the official zip; check its content with "
            "`python -m tinynet.data verify`, or replace it with "
            "`python -m tinynet.data get --force`"
        )
        return path
    if target.name.lower().endswith(TARS):
        raise InputError(f"{target}: the official archive is a zip; name a zip, or a folder for it")
    return download(target if target.suffix.lower() == ".zip" else target / DEFAULT_PATH.name)


def find_data(data: str | Path | None, labels: str | None = None) -> Path:
    """Find the data of `--data`: a zip, a tar or a folder. `labels`: the value of `--labels`.

    None stands for the environment variable TINYNET_DATA. If that is not set either, it stands for
    the default path, and the official archive is downloaded if the path does not exist.

    Raises `InputError` if there is no archive at `data`, or the download fails.
    """
    if data is None:
        data = os.environ.get("TINYNET_DATA") or None
    if data is not None:
        return locate(data, labels=labels)
    for path in (DEFAULT_PATH, DEFAULT_PATH.with_suffix("")):
        with suppress(InputError):
            return locate(path)
    log(f"{DEFAULT_PATH}: does not exist; downloading the official archive")
    return download(DEFAULT_PATH)
