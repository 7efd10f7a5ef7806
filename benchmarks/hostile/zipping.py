"""Write zips with right or wrong headers."""

import bz2
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

FILE, LINK = 0o100644 << 16, 0o120777 << 16
STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14


@dataclass(frozen=True)
class Entry:
    """A member of a zip.

    `data`: the bytes as they are stored. `size`, `crc`: of the content. `packed`: the stored size
    that the headers declare, None: the true one. `local_name`, `local_extra`: in the local header,
    None: as in the central directory. `at`: the offset that the central directory declares, None:
    the true one. `described`: size and CRC follow the data.
    """

    name: bytes
    data: bytes
    size: int
    crc: int
    method: int = STORED
    flags: int = 0
    attributes: int = FILE
    extra: bytes = b""
    packed: int | None = None
    local_name: bytes | None = None
    at: int | None = None
    version: int = 20
    described: bool = False
    signature: bytes = b"PK\3\4"


def entry(name: str | bytes, content: bytes, method: int = STORED) -> Entry:
    """A correct member."""
    encoded = name.encode() if isinstance(name, str) else name
    flags = 0 if encoded.isascii() else 0x800
    return Entry(
        encoded, _compressed(content, method), len(content), zlib.crc32(content), method, flags
    )


def _compressed(content: bytes, method: int) -> bytes:
    if method == DEFLATED:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        return packer.compress(content) + packer.flush()
    if method == BZIP2:
        return bz2.compress(content)
    if method == LZMA:
        # A zip wants version, size and properties of the stream where the alone format has
        # properties and length.
        alone = lzma.compress(content, lzma.FORMAT_ALONE)
        return b"\x09\x04\x05\x00" + alone[:5] + alone[13:]
    return content


def bomb(name: str, size: int, method: int = DEFLATED) -> Entry:
    """A member of `size` zero bytes, in whole megabytes, packed to a thousandth or less."""
    block = bytes(1 << 20)
    count, crc = size >> 20, 0
    for _ in range(count):
        crc = zlib.crc32(block, crc)
    # blocks after a full flush are independent, so one block can be repeated
    if method == DEFLATED:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        first = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
        again = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
        data = first + again * (count - 1) + packer.flush()
    else:  # bzip2 streams may be concatenated
        data = bz2.compress(block) * count
    return Entry(name.encode(), data, size, crc, method)


def zip_bytes(
    entries: Iterable[Entry],
    prefix: bytes = b"",
    comment: bytes = b"",
    end: dict[int, bytes] | None = None,
    before_end: bytes = b"",
) -> bytes:
    """A zip of these members. `end`: bytes that replace parts of the end record, by position.
    `before_end`: bytes before the end record.
    """
    body, central, count = [prefix], [], 0
    place = len(prefix)
    for one in entries:
        count += 1
        packed = len(one.data) if one.packed is None else one.packed
        sizes = struct.pack("<3L", one.crc, *(min(n, 0xFFFFFFFF) for n in (packed, one.size)))
        name = one.name if one.local_name is None else one.local_name
        fields = struct.pack("<5H", one.version, one.flags | 8 * one.described, one.method, 0, 33)
        local = (
            one.signature
            + fields
            + (bytes(12) if one.described else sizes)
            + struct.pack("<2H", len(name), len(one.extra))
            + name
            + one.extra
        )
        tail = b"PK\7\10" + sizes if one.described else b""
        central.append(
            b"PK\1\2"
            + struct.pack("<H", 0x031E)
            + fields
            + sizes
            + struct.pack(
                "<5H2L",
                len(one.name),
                len(one.extra),
                0,
                0,
                0,
                one.attributes,
                place if one.at is None else one.at,
            )
            + one.name
            + one.extra
        )
        body += [local, one.data, tail]
        place += len(local) + len(one.data) + len(tail)
    directory = b"".join(central)
    record = bytearray(
        b"PK\5\6"
        + struct.pack(
            "<4H2LH",
            0,
            0,
            min(count, 0xFFFF),
            min(count, 0xFFFF),
            len(directory),
            place,
            len(comment),
        )
    )
    for start, content in (end or {}).items():
        record[start : start + len(content)] = content
    return b"".join([*body, directory, before_end, bytes(record), comment])


def zip64(one: Entry) -> Entry:
    """The same member with its sizes in a zip64 record."""
    packed = len(one.data) if one.packed is None else one.packed
    extra = struct.pack("<2H2Q", 1, 16, one.size, packed)
    return replace(one, size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=extra, version=45)


def members(path: Path) -> dict[str, bytes]:
    """The names and contents of all members of a good zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def joined(first: Entry, second: Entry, head: bytes) -> Entry:
    """A deflated member whose content is `head`, followed by that of `second`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) + second.data
    return replace(first, data=data, size=len(head) + second.size, crc=0)
