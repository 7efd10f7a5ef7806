"""Start command lines in a shell, send them signals, wait for them, and find orphans.

Needs Linux: `/proc` lists the processes of a session.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.killing.launch import send

ROOT = Path(__file__).parents[2]
_LOOK_EVERY = 0.002  # seconds
# The shell's `python`: a fork of the server, which starts at once, or a process of its own.
_PYTHON = """#!/bin/sh
if [ -n "$FAULTS_SERVER" ]; then exec '{python}' -I -S '{client}' "$@"; fi
exec '{python}' -m benchmarks.killing.launch "$@"
"""
_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "no_proxy": "*",
    "SOURCE_DATE_EPOCH": "0",
}  # the last: without it, figures would contain the time


@dataclass(frozen=True)
class Room:
    """The folder of one trial: `work` for the commands, `tmp` for temporary files, and `logs`.

    `disk`: the folder of the first two, if it is not `path`.
    """

    path: Path
    disk: Path | None = None

    @property
    def inside(self) -> Path:
        return self.disk or self.path

    @property
    def work(self) -> Path:
        return self.inside / "work"

    @property
    def tmp(self) -> Path:
        return self.inside / "tmp"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def make(self, start: Path | None = None) -> "Room":
        """Create the folders; `work` starts as a copy of `start`."""
        for folder in (self.tmp, self.logs):
            folder.mkdir(parents=True)
        if start:
            shutil.copytree(start, self.work)
        else:
            self.work.mkdir()
        return self


@dataclass(frozen=True)
class Strike:
    """The signals of a kill and its time.

    `after`: seconds after the command `began`, or after its `first` change to a file, which follows
    its imports (`since`). `change`: if given, the kill comes just before this change, at its
    `number`-th time.
    """

    kind: str
    after: float = 0.0
    since: str = "began"
    change: str = ""
    number: int = 1


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    `status`: its exit status, None if a signal ended it. `struck`: when the signal came, empty if
    none came. `complete`: it had finished before the signal. `still`: it did not end in time.
    `seconds`: the time of the command, without the start of the interpreter. `real`: not a fork.
    `traced`: its changes to files. `pid`: its process id, which is its session id too.
    """

    line: str
    pid: int
    status: int | None
    struck: str
    began: bool
    complete: bool
    still: bool
    seconds: float
    real: bool
    traced: list[str]
    ended: float
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on standard error."""
        lines = self.err.replace("\r", "\n").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass
class Running:
    """A running command line."""

    line: str
    shell: subprocess.Popen
    mark: Path
    real: bool = False
    struck: str = ""

    def marks(self) -> list[tuple[float, str, str]]:
        """Time, word and text of every complete line of the mark file."""
        text = self.mark.read_text() if self.mark.is_file() else ""
        lines = [line.split(" ", 2) for line in text.split("\n")[:-1]]
        return [(float(moment), word, rest) for moment, word, rest in lines]

    def first(self, word: str) -> tuple[float, str] | None:
        """Time and text of the first line with that word."""
        return next(((moment, rest) for moment, other, rest in self.marks() if other == word), None)

    def until(self, word: str, limit: float) -> bool:
        """Wait for a word in the mark file; False if the process ends first or time runs out."""
        end = time.monotonic() + limit
        while not self.first(word):
            if self.shell.poll() is not None or time.monotonic() > end:
                return self.first(word) is not None
            time.sleep(_LOOK_EVERY)
        return True

    def strike(self, strike: Strike, limit: float) -> None:
        """Send the signals at their time, unless the command has ended before."""
        if not self.until(strike.since, limit):
            return
        due = self.first(strike.since)[0] + strike.after
        while time.monotonic() < due:
            if self.first("left") or self.shell.poll() is not None:
                return
            time.sleep(max(0.0, min(_LOOK_EVERY, due - time.monotonic())))
        with suppress(ProcessLookupError):
            send(strike.kind, int(self.first("pid")[1]))
            since = "began" if strike.since == "began" else "changed a file"
            self.struck = f"{strike.after:.3f} s after it {since}"

    def ending(self, limit: float) -> Ending:
        """Wait for the end; after `limit` seconds kill the process and set `still`."""
        still = False
        try:
            self.shell.wait(limit)
        except subprocess.TimeoutExpired:
            still = True
            end_session(int(self.first("pid")[1]) if self.first("pid") else self.shell.pid)
            with suppress(subprocess.TimeoutExpired):
                self.shell.wait(5)
            self.shell.kill()
        first = {word: (moment, rest) for moment, word, rest in reversed(self.marks())}
        exit_mark = first.get("left")
        # An uncaught exception is status 1; a shell reports signals as status 129 or more.
        code = int(exit_mark[1]) if exit_mark else self.shell.wait()
        status = code if exit_mark or 0 <= code < 128 else None
        began, now = first.get("began"), time.monotonic()
        struck = first["struck"][1] if "struck" in first else self.struck
        out, err = (
            self.mark.with_suffix(kind).read_text(errors="replace") for kind in (".out", ".err")
        )
        return Ending(
            self.line,
            int(first.get("pid", (0, "0"))[1]),
            status,
            struck,
            began is not None,
            "done" in first and ("struck" not in first or first["done"][0] < first["struck"][0]),
            still,
            (exit_mark[0] if exit_mark else now) - began[0] if began else 0.0,
            self.real,
            [rest for _, word, rest in self.marks() if word == "change"],
            now,
            out,
            err,
        )


class Processes:
    """Starts command lines in a shell whose `python` runs tinynet with a thin network
    (`launch.py`).
    """

    def __init__(self, root: Path):
        # the path of a socket must be short
        self._sockets = Path(tempfile.mkdtemp(prefix="faults-"))
        folder = root / "bin"
        folder.mkdir(parents=True)
        python = folder / "python"
        python.write_text(
            _PYTHON.format(python=sys.executable, client=Path(__file__).with_name("client.py"))
        )
        python.chmod(0o755)
        ours = {name for name in os.environ if name.startswith(("TINYNET", "FAULTS"))}
        self.environment = (
            {name: value for name, value in os.environ.items() if name not in ours}
            | _SETTINGS
            | {
                "PATH": f"{folder}:{os.environ.get('PATH', os.defpath)}",
                "PYTHONPATH": str(ROOT),
                "MPLCONFIGDIR": str(root / "matplotlib"),
            }
        )
        self._address = str(self._sockets / "s")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.killing.server", self._address],
            stdin=subprocess.PIPE,
            env=self.environment,
            cwd=root,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while not os.path.exists(self._address):
            if self._server.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the server of forks did not start; see its error above")
            time.sleep(0.05)

    def start(
        self,
        line: str,
        room: Room,
        strike: Strike | None = None,
        *,
        real: bool = False,
        **more: str,
    ) -> Running:
        """Start a command line in a room; `more`: environment variables.

        The process itself carries out a strike before a change; `Running.strike` carries out a
        strike after a time.
        """
        mark = room.logs / f"{len(list(room.logs.glob('*.mark'))) + 1:02}.mark"
        mark.touch()
        variables = self.environment | {
            "FAULTS_MARK": str(mark),
            "FAULTS_ROOM": str(room.inside),
            "TMPDIR": str(room.tmp),
            **more,
        }
        if not real:
            variables["FAULTS_SERVER"] = self._address
        if strike and strike.change:
            variables["FAULTS_STRIKE"] = f"{strike.kind}|{strike.number}|{strike.change}"
        with (
            open(mark.with_suffix(".out"), "wb") as out,
            open(mark.with_suffix(".err"), "wb") as err,
        ):
            shell = subprocess.Popen(
                line,
                shell=True,
                cwd=room.work,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return Running(line, shell, mark, real)

    def run(
        self,
        line: str,
        room: Room,
        strike: Strike | None = None,
        *,
        limit: float = 120.0,
        real: bool = False,
        **more: str,
    ) -> Ending:
        """Start a command line, carry out the strike, and wait for the end."""
        running = self.start(line, room, strike, real=real, **more)
        if strike and not strike.change:
            running.strike(strike, limit)
        ending = running.ending(limit)
        how = f"{strike.kind}, {ending.struck or 'not reached'}" if strike else "by itself"
        with open(room.logs / "lines.txt", "a") as stream:
            stream.write(
                f"{line}\n    # {'python' if real else 'fork'} {ending.pid}; {how}; status "
                f"{ending.status}; {ending.last}\n"
            )
        return ending

    def close(self) -> None:
        """Stop the server."""
        self._server.stdin.close()
        self._server.wait(10)
        shutil.rmtree(self._sockets, ignore_errors=True)


def in_session(session: int) -> list[int]:
    """The live processes of a session."""
    members = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                state, _, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(number) == session and state not in "ZX":
                    members.append(int(folder.name))
    return members


def orphans(endings: list[Ending], seconds: float) -> list[Ending]:
    """Ended processes whose workers are still alive after `seconds`; kills these workers."""
    parents = [ending for ending in endings if ending.pid and in_session(ending.pid)]
    while parents and time.monotonic() < max(ending.ended for ending in parents) + seconds:
        time.sleep(0.1)
        parents = [ending for ending in parents if in_session(ending.pid)]
    for ending in parents:
        end_session(ending.pid)
    return parents


def end_session(session: int) -> None:
    """Kill all live processes of a session."""
    for pid in in_session(session):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
