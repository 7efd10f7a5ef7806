"""The folders that tinynet writes, which may lie among a user's images: runs and caches."""

import re
from collections.abc import Collection, Iterable

from tinynet.files import UNFINISHED
from tinynet.runs import ROOT, STAGES

CACHE = "cache"  # the default name of the cache
PACKED, FEATURES = ".packed", "features-"  # the end of a packed copy's name, the start of features'
NAMES = frozenset({str(ROOT), CACHE})
_RUN = re.compile(rf"(.*/)?({'|'.join(STAGES)})/recipe\.json")
_COMPARISON = re.compile(r"(.*/)comparison\.html")
_CACHED = re.compile(
    rf"((?:.*/)?(?:[^/]+(?:{re.escape(PACKED)}|{re.escape(UNFINISHED)})|{FEATURES}[0-9a-f]+))"
    r"/manifest\.json"
)
_REPORT = "report"


def own_folders(names: Iterable[str]) -> set[str]:
    """Return the folders that tinynet wrote, by the files that only tinynet writes.

    These are the stages and the report of a run, comparisons of runs, packed copies and features.
    `names`: of all files, with `/`.
    """
    folders: set[str] = set()
    for name in names:
        if not name.endswith((".json", ".html")):
            continue
        if run := _RUN.fullmatch(name):
            folders |= {f"{run[1] or ''}{folder}" for folder in (run[2], _REPORT)}
        elif cached := _CACHED.fullmatch(name) or _COMPARISON.fullmatch(name):
            folders.add(cached[1].rstrip("/"))
    return folders


def is_below(name: str, folders: Collection[str]) -> bool:
    """Return whether a file or folder is one of `folders`, or is in one of them."""
    pieces = name.split("/")
    return any("/".join(pieces[:depth]) in folders for depth in range(1, len(pieces) + 1))
