"""Messages, progress bars and interrupts: what the library tells the user on standard error."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tinynet.interrupts import ENDING, Interrupted, interrupted_by


@dataclass
class _Console:
    """`flags`: the flags of the running command, which advice may name; None: no command runs.

    `silent`: whether another process speaks. `program`: how the user started tinynet: `tinynet`,
    `python -m tinynet`, or, if it is empty, one command as a module: `python -m tinynet.train`.
    """

    quiet: bool = False
    silent: bool = False
    flags: frozenset[str] | None = None
    program: str = ""


_console = _Console()
_FLAG = re.compile(r"--[a-z][a-z-]*")


def set_quiet(quiet: bool) -> None:
    """Turn messages and progress bars off or on."""
    _console.quiet = quiet


def set_silent(silent: bool) -> None:
    """Set whether another process speaks to the user: rank 0 of those that torchrun started."""
    _console.silent = silent


def set_flags(flags: Iterable[str] | None) -> None:
    """Set the flags of the running command, for instance `--batch`; None: no command runs."""
    _console.flags = None if flags is None else frozenset(flags)


def command_flags() -> frozenset[str] | None:
    """Return the flags of the running command; None: no command runs."""
    return _console.flags


def set_program(program: str) -> None:
    """Set how the user started tinynet: `tinynet`, `python -m tinynet`, or empty for a module."""
    _console.program = program


def program() -> str:
    """Return how the user starts any command: `tinynet` or `python -m tinynet`."""
    return _console.program or "python -m tinynet"


def as_started(text: str) -> str:
    """Return `text` with its commands written as the user started this one.

    Texts name commands as modules: `python -m tinynet.select_views`. For a user of `tinynet`, this
    becomes `tinynet select-views`.
    """
    if not _console.program:
        return text

    def command(match: re.Match[str]) -> str:
        return f"{_console.program} {match[1].replace('_', '-')}"

    return re.sub(r"\bpython -m tinynet\.([a-z_]+)", command, text)


def advice(text: str) -> str:
    """Return `text`, or an empty string if it names a flag that the running command lacks.

    In Python no command runs, and no flag exists.
    """
    return text if (_console.flags or set()).issuperset(_FLAG.findall(text)) else ""


def option(name: str) -> str:
    """How messages name an option: `--batch-size` in a command, `batch_size` in Python."""
    return f"--{name.replace('_', '-')}" if _console.flags is not None else name


def shell_command(*words: Any) -> str:
    """Return the command line that runs a module, `words[0]`, quoted for a shell."""
    return as_started(shlex.join(["python", "-m", *map(str, words)]))


def current_command() -> list[str]:
    """Return the words of the running command, as a user can type them again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if not spec:
        return list(sys.argv)
    return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


def printable(line: str) -> str:
    """Return `line` with question marks for control characters, which file names may contain."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in line)


def log(line: str) -> None:
    """Print a message on standard error, above any progress bars; nothing with `--quiet`.

    Of the processes that torchrun started, only rank 0 prints (`set_silent`).
    """
    if _console.quiet or _console.silent:
        return
    line = "\n".join(map(printable, as_started(line).split("\n")))
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


def progress(
    items: Iterable | None = None,
    *,
    total: int | None = None,
    label: str = "",
    unit: str = "it",
    done: int = 0,
) -> Any:
    """Return a tqdm bar on standard error, which is updated less often if that is a file.

    `done`: how many of the `total` items were finished before.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        items,
        total=total,
        desc=label,
        unit=unit,
        initial=done,
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.5 if terminal else 30,
        smoothing=0.1,
        unit_scale=unit == "B",
        disable=_console.quiet or _console.silent or os.environ.get("TINYNET_PROGRESS") == "0",
    )


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C, SIGTERM or SIGHUP has arrived.

    A second Ctrl-C raises `KeyboardInterrupt`. A `KeyboardInterrupt` raised in the block after
    SIGTERM or SIGHUP becomes `Interrupted`. Outside the main thread signals cannot be caught, and
    the function always returns False.
    """
    first_signal: int | None = None

    def handle(number: int, frame: Any) -> None:
        nonlocal first_signal
        if number == signal.SIGINT and first_signal is not None:
            raise KeyboardInterrupt
        if first_signal is None:  # batch systems send their signal more than once
            first_signal = number
            again = " (press Ctrl-C again to stop now)" if number == signal.SIGINT else ""
            log(f"\n{signal.Signals(number).name}: stopping after this step{again}")

    with interrupted_by((signal.SIGINT, *ENDING), handle):
        try:
            yield lambda: first_signal is not None
        except KeyboardInterrupt:
            if first_signal is not None and first_signal in ENDING:
                raise Interrupted(first_signal) from None
            raise
