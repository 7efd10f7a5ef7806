"""The official archive, fetched whole and checked by size and digest before it gets its name."""

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

from tinynet.console import log, progress
from tinynet.data.places import DEFAULT_PATH, home, locate
from tinynet.errors import InputError
from tinynet.files import atomic_file

# Nine independent dataset classes carry this digest; the site itself publishes none.
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SIZE = 248_100_043
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 18
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def download(
    target: str | Path,
    url: str = URL,
    size: int = SIZE,
    md5: str = MD5,
    tries: int = 4,
    pause: float = 2.0,
) -> Path:
    """Fetch `url` into the file `target`, which appears only when its size and MD5 are right.

    `size` in bytes, `md5` in hex. Network errors are tried again up to `tries` times in all, after
    `pause` seconds and then twice as long each time; what has arrived is kept between tries.

    Raises `InputError` where the site does not answer or sends another file; nothing is left behind
    then.
    """
    target = home(target)
    by_hand = f"fetch {url} elsewhere and put it at {target}, or name the file with --data"
    with atomic_file(target) as stream:
        for wait in [pause * 2**i for i in range(tries - 1)] + [None]:
            try:
                _receive(url, stream, size)
                break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                    raise  # trying again makes no room
                status = error.code if isinstance(error, urllib.error.HTTPError) else None
                reason = (
                    f"status {status}"
                    if status
                    else " ".join(str(getattr(error, "reason", error)).split())
                )
                if wait is None or (status and status < 500):
                    raise InputError(f"{url}: cannot be fetched ({reason}); {by_hand}") from None
            log(f"{url}: {reason}; trying again in {wait:g} s")
            time.sleep(wait)
        stream.flush()
        _check(Path(stream.name), url, size, md5, by_hand)
    return target


def _receive(url: str, stream: BinaryIO, size: int) -> None:
    """Write the body behind what `stream` holds if the site can go on from there, else from the
    start.
    """
    have = stream.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
        if have and reply.status != http.client.PARTIAL_CONTENT:
            have = stream.seek(0)
            stream.truncate()
        promised = (
            int(length) if (length := reply.headers["Content-Length"] or "").isdecimal() else 0
        )
        with progress(total=size, label=f"fetching {url}", unit="B", done=have) as bar:
            while block := reply.read(_BLOCK):
                stream.write(block)
                bar.update(len(block))
                if stream.tell() > size:  # a site that never ends would fill the disk
                    return
    # Reading in blocks ends without an error where the connection was closed too early.
    if stream.tell() < have + promised:
        raise ConnectionError(f"cut short at {stream.tell():,} of {have + promised:,} bytes")


def _check(path: Path, url: str, size: int, md5: str, by_hand: str) -> None:
    if path.stat().st_size != size:
        raise InputError(
            f"{url}: sent {path.stat().st_size:,} bytes and the official archive has {size:,}; "
            f"{by_hand}"
        )
    if (found := _md5(path)) != md5:
        raise InputError(
            f"{url}: sent a file with MD5 {found} and the official archive has {md5}; {by_hand}"
        )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def get(target: Path, force: bool = False) -> Path:
    """The official archive at `target` (a zip's name, or a folder for it), fetched if no archive is
    there.

    A zip that is cut short is replaced; anything else than the official archive is kept unless
    `force`.
    """
    try:
        there = locate(target, 1)
    except InputError:
        there = None
    if there and there.is_file() and there.suffix == ".zip" and not zipfile.is_zipfile(there):
        there = None
    if there and there.is_file() and there.stat().st_size == SIZE and _md5(there) == MD5:
        log(f"{there}: already here, size and MD5 are the official ones")
        return there
    if there and not force:
        log(
            f"{there}: already here, but not byte by byte the official zip; `python -m "
            "tinynet.data verify` looks at its content, and `get --force` fetches the official one"
        )
        return there
    return download(target if target.suffix == ".zip" else target / DEFAULT_PATH.name)


def find_data(data: str | Path | None) -> Path:
    """The zip or extracted folder that `--data` stands for.

    None is what the environment variable TINYNET_DATA names, or else the default place, filled if
    it is empty.

    Raises `InputError` when there is no such file, or when the official archive cannot be fetched.
    """
    if data := data or os.environ.get("TINYNET_DATA"):
        return locate(data)
    for place in (DEFAULT_PATH, DEFAULT_PATH.with_suffix("")):
        with suppress(InputError):
            return locate(place)
    log(f"{DEFAULT_PATH}: not here yet")
    return download(DEFAULT_PATH)
