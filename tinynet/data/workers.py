"""Process an archive's files in parallel, or in this process where workers cannot start."""

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
from typing import Any

from tinynet.console import log
from tinynet.data.containers import Source
from tinynet.data.tiny_imagenet import Archive
from tinynet.interrupts import ENDING, postponed

# images a job: a job takes about 0.1 s, so the bar moves and few are lost to Ctrl-C (part of the
# format)
CHUNK = 256
_FEW = 4 * CHUNK  # fewer images are decoded sooner than worker processes start

_MAIN = "__main__"

Read = Callable[[str], bytes]
_worker: tuple[Callable[[Read, Any], Any], Source, str]  # of this process


def in_workers(work: Callable[[Read, Any], Any], jobs: list, archive: Archive) -> Iterator[Any]:
    """`work(read, job)` for every job, in order, in as many processes as there are cores.

    `work` is a function of a module; `read(file)` gives it the bytes of a file of `archive`. A job
    is about `CHUNK` images. Where worker processes cannot be started or die, the rest is done in
    this one.
    """
    done = 0
    if _workers() > 1 and len(jobs) * CHUNK > _FEW and can_start(archive.source):
        try:
            for result in _in_pool(work, jobs, archive):
                yield result
                done += 1
        except (BrokenProcessPool, OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.__cause__ is not None:
                raise  # from within a worker, where one process would fare no better
            log(
                f"note: worker processes failed ({' '.join(str(error).split())[:100]}); continuing "
                "in one process"
            )
    _start_worker(work, archive.source, archive.root)
    yield from map(_do, jobs[done:])


def _in_pool(work: Callable[[Read, Any], Any], jobs: list, archive: Archive) -> Iterator[Any]:
    pool = ProcessPoolExecutor(
        _workers(), initializer=_start_process, initargs=(work, archive.source, archive.root)
    )
    try:
        # an executor that is interrupted while its processes start or end waits for them for ever
        with postponed():
            results = pool.map(_do, jobs)
        yield from results
    finally:
        with postponed():
            pool.shutdown(cancel_futures=True)


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_start(source: Source | None = None) -> bool:
    """Whether worker processes can be started from here, and `source` be read in them; why not is
    told once.

    Where processes are not forked, each runs the main script again up to where it asks for its own
    name.
    """
    if _start_method() == "fork":
        return True
    if (source is not None and not source.travels) or in_child():
        return False
    if not _main_is_guarded():
        _tell_of_guard()
        return False
    return True


def _start_method() -> str:
    """How processes are started here; to ask multiprocessing itself would settle it for the
    script's own calls.
    """
    return (
        multiprocessing.get_start_method(allow_none=True)
        or multiprocessing.get_all_start_methods()[0]
    )


def in_child() -> bool:
    """Whether this is a worker process that is still running the main script, which must start no
    work of its own.
    """
    return getattr(multiprocessing.current_process(), "_inheriting", False)


@cache
def _tell_of_guard() -> None:
    log(
        f"note: using one process; to use several, call tinynet inside `if __name__ == '{_MAIN}':` "
        "in your script"
    )


def _main_is_guarded() -> bool:
    """Whether the main script is below the question for its own name right now, or there is no
    script.
    """
    file = getattr(sys.modules[_MAIN], "__file__", None)
    frame = sys._getframe()
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
        return True  # a notebook, a thread, or what comes from standard input
    for statement in ast.parse(Path(file).read_bytes()).body:
        if statement.lineno <= frame.f_lineno <= (statement.end_lineno or 0):
            return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
    return True


def _start_worker(work: Callable[[Read, Any], Any], source: Source, root: str) -> None:
    global _worker
    _worker = (work, source, root)


def _start_process(*worker: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer, once
    for number in ENDING:  # the parent's handlers came along where it was forked
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _start_worker(*worker)


def _end_with_parent() -> None:
    """End this process when its parent is gone: one that was killed cannot tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do(job: Any) -> Any:
    work, source, root = _worker
    return work(lambda file: source.read(root + file), job)
