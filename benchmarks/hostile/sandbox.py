"""Run a case in a process of its own, with limits.

The process is a fork of one that has imported torch: an import for each case would take an hour.
"""

import faulthandler
import importlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from benchmarks.hostile import watching
from benchmarks.hostile.case import Case, Ended, Place
from benchmarks.hostile.world import thin_network
from tinynet.flags import run_command

_POLL = 0.005  # seconds
_MAKING = 60.0  # seconds that the maker of a case may take
# bytes of address space and of a file, to protect the machine
_MACHINE = 6 << 30


@dataclass(frozen=True)
class Limits:
    """The seconds and bytes that a command may use."""

    seconds: float = 10.0
    memory: int = 1 << 30


@dataclass(frozen=True)
class _Process:
    status: int | None
    seconds: float
    memory: int


def run(case: Case, room: Path, seed: int, limits: Limits) -> Ended:
    """Create the input of a case and run its command.

    `room`: the folder of all cases. Raises `RuntimeError` if the input cannot be created.
    """
    place = Place(room / "cases" / case.kind / case.name, room / "world")
    place.make()
    truth = _truth(case, place, seed)
    before, old = watching.listing(place), watching.files(place)
    process = _forked(lambda: _command(case, place), place, limits.seconds)
    events = watching.events(place, before)
    out, err = (
        (place.folder / name).read_bytes().decode(errors="backslashreplace")
        for name in ("stdout", "stderr")
    )
    return Ended(
        process.status,
        out,
        err,
        process.seconds,
        process.memory,
        events,
        tuple(sorted(watching.files(place) - old)),
        place,
        truth,
    )


def in_child(action: Callable[[], Any], place: Place, seconds: float = _MAKING) -> None:
    """Call `action` in a process of its own; raises `RuntimeError` if it fails."""

    def work() -> int:
        action()
        return 0

    if _forked(work, place, seconds).status != 0:
        raise RuntimeError(
            (place.folder / "stderr").read_text(errors="replace")[-2000:] or "took too long"
        )


def _truth(case: Case, place: Place, seed: int) -> Any:
    """Call the maker in a process of its own, which keeps this process small; return its value."""
    target = place.folder / "truth.json"

    def make() -> None:
        with thin_network():
            truth = case.make(place, Random(f"{seed}/{case.title}"))
        target.write_text(json.dumps(truth))

    in_child(make, place)
    return json.loads(target.read_text())


def _forked(action: Callable[[], int], place: Place, seconds: float) -> _Process:
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _live(action, place)
    state, usage, delay, stopped = 0, None, 0.0, False
    while usage is None:
        delay = _delay(child, delay)
        ended, state, child_usage = os.wait4(child, os.WNOHANG)
        if ended:
            usage = child_usage
        elif not stopped and time.monotonic() - started - delay > seconds:
            os.kill(child, signal.SIGKILL)
            stopped = True
        else:
            time.sleep(_POLL)
    seconds_used = time.monotonic() - started - delay
    _end_group(child)
    return _Process(
        None if stopped else os.waitstatus_to_exitcode(state), seconds_used, usage.ru_maxrss * 1024
    )


def _delay(process: int, before: float) -> float:
    """Seconds that a process waited for a processor, which are not counted against it."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # it has ended, or the system does not count this
        return before


def _end_group(leader: int) -> None:
    """Kill the processes that the child left running; it led a session of its own."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _live(action: Callable[[], int], place: Place) -> NoReturn:
    """Run the child. It never returns, and runs no exit functions: these belong to the parent."""
    status = 1
    try:
        os.setsid()
        faulthandler.disable()  # the parent's handler would write to the parent's stderr
        for number, name in ((1, "stdout"), (2, "stderr")):
            target = os.open(place.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace"
        )
        _limit()
        status = action()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except ValueError:  # characters that cannot be encoded
                status = 1
        os._exit(status)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MACHINE,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MACHINE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _command(case: Case, place: Place) -> int:
    """Run the command like a shell; return its exit status."""
    os.chdir(place.folder)
    for name in ("TINYNET_DATA", "XDG_CACHE_HOME", "TORCH_HOME", "XDG_CONFIG_HOME"):
        os.environ.pop(name, None)
    os.environ |= {
        "HOME": str(place.home),
        "TMPDIR": str(place.tmp),
        "TINYNET_PROGRESS": "0",
        "PATH": f"{place.inputs / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    tempfile.tempdir = None  # otherwise the parent's value is kept
    sys.argv = [case.command, *case.flags]
    module = importlib.import_module(case.command)
    watching.watch(place)
    with thin_network():
        try:
            run_command(lambda: module.main(list(case.flags)))
        except SystemExit as ended:
            if isinstance(ended.code, int) or ended.code is None:
                return ended.code or 0
            print(ended.code, file=sys.stderr)
            return 1
    return 0
