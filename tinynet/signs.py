"""Signs of life between processes that torchrun started: which one is killed, or hangs."""

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tinynet.files import HOST
from tinynet.interrupts import postponed

# Seconds without a sign of life after which a rank counts as dead, and is killed if it is not.
SILENCE = 20.0
# Seconds without a sign of life of a rank whose connection has failed.
_GONE = 5.0
_BEAT = 0.5  # seconds between two signs of life
_ANSWER = 10.0  # seconds within which the store answers
_STORE_GONE = "the machine of rank 0, or torchrun on it, has ended"
# Last words that do not tell of a fault.
_FINISHED, STOPPED = "finished", "stopped by its user"


class LostRank(RuntimeError):
    """Raised on the ranks that remain when one has ended or does not answer."""


class Signs:
    """Signs of life of all ranks, and their last words, in a store that all can read.

    `store`: of torch.distributed, for this object alone, because a store serves one request at a
    time. `entered`: the collectives that this rank has entered. `lost`: what the others know of a
    rank that is lost; None as long as all live.
    """

    def __init__(self, store: Any, rank: int, size: int):
        self._store, self._rank, self._size = store, rank, size
        self.entered = 0
        self.lost: str | None = None
        self._barriers = 0
        self._lock = threading.Lock()
        # rank -> its last sign of life, when it came, and when it was last looked for
        self._seen: dict[int, tuple[bytes, float, float]] = {}
        self._killed: set[int] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self, last_words: str = _FINISHED) -> None:
        """Say that this rank ends; a thread that uses the store at exit would abort the process."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join(5)
            with suppress(RuntimeError):
                self._set(f"end/{self._rank}", last_words)

    def barrier(self) -> None:
        """Wait until all ranks have called this; raises `LostRank` if one has ended."""
        try:
            self._barrier()
        except LostRank:
            raise
        except RuntimeError:
            raise LostRank(_STORE_GONE) from None

    def _barrier(self) -> None:
        self._barriers += 1
        number, pause = self._barriers, 0.001
        self._set(f"barrier/{number}/{self._rank}", "1")
        for rank in range(self._size):
            key = f"barrier/{number}/{rank}"
            while self._get(key) is None:
                if self._get(f"end/{rank}") is not None and self._get(key) is None:
                    raise LostRank(self._describe(rank))
                if self._silence(rank) > SILENCE:
                    raise LostRank(self._describe(rank))
                if self.lost:  # while this rank waits for another
                    raise LostRank(self.lost)
                time.sleep(pause)
                pause = min(0.1, 1.5 * pause)
        if number > 2:  # all have left the barrier before the last, so nobody reads its keys
            self._delete(f"barrier/{number - 2}/{self._rank}")

    def whom(self) -> str:
        """Which rank has ended or gives no signs of life; empty if all others live."""
        with postponed():  # torchrun soon asks the others to end
            try:
                return self._whom()
            except RuntimeError:
                return _STORE_GONE

    def behind(self) -> str:
        """Kill the rank that the others wait for in a collective; return which. Empty if none."""
        with suppress(RuntimeError):
            entered = {rank: int(self._sign(rank)[1]) for rank in self._others}
            rank = min(entered, key=lambda rank: entered[rank])
            if entered[rank] < self.entered:
                self._kill(rank)
                return self._describe(rank)
        return ""

    def is_told(self) -> bool:
        """Whether a lower rank has told the user why it ends, or lives and will tell."""
        with suppress(RuntimeError):
            return any(map(self._tells, range(self._rank)))
        return False

    def _tells(self, rank: int) -> bool:
        words = self._get(f"end/{rank}")
        return self._silence(rank) < _GONE if words is None else words != _FINISHED.encode()

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self._size) if rank != self._rank]

    def _whom(self) -> str:
        silent = {rank: self._get(f"beat/{rank}") for rank in self._others}
        end = time.monotonic() + _GONE
        while silent and time.monotonic() < end:
            for rank in list(silent):
                if self._has_failed(rank):
                    return self._describe(rank)
                if self._get(f"end/{rank}") or self._get(f"beat/{rank}") != silent[rank]:
                    del silent[rank]
            time.sleep(0.1)
        return self._describe(min(silent)) if silent else ""

    def _describe(self, rank: int) -> str:
        reason = self._get(f"end/{rank}")
        if reason is not None:
            return f"rank {rank} of {self._size} has ended: {reason.decode(errors='replace')}"
        return f"rank {rank} of {self._size} was killed, or does not answer"

    def _has_failed(self, rank: int) -> bool:
        words = self._get(f"end/{rank}")
        return words is not None and words.decode(errors="replace") not in (_FINISHED, STOPPED)

    def _beat(self) -> None:
        """Give signs of life; find ranks that give none, and kill those of this machine.

        Their connections close then, for which other ranks wait in a collective.
        """
        count, failed_since = 0, None
        while not self._closed.wait(_BEAT):
            count += 1
            try:
                self._set(f"beat/{self._rank}", f"{count} {self.entered} {os.getpid()} {HOST}")
                for rank in range(self._size):
                    self._watch(rank)
                failed_since = None
            except RuntimeError:  # for a moment, or the store is gone, and so is torchrun
                failed_since = failed_since or time.monotonic()
                if time.monotonic() - failed_since > 2 * _GONE:
                    self.lost = _STORE_GONE
                    return

    def _watch(self, rank: int) -> None:
        if rank == self._rank or self._get(f"end/{rank}") == _FINISHED.encode():
            return
        if self._has_failed(rank):
            self.lost = self._describe(rank)
        elif self._silence(rank) > SILENCE:
            self.lost = self._describe(rank)
            self._kill(rank)

    def _silence(self, rank: int) -> float:
        """For how many seconds this process has looked for a new sign of life of a rank in vain."""
        beat, now = self._get(f"beat/{rank}") or b"", time.monotonic()
        last, came, looked = self._seen.get(rank, (None, now, now))
        if beat != last or now - looked > _GONE:  # this process was suspended, perhaps with others
            came = now
        self._seen[rank] = (beat, came, now)
        return now - came

    def _sign(self, rank: int) -> list[str]:
        """The words of a rank's last sign: its number, collectives, process id, machine."""
        words = (self._get(f"beat/{rank}") or b"0 0 0 ?").decode().split(" ", 3)
        return words if len(words) == 4 else ["0", "0", "0", "?"]

    def _kill(self, rank: int) -> None:
        """Kill a rank that hangs, if it is on this machine."""
        _, _, process, host = self._sign(rank)
        if rank in self._killed or host != HOST:
            return
        self._killed.add(rank)
        with suppress(OSError):
            os.kill(int(process), signal.SIGKILL if os.name != "nt" else signal.SIGTERM)

    def _set(self, key: str, value: str) -> None:
        with self._asking():
            self._store.set(key, value)

    def _get(self, key: str) -> bytes | None:
        with self._asking():
            value: bytes | None = self._store.get(key) if self._store.check([key]) else None
            return value

    def _delete(self, key: str) -> None:
        with self._asking():
            self._store.delete_key(key)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The store, for one thread; a machine that is cut off may never answer."""
        if not self._lock.acquire(timeout=_ANSWER):
            raise RuntimeError("the store does not answer")
        try:
            yield
        finally:
            self._lock.release()
