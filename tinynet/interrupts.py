"""Signals that ask a process to end, and output that nobody reads."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# asked from outside
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


_AGAIN = 0.02  # seconds


class Interrupted(KeyboardInterrupt):
    """This process was asked to end by the signal `number`, of `ENDING`, as Ctrl-C asks by
    another.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def interrupt(number: int, frame: Any) -> None:
    """A handler of signals: raise `Interrupted`, or `KeyboardInterrupt` for Ctrl-C.

    While a module is being imported the signal is sent again a moment later: an import that is
    interrupted swallows the exception, or leaves half a module behind.
    """
    if _imports(frame):
        again = threading.Timer(_AGAIN, signal.raise_signal, (number,))
        again.daemon = True
        again.start()
        return
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


def _imports(frame: Any) -> bool:
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def interrupted_by(numbers: Iterable[int], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Handle these signals within the block, in the main thread alone.

    A signal that is ignored stays so: SIGHUP under nohup, SIGINT in the background of a script.
    """
    before, owner = {}, os.getpid()

    def answer(number: int, frame: Any) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        else:  # a worker that was forked: it simply ends
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    try:
        for number in numbers:
            if (earlier := signal.getsignal(number)) != signal.SIG_IGN:
                signal.signal(number, answer)
                before[number] = earlier or signal.SIG_DFL
    except ValueError:  # another thread
        pass
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def postponed() -> Iterator[None]:
    """Delay signals that ask to end until the block is over: for a write of seconds, in the main
    thread.

    Libraries that are interrupted within their own code lose the exception, or raise another one.
    """
    waiting: list[int] = []
    try:
        with interrupted_by((signal.SIGINT, *ENDING), lambda number, frame: waiting.append(number)):
            yield
    finally:
        for number in waiting[:1]:
            signal.raise_signal(number)


def write_always() -> None:
    """Go on where an output has no such character, is closed, or has lost its reader."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell's >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  until the process ends
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if not isinstance(sys.stderr, Messages):
        sys.stderr = Messages(sys.stderr)
    # of objects that go while a command ends: it says nothing to a user
    sys.unraisablehook = lambda ignored: None


class Messages:
    """A stream for messages: where nobody can read them any more, they are lost without an
    error.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` if anybody reads it; returns its length."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if anybody reads it."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
