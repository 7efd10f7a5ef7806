"""Read the labels of ImageNet's val images from its devkit.

The devkit numbers the classes in its own order, not in that of published networks.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from tinynet.console import option
from tinynet.errors import InputError
from tinynet.files import read_text, regular_file

# Files in the devkit's folder data/: class numbers of the val images, and the table of classes.
TRUTH, _TABLE = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_MAX_SIZE = 2**26  # bytes of the table, also uncompressed
_COMPRESSED = 15  # data type of a compressed element, miCOMPRESSED


def devkit_labels(folder: Path, classes: Sequence[str]) -> list[int]:
    """Read the class indices of ImageNet's val images, in the order of their file names.

    `classes`: wnids; the labels are indices in this list. Raises `InputError` if `folder` is not
    the devkit, or a class of the devkit is not in `classes`.
    """
    from scipy.io import loadmat

    table, truth = folder / "data" / _TABLE, folder / "data" / TRUTH
    try:
        synsets = loadmat(io.BytesIO(_read_table(regular_file(table))), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        if len(set(wnids.values())) < len(wnids):
            raise ValueError(f"{_TABLE} lists a class twice")
        numbers = [int(line) for line in read_text(regular_file(truth)).split()]
        return [classes.index(wnids[number]) for number in numbers]
    except Exception as error:  # a broken file raises almost any exception
        raise InputError(
            f"{option('labels')} {folder}: is not ImageNet's devkit, or has other classes "
            f"({type(error).__name__}: {error}); it needs data/{TRUTH} and data/{_TABLE}"
        ) from None


def _read_table(path: Path) -> bytes:
    """Read a MATLAB file, format 5; raises `ValueError` if it would inflate to `_MAX_SIZE`."""
    if path.stat().st_size > _MAX_SIZE:
        raise ValueError(f"{path.name} is larger than {_MAX_SIZE:,} bytes")
    data = path.read_bytes()
    order, offset = "<" if data[126:128] == b"IM" else ">", 128  # size of the header
    while offset + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}2L", data, offset)
        body = data[offset + 8 : offset + 8 + size]
        if (
            kind == _COMPRESSED
            and len(zlib.decompressobj().decompress(body, _MAX_SIZE)) == _MAX_SIZE
        ):
            raise ValueError(f"{path.name} inflates to {_MAX_SIZE:,} bytes or more")
        offset += 8 + size
    return data
