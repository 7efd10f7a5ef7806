"""Signals that ask a process to end, and output that nobody reads."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Signals by which other processes ask this one to end.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_RETRY_AFTER = 0.02  # seconds


class Interrupted(KeyboardInterrupt):
    """The signal `number` (one of `ENDING`) asked this process to end."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def interrupt(number: int, frame: Any) -> None:
    """Handle a signal: raise `Interrupted`, or `KeyboardInterrupt` for Ctrl-C.

    During an import, send the signal again a moment later. An interrupted import swallows the
    exception, or leaves half a module.
    """
    if _is_importing(frame):
        timer = threading.Timer(_RETRY_AFTER, signal.raise_signal, (number,))
        timer.daemon = True
        timer.start()
        return
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


def _is_importing(frame: Any) -> bool:
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def interrupted_by(numbers: Iterable[int], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Handle these signals within the block; do nothing outside the main thread.

    An ignored signal stays ignored: SIGHUP under nohup, SIGINT in the background of a script.
    """
    handlers, owner = {}, os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        else:  # a forked worker ends
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    try:
        for number in numbers:
            if (earlier := signal.getsignal(number)) != signal.SIG_IGN:
                signal.signal(number, handle)
                handlers[number] = earlier or signal.SIG_DFL
    except ValueError:  # another thread
        pass
    try:
        yield
    finally:
        for number, earlier in handlers.items():
            signal.signal(number, earlier)


@contextmanager
def postponed() -> Iterator[None]:
    """Delay signals that ask to end until the block is over; for writes of at most seconds.

    Some libraries lose an exception that is raised within their code, or raise another one. Only
    for the main thread.
    """
    pending: list[int] = []
    try:
        with interrupted_by((signal.SIGINT, *ENDING), lambda number, frame: pending.append(number)):
            yield
    finally:
        for number in pending[:1]:
            signal.raise_signal(number)


def write_always() -> None:
    """Let writes to stdout and stderr succeed without their encoding, the stream or a reader.

    Characters that the encoding lacks become question marks.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell's >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  until the process ends
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if not isinstance(sys.stderr, Messages):
        sys.stderr = Messages(sys.stderr)
    # Errors in destructors while a command ends mean nothing to a user.
    sys.unraisablehook = lambda _: None


class Messages:
    """A stream for messages that drops them without an error if nobody can read them."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` if the stream is open; return its length."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if it is open."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
