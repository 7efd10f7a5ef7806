"""The folders that tinynet writes, which may lie among a user's images: runs and caches."""

import re
from collections.abc import Collection, Iterable

from tinynet.runs import ROOT, STAGES

_CACHE = "cache"  # the default name of the cache
NAMES = frozenset({str(ROOT), _CACHE})
_RUN = re.compile(rf"(.*/)?({'|'.join(STAGES)})/recipe\.json")
_CACHED = re.compile(r"(.*/)?([^/]+\.(?:packed|unfinished)|features-[0-9a-f]+)/manifest\.json")
_REPORT = "report"


def own_folders(names: Iterable[str]) -> set[str]:
    """Return the folders of runs and of caches, by the files that only tinynet writes.

    `names`: of all files, with `/`. A run below a folder `runs` stands for the whole of it, because
    reports about several runs lie there.
    """
    folders: set[str] = set()
    for name in names:
        if not name.endswith(".json"):
            continue
        if run := _RUN.fullmatch(name):
            pieces = (run[1] or "").split("/")[:-1]
            if str(ROOT) in pieces:
                pieces = pieces[: pieces.index(str(ROOT)) + 1]
            folders |= {"/".join(pieces)} if pieces else {run[2], _REPORT}
        elif cached := _CACHED.fullmatch(name):
            folders.add((cached[1] or "") + cached[2])
    return folders


def without_own(names: Collection[str]) -> list[str]:
    """Return the `names` that are not in a folder of a run or a cache."""
    own = own_folders(names)
    return [name for name in names if not own or not is_below(name, own)]


def is_below(name: str, folders: Collection[str]) -> bool:
    """Return whether a file or folder is one of `folders`, or is in one of them."""
    pieces = name.split("/")
    return any("/".join(pieces[:depth]) in folders for depth in range(1, len(pieces) + 1))
