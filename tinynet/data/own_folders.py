"""The folders that tinynet writes, which may lie among a user's images: runs and caches."""

import re
from collections.abc import Collection, Iterable

from tinynet.files import UNFINISHED
from tinynet.runs import ROOT, STAGES

CACHE = "cache"  # the default name of the cache
PACKED, FEATURES = ".packed", "features-"  # the end of a packed copy's name, the start of features'
NAMES = frozenset({str(ROOT), CACHE})
_RUN = re.compile(rf"(.*/)?({'|'.join(STAGES)})/recipe\.json")
_CACHED = re.compile(
    rf"(.*/)?([^/]+({re.escape(PACKED)}|{re.escape(UNFINISHED)})|{FEATURES}[0-9a-f]+)/manifest\.json"
)
_REPORT, _COMPARISON, _HTML = "report", "comparison.html", ".html"
MARKS = ("recipe.json", "manifest.json")  # files that show that tinynet wrote their folder


def own_folders(names: Iterable[str]) -> set[str]:
    """Return the folders that tinynet wrote, by the files that only tinynet writes.

    These are the stages of a run, the folders of its pages, packed copies and features, and the
    pages themselves. `names`: of all files, with `/`.
    """
    folders: set[str] = set()
    pages: set[str] = set()  # without their extension, which is the folder of their images
    texts = {name for name in names if name.endswith((".json", ".html"))}
    for name in texts:
        parent = name.rpartition("/")[0]
        if run := _RUN.fullmatch(name):
            folders.add(parent)
            pages.add(f"{run[1] or ''}{_REPORT}")
        elif _CACHED.fullmatch(name):
            folders.add(parent)
        elif name == f"{parent}/{_COMPARISON}":
            pages |= {page[: -len(_HTML)] for page in texts if page.rpartition("/")[0] == parent}
    written = {page for page in pages if f"{page}{_HTML}" in texts}
    return folders | written | {f"{page}{_HTML}" for page in written}


def is_below(name: str, folders: Collection[str]) -> bool:
    """Return whether a file or folder is one of `folders`, or is in one of them."""
    pieces = name.split("/")
    return any("/".join(pieces[:depth]) in folders for depth in range(1, len(pieces) + 1))
