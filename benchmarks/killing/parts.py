"""Other faults: a full disk, failing workers, two processes at once; and a run without forks."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.killing.chains import (
    Trial,
    chain,
    check,
    draw_blows,
    go_on,
    has_traceback,
    limit,
    new_folder,
)
from benchmarks.killing.moments import Moment, Scene
from benchmarks.killing.processes import Ending, Running, Strike, in_session
from benchmarks.killing.states import differences, file_differences, names

_PAGE = 4096  # bytes
_SPARE = 1 << 23  # bytes of a small disk beyond what the command needs

Part = Callable[[Scene, Moment, str], Trial]


def full_disk(scene: Scene, moment: Moment, key: str) -> Trial:
    """The disk becomes full: the command must print one line, exit with status 2 and clean up."""
    trial = Trial(
        moment.name, "full disk", scene.room(moment, new_folder(scene, moment, "full disk"))
    )
    disk = trial.room.path / "disk"
    size = _size(trial.room.work)
    need = max(_PAGE, _size(scene.go(moment).room.work) - size)
    shutil.rmtree(trial.room.path)
    try:
        with _small_disk(disk, size + need + _SPARE):
            trial.room = scene.room(moment, trial.room.path, disk)
            _fill_and_go(
                scene, moment, trial, random.Random(f"{key}: {moment.name}, disk").randint(0, need)
            )
            if trial.faults:
                shutil.copytree(trial.room.work, trial.room.path / "work")
    except PermissionError as error:
        trial.note = f"skipped: {error}"
    return trial


def _fill_and_go(scene: Scene, moment: Moment, trial: Trial, space: int) -> None:
    """Run with `space` free bytes on the disk, then free some space and run again."""
    filler = trial.room.disk / "filler"
    with open(filler, "wb") as stream:
        os.posix_fallocate(
            stream.fileno(), 0, max(_PAGE, shutil.disk_usage(trial.room.disk).free - space)
        )
    ending = scene.processes.run(scene.line(moment), trial.room, limit=limit(scene, moment))
    trial.endings.append(ending)
    trial.note = f"{space:,} bytes free"
    if ending.status != 0:
        trial.faults += [f"on a full disk: {fault}" for fault in one_line(ending)]
        trial.faults += [
            f"left behind on a full disk: {name}"
            for name in sorted(names(trial.room.work))
            if any(piece.startswith(".") for piece in Path(name).parts)
        ]
    filler.unlink()
    go_on(scene, moment, trial)
    check(scene, moment, trial)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes; raises `PermissionError` if that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _size(folder: Path) -> int:
    """The size of a folder in bytes, in whole pages."""
    return sum(
        -(-path.stat().st_size // _PAGE) * _PAGE for path in folder.rglob("*") if path.is_file()
    )


def one_line(ending: Ending) -> list[str]:
    """Faults of a command that stopped with an error: it must print one line, with status 2."""
    if ending.still:
        return [f"stands still: {ending.line}"]
    faults = [] if ending.status == 2 else [f"status {ending.status}, not 2: {ending.last}"]
    if has_traceback(ending.err) or not ending.last.startswith("error: "):
        faults.append(f"does not print one line: {ending.last}")
    return faults


def worker_killed(scene: Scene, moment: Moment, key: str) -> Trial:
    """Kill a worker process, as a machine does that is out of memory."""
    draw = random.Random(f"{key}: {moment.name}, worker")
    trial = Trial(
        moment.name, "worker killed", scene.room(moment, new_folder(scene, moment, "worker killed"))
    )
    running = scene.processes.start(scene.line(moment), trial.room)
    length = scene.go(moment).ending.seconds
    if workers := _workers(running, limit(scene, moment)):
        time.sleep(draw.random() * length / 2)
        victim = draw.choice(_workers(running, 0) or workers)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            running.struck = f"worker {victim} is killed"
    _refused_or_right(scene, moment, trial, running.ending(limit(scene, moment)))
    return trial


def worker_fails(scene: Scene, moment: Moment, key: str) -> Trial:
    """Raise an exception in a worker process, which runs out of memory while decoding."""
    draw = random.Random(f"{key}: {moment.name}, worker")
    trial = Trial(
        moment.name, "worker fails", scene.room(moment, new_folder(scene, moment, "worker fails"))
    )
    ending = scene.processes.run(
        scene.line(moment),
        trial.room,
        limit=limit(scene, moment),
        FAULTS_WORKER=str(draw.randint(1, 100)),
    )
    _refused_or_right(scene, moment, trial, ending)
    return trial


def _refused_or_right(scene: Scene, moment: Moment, trial: Trial, ending: Ending) -> None:
    trial.endings.append(ending)
    if ending.status != 0:
        trial.faults += one_line(ending)
    go_on(scene, moment, trial)
    check(scene, moment, trial)


def _workers(running: Running, seconds: float) -> list[int]:
    """Wait for the worker processes of a command; return their ids."""
    end = time.monotonic() + seconds
    running.until("pid", seconds)
    pid = int((running.first("pid") or (0, "0"))[1])
    while not (workers := [other for other in in_session(pid) if other != pid]):
        if running.shell.poll() is not None or time.monotonic() > end:
            return []
        time.sleep(0.005)
    return workers


def two_at_once(scene: Scene, moment: Moment, key: str) -> Trial:
    """Run two processes on one cache: both must succeed, and do locked work only once."""
    draw = random.Random(f"{key}: {moment.name}, two")
    trial = Trial(
        moment.name, "two at once", scene.room(moment, new_folder(scene, moment, "two at once"))
    )
    pair = _start_two(scene, moment, trial, draw.random() * scene.go(moment).ending.seconds / 2)
    trial.endings = [running.ending(limit(scene, moment)) for running in pair]
    trial.faults += [
        f"two at once: status {ending.status}: {ending.last}"
        for ending in trial.endings
        if ending.status != 0
    ]
    # Both processes write manifests, which have the path of the archive; everything else once.
    renames = Counter(
        change
        for ending in trial.endings
        for change in ending.traced
        if change.startswith("os.rename work/cache/") and not change.endswith(".json")
    )
    trial.faults += [f"done twice: {change}" for change, count in renames.items() if count > 1]
    _check_two(scene, moment, trial)
    return trial


def one_of_two_killed(scene: Scene, moment: Moment, key: str) -> Trial:
    """Run two processes on one cache and kill the first: the other must succeed, even if it waited
    for the first.
    """
    draw = random.Random(f"{key}: {moment.name}, one of two")
    trial = Trial(
        moment.name,
        "one of two killed",
        scene.room(moment, new_folder(scene, moment, "one of two")),
    )
    first, second = _start_two(scene, moment, trial, 0.05)
    first.strike(
        Strike("SIGKILL", draw.random() * scene.go(moment).ending.seconds), limit(scene, moment)
    )
    trial.endings = [second.ending(limit(scene, moment)), first.ending(limit(scene, moment))]
    if trial.endings[0].still:
        trial.faults.append(f"stands still when the other is killed: {second.line}")
    elif trial.endings[0].status != 0:
        trial.faults.append(
            f"one of two: status {trial.endings[0].status}: {trial.endings[0].last}"
        )
    go_on(scene, moment, trial)
    _check_two(scene, moment, trial)
    return trial


def _start_two(scene: Scene, moment: Moment, trial: Trial, apart: float) -> tuple[Running, Running]:
    """Start the command, and `apart` seconds later again, into another folder if it has one."""
    first = scene.processes.start(scene.line(moment), trial.room, FAULTS_TRACE="1")
    time.sleep(apart)
    line = first.line.replace("--out run ", "--out other ")
    return first, scene.processes.start(line, trial.room, FAULTS_TRACE="1")


def _check_two(scene: Scene, moment: Moment, trial: Trial) -> None:
    """Compare both folders with the undisturbed one."""
    if (trial.room.work / "other").is_dir():
        for name in ("best.pt", "last.pt", "log.jsonl"):
            trial.faults += file_differences(
                f"run/base/{name}", f"other/base/{name}", scene.go(moment).room, trial.room
            )
        shutil.rmtree(trial.room.work / "other")
    check(scene, moment, trial)


def no_fork(scene: Scene, moment: Moment, key: str) -> Trial:
    """Run the command undisturbed with `python -m`: the forks must give the same result."""
    trial = Trial(moment.name, "no fork", scene.room(moment, new_folder(scene, moment, "no fork")))
    trial.endings = [
        scene.processes.run(scene.line(moment), trial.room, limit=limit(scene, moment), real=True)
    ]
    if trial.endings[0].status != 0:
        trial.faults.append(f"status {trial.endings[0].status}: {trial.endings[0].last}")
    trial.faults += differences(scene.go(moment).room, trial.room)
    return trial


def _killed_by(kind: str) -> Part:
    def part(scene: Scene, moment: Moment, key: str) -> Trial:
        return chain(scene, moment, kind, draw_blows(scene, moment, kind, key, 2))

    return part


# Each fault, and the moments at which it is tried.
PARTS: dict[str, tuple[Part, tuple[str, ...]]] = {
    "full disk": (
        full_disk,
        ("download", "pack", "features", "base", "finetune", "evaluate", "report", "imagefolder"),
    ),
    "worker killed": (worker_killed, ("pack", "imagefolder")),
    "worker fails": (worker_fails, ("pack", "imagefolder")),
    "two at once": (two_at_once, ("pack", "features", "evaluate")),
    "one of two killed": (one_of_two_killed, ("pack", "features", "evaluate")),
    "SIGTERM group": (_killed_by("SIGTERM group"), ("pack", "features", "base", "imagefolder")),
    "SIGINT group": (_killed_by("SIGINT group"), ("pack", "features", "base", "imagefolder")),
    "SIGINT twice": (_killed_by("SIGINT twice"), ("pack", "features", "finetune")),
    "SIGTERM KILL": (_killed_by("SIGTERM KILL"), ("pack", "features", "finetune")),
    "no fork": (no_fork, ("pack", "base", "evaluate")),
}
