"""Run one command of tinynet with a thin network, in a process that reports its progress.

    python -m benchmarks.killing.launch -m tinynet.train --stage base ...

It works like `python -m tinynet.train ...`, but the network is thin, and tinynet saves every few
steps, not every few minutes. Environment variables:

    FAULTS_MARK     a file for lines of progress: time, word and text; the words are `pid`, `began`,
                    `first` (before its first change to a file), `change`, `struck`,
                    `done` (the command has finished) and `left` (its exit status)
    FAULTS_ROOM     the folder in which changes to files are counted
    FAULTS_STRIKE   "SIGKILL|3|open work/run/base/last.pt": that signal before the third such change
    FAULTS_TRACE    write a line for every change
    FAULTS_WORKER   the image at which a worker process runs out of memory
    FAULTS_ALSO     a Python file that runs first, to break something
"""

import importlib.abc
import importlib.machinery
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# VGG16's layers with a sixteenth of the channels, as in the tests.
THIN = (4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M")

# Audit events that change a file or folder -> the position of the path in their arguments.
_EVENTS = {
    "open": 0,
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "os.truncate": 0,
    "os.link": 1,
}

_mark = -1  # file descriptor of FAULTS_MARK


def mark(word: str, text: str = "") -> None:
    """Add a line to the mark."""
    if _mark >= 0:
        os.write(_mark, f"{time.monotonic():.6f} {word} {text}\n".encode())


def alike(text: str) -> str:
    """A text without the random numbers and names that differ between processes."""
    return re.sub(r"\b[0-9a-f]{8,16}\b|\d{3,}|(?<=probabilities-)[a-z0-9_]{8}\b", "N", text)


def send(kind: str, pid: int) -> None:
    """Send the signals of `kind`.

    `SIGTERM`: to the process. `SIGTERM group`: to its group. `SIGINT twice`. `SIGTERM KILL`: a
    SIGTERM, and a SIGKILL 0.05 s later.
    """
    name, _, more = kind.partition(" ")
    number = signal.Signals[name]
    if more == "group":
        os.killpg(os.getpgid(pid), number)
        return
    os.kill(pid, number)
    if more:
        time.sleep(0.05)
        os.kill(pid, signal.SIGKILL if more == "KILL" else number)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Changes modules right after their import, so that tinynet still imports torch late."""

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        change = _CHANGES.get(name)
        spec = change and importlib.machinery.PathFinder.find_spec(name, path)
        if not spec or not spec.loader:
            return None
        fill = spec.loader.exec_module

        def fill_and_change(module: Any) -> None:
            fill(module)
            change(module)

        spec.loader.exec_module = fill_and_change
        return spec


def _thin(vgg: Any) -> None:
    vgg.cfgs["D"] = list(THIN)


def _sooner(name: str, seconds: float) -> Callable[[Any], None]:
    """A change that sets an interval of a module; raises `AttributeError` if there is none."""

    def change(module: Any) -> None:
        if not hasattr(module, name):
            raise AttributeError(
                f"{module.__name__} has no {name} any more; benchmarks/killing/launch.py sets it"
            )
        setattr(module, name, seconds)

    return change


def _with_marks(flags: Any) -> None:
    """Make `run_command` mark when the command begins (with its signal handlers), and its end."""
    run = flags.run_command

    def marking(main: Callable[[], None], *args: Any, **kwargs: Any) -> Any:
        def marked() -> None:
            mark("began")
            main()
            mark("done")

        return run(marked, *args, **kwargs)

    flags.run_command = marking


def _out_of_memory_in_worker(image: Any) -> None:
    """Make decoding run out of memory in a worker process, at the image FAULTS_WORKER."""
    convert, count = image.Image.convert, 0

    def convert_or_fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if os.environ.get("FAULTS_WORKER") and os.getpid() != os.getsid(0):
            count += 1
            if count == int(os.environ["FAULTS_WORKER"]):
                raise MemoryError("of a worker process")
        return convert(self, *args, **kwargs)

    image.Image.convert = convert_or_fail


_CHANGES: dict[str, Callable[[Any], None]] = {
    "tinynet.flags": _with_marks,
    "tinynet.models.vgg": _thin,
    "PIL.Image": _out_of_memory_in_worker,
    "tinynet.training.loop": _sooner("FLUSH_AFTER", 0.02),
    "tinynet.training.extraction": _sooner("SAVE_EVERY", 0.05),
    "tinynet.training.single_stage": _sooner("SAVE_EVERY", 0.03),
}


def small() -> None:
    """Use a thin network from now on; must run before tinynet is imported."""
    sys.meta_path.insert(0, _AfterImport())


class _Watch:
    """Counts the changes that this process (not its workers) makes in a folder, and can kill it
    before one of them.
    """

    def __init__(self, room: str, strike: str, trace: bool):
        self.room, self.trace, self.count, self.pid = room + os.sep, trace, 0, os.getpid()
        self.kind, number, self.change = strike.split("|", 2) if strike else ("", 0, "")
        self.remaining = int(number)

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        if (event not in _EVENTS and event != "os.fork") or os.getpid() != self.pid:
            return
        text = self._change(event, values)
        if text is None:
            return
        self.count += 1
        if self.count == 1:
            mark("first")
        if self.trace:
            mark("change", text)
        if self.remaining and alike(text) == self.change:
            self.remaining -= 1
            if not self.remaining:
                mark("struck", f"before {text} (change {self.count})")
                send(self.kind, self.pid)

    def _change(self, event: str, values: tuple[Any, ...]) -> str | None:
        """The change that is about to happen in the folder, or None."""
        if event == "os.fork":
            return "fork"
        if event == "open" and not (
            isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return None
        path = values[_EVENTS[event]]
        if isinstance(path, int) or path is None:
            return None
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(self.room) or (event == "os.mkdir" and os.path.isdir(path)):
            return None
        return f"{event} {path.removeprefix(self.room)}"


def run(words: list[str]) -> None:
    """Run `-m MODULE ARGUMENTS` as Python does, in this process."""
    global _mark
    setting = os.environ
    if path := setting.get("FAULTS_MARK"):
        _mark = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with suppress(PermissionError):  # it leads a session already
        os.setsid()  # so that a signal to the group reaches this process and its workers alone
    mark("pid", str(os.getpid()))
    watch = _Watch(
        setting.get("FAULTS_ROOM", os.getcwd()),
        setting.get("FAULTS_STRIKE", ""),
        "FAULTS_TRACE" in setting,
    )
    if path := setting.get("FAULTS_ALSO"):
        exec(compile(Path(path).read_text(), path, "exec"), {"__name__": "also"})
    sys.addaudithook(watch)
    _, module, *sys.argv[1:] = words
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        mark("left", str(end.code if isinstance(end.code, int) else int(bool(end.code))))
        raise
    mark("left", "0")


if __name__ == "__main__":
    small()
    run(sys.argv[1:])
