"""Watch what a command writes outside its folders, what it executes, and which files it leaves."""

import json
import os
import sys
from typing import Any

from benchmarks.hostile.case import Ended, Place

# The number of arguments that are paths.
_WRITES = {
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    **dict.fromkeys(
        (
            "os.mkdir",
            "os.remove",
            "os.rmdir",
            "os.truncate",
            "os.chmod",
            "os.chown",
            "os.utime",
            "shutil.rmtree",
        ),
        1,
    ),
}
# relative to an open folder if their last argument names one
_RELATIVE = ("os.mkdir", "os.remove", "os.rmdir")
_EXECUTES = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "webbrowser.open",
)
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request")
_HARMLESS = ("/dev/null", "/dev/shm/", "/proc/self/")
_LEFTOVERS = (".partial", ".partial.npy", ".lock")


class _Watch:
    """An audit hook: it also sees files that are deleted again, and blocks the network."""

    def __init__(self, place: Place):
        self._target = os.open(place.folder / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._own = tuple(os.path.realpath(path) for path in (place.out, place.tmp))
        self._busy = False

    def __call__(self, event: str, arguments: tuple) -> None:
        if self._busy:
            return
        self._busy = True  # the actions of this hook are no events
        try:
            self._look_at(event, arguments)
        finally:
            self._busy = False

    def _look_at(self, event: str, arguments: tuple) -> None:
        if event == "open" and _for_writing(arguments[1], arguments[2]):
            self._written(arguments[0], through_link=True)
        elif event in _WRITES and not (event in _RELATIVE and arguments[-1] != -1):
            for path in arguments[: _WRITES[event]]:
                self._written(path, through_link=False)  # these act on the link itself
        elif event in _EXECUTES:
            self._note("executed", f"{event} {str(arguments[0])[:100]}")
        elif event in _NETWORK:
            self._note("executed", f"{event} {str(arguments)[:100]}")
            raise OSError("no network here")

    def _written(self, path: Any, through_link: bool) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # an open descriptor, or a file without a name
        folder, name = os.path.split(os.fsdecode(path).rstrip(os.sep))
        real = os.path.join(os.path.realpath(folder or "."), name)
        real = os.path.realpath(real) if through_link else real
        inside = real in self._own or real.startswith(tuple(own + os.sep for own in self._own))
        if not inside and not real.startswith(_HARMLESS):
            self._note("wrote", real)

    def _note(self, kind: str, what: str) -> None:
        os.write(self._target, json.dumps([kind, what]).encode() + b"\n")


def watch(place: Place) -> None:
    """From now on record what this process and its forks write elsewhere and execute."""
    sys.addaudithook(_Watch(place))


def _for_writing(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def events(place: Place, before: dict[str, tuple]) -> tuple[tuple[str, str], ...]:
    """The recorded events, and the differences from the listing `before`: (`wrote` or `executed`,
    what).
    """
    file = place.folder / "events"
    lines = file.read_text().splitlines() if file.exists() else []
    after = listing(place)
    changes = [
        path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)
    ]
    noted = [tuple(json.loads(line)) for line in dict.fromkeys(lines)]
    executed = [("executed", "the code in the input")] if place.trap.exists() else []
    return (*noted, *(("wrote", path) for path in changes), *executed)


def listing(place: Place) -> dict[str, tuple]:
    """A listing of everything that no command may change: the other folders of the case, the shared
    inputs, and a canary.
    """
    entries: dict[str, tuple] = {}
    for top in (place.inputs, place.home, place.world, place.world.parent / "canary"):
        # With descriptors, because some paths are longer than the system allows.
        for folder, folders, files, descriptor in os.fwalk(top):
            for name in (*folders, *files):
                stat = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                entries[os.path.join(folder, name)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return entries


def files(place: Place) -> set[str]:
    """The files in the folders for results and for temporary files, relative to the folder of the
    case.
    """
    return {
        os.path.relpath(os.path.join(folder, name), place.folder)
        for top in (place.out, place.tmp)
        for folder, _, names in os.walk(top)
        for name in names
    }


def leftovers(ended: Ended) -> list[str]:
    """Files that should not remain: half-written ones, locks and temporary ones."""
    return [
        name
        for name in ended.fresh
        if name.startswith("tmp/") or name.endswith(_LEFTOVERS) or "/.probabilities-" in name
    ]
