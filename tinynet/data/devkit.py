"""ImageNet's devkit: class indices of its val images, whose numbers are not those of any
network.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from tinynet.errors import InputError
from tinynet.files import no_pipe, read_text

TRUTH, _TABLE = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"  # in its folder data/
_LARGEST, _COMPRESSED = 2**26, 15  # bytes; the mark of a compressed element


def devkit_labels(folder: Path, classes: Sequence[str]) -> list[int]:
    """Indices in `classes` (wnids) of ImageNet's val images, in the order of their names.

    Raises `InputError` where the folder is not the devkit, or its classes are not among `classes`.
    """
    from scipy.io import loadmat

    table, truth = folder / "data" / _TABLE, folder / "data" / TRUTH
    try:
        synsets = loadmat(io.BytesIO(_checked(no_pipe(table))), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        if len(set(wnids.values())) < len(wnids):
            raise ValueError("one class has two numbers")
        numbers = [int(line) for line in read_text(no_pipe(truth)).split()]
        return [classes.index(wnids[number]) for number in numbers]
    except Exception as error:  # a broken or foreign file raises nearly anything
        raise InputError(
            f"--labels {folder}: is not ImageNet's devkit, or not for these classes "
            f"({type(error).__name__}: {error}); it needs data/{TRUTH} and data/{_TABLE}"
        ) from None


def _checked(table: Path) -> bytes:
    """The bytes of a MATLAB file, format 5; raises `ValueError` where they inflate to more than a
    table has.
    """
    if table.stat().st_size > _LARGEST:
        raise ValueError("is too large")
    data = table.read_bytes()
    order, at = "<" if data[126:128] == b"IM" else ">", 128  # behind the header
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}2L", data, at)
        body = data[at + 8 : at + 8 + size]
        if kind == _COMPRESSED and len(zlib.decompressobj().decompress(body, _LARGEST)) == _LARGEST:
            raise ValueError("inflates to too much")
        at += 8 + size
    return data
