"""Process the files of a source in parallel, or in this process if workers cannot start."""

import ast
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from tinynet.console import log
from tinynet.data.containers import Container
from tinynet.data.source import SPLITS, Source
from tinynet.interrupts import ENDING, postponed

# Images per job. A job takes about 0.1 s: the progress bar moves, and Ctrl-C loses little work.
# The digests of packed copies depend on this number.
CHUNK = 256
SERIAL_LIMIT = 4 * CHUNK  # up to this many images, one process is faster than starting workers

_MAIN = "__main__"

ReadFile = Callable[[str], bytes]
Work = Callable[[ReadFile, Any], Any]
_worker: tuple[Work, Container, str]  # the work of this process, the container, and its root folder


def chunks(source: Source, size: int) -> list[tuple[str, int, tuple[str, ...]]]:
    """Return all files in chunks of `size`: their subset, the row of the first, and the files."""
    return [
        (name, start, files[start : start + size])
        for name in SPLITS
        for files in [source.part(name).files]
        for start in range(0, len(files), size)
    ]


def in_workers(work: Work, jobs: list, source: Source) -> Iterator[Any]:
    """Yield `work(read_file, job)` for every job, in order, with one process per core.

    `work` must be a function of a module. `read_file(name)` returns the bytes of a file of
    `source`. A job is about `CHUNK` small images. If worker processes cannot start or die, this
    process does the remaining jobs.
    """
    count = 0
    if worker_count() > 1 and len(jobs) * CHUNK > SERIAL_LIMIT and can_start(source.container):
        try:
            for result in _in_pool(work, jobs, source):
                yield result
                count += 1
        except (BrokenProcessPool, OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.__cause__ is not None:
                raise  # an error in `work`, which would fail in this process too
            log(
                f"note: worker processes failed ({' '.join(str(error).split())[:100]}); continuing "
                "in one process"
            )
    _start_worker(work, source.container, source.root)
    yield from map(_run_job, jobs[count:])


def _in_pool(work: Work, jobs: list, source: Source) -> Iterator[Any]:
    pool = ProcessPoolExecutor(
        worker_count(), initializer=_start_process, initargs=(work, source.container, source.root)
    )
    try:
        # An executor that is interrupted while its processes start or end would never return.
        with postponed():
            results = pool.map(_run_job, jobs)
        yield from results
    finally:
        with postponed():
            pool.shutdown(cancel_futures=True)


def worker_count() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_start(container: Container | None = None) -> bool:
    """Whether worker processes can start from here and read `container`; if not, logs why once.

    Without fork, each worker runs the main script again. So the script must call tinynet inside
    `if __name__ == '__main__':`.
    """
    if start_method() == "fork":
        return True
    if (container is not None and not container.picklable) or in_child():
        return False
    if not _main_is_guarded():
        _log_missing_guard()
        return False
    return True


def start_method() -> str:
    """How processes start here, without fixing the start method for the user's script."""
    return (
        multiprocessing.get_start_method(allow_none=True)
        or multiprocessing.get_all_start_methods()[0]
    )


def in_child() -> bool:
    """Whether this is a worker process that still runs the main script, and must start no work."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


@cache
def _log_missing_guard() -> None:
    log(
        f"note: using one process; to use several, call tinynet inside `if __name__ == '{_MAIN}':` "
        "in your script"
    )


def _main_is_guarded() -> bool:
    """Whether the main script runs inside `if __name__ == '__main__':`, or there is no script."""
    file = getattr(sys.modules[_MAIN], "__file__", None)
    frame: FrameType | None = sys._getframe()
    while frame and not (
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == _MAIN
    ):
        frame = frame.f_back
    if not (
        frame
        and file
        and os.path.exists(file)
        and os.path.exists(frame.f_code.co_filename)
        and os.path.samefile(frame.f_code.co_filename, file)
    ):
        return True  # a notebook, a thread, or a script from standard input
    for statement in ast.parse(Path(file).read_bytes()).body:
        if statement.lineno <= frame.f_lineno <= (statement.end_lineno or 0):
            return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
    return True


def _start_worker(work: Work, container: Container, root: str) -> None:
    global _worker
    _worker = (work, container, root)


def _start_process(*worker: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    for number in ENDING:  # fork copies the parent's handlers
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _start_worker(*worker)


def _end_with_parent() -> None:
    """Exit when the parent process ends, because a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run_job(job: Any) -> Any:
    work, container, root = _worker
    return work(lambda file: container.read(root + file), job)
