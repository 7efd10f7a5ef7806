"""Open any data as a source of labelled images."""

import re
from pathlib import Path

from tinynet.data.class_folders import ClassFolders
from tinynet.data.containers import list_files
from tinynet.data.parquet import ParquetContainer
from tinynet.data.source import Source
from tinynet.data.tiny_imagenet import Archive

# Tiny ImageNet has one of these names, even where parts of it are missing.
_TINY_IMAGENET = re.compile(
    r"(^|/)(wnids\.txt|val_annotations\.txt)$|(^|/)train/n\d{8}/images/[^/]+$"
)


def open_source(path: Path, labels: str | None = None) -> Source:
    """Open a zip, a tar, a folder or parquet files; `labels`: the file of labels, if there is one.

    Raises `InputError` if it is not a data set, or contradicts itself.
    """
    listing = list_files(path)
    if labels is None and (
        isinstance(listing.container, ParquetContainer)
        or any(_TINY_IMAGENET.search(name) for name, _, _ in listing.table)
    ):
        return Archive(listing)
    return ClassFolders(listing, labels)
