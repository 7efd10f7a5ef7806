"""What else may happen: a disk that is full, workers that fail, two processes at once, a process
that is no fork.
"""

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
    draw_blows,
    eval_fn,
    go_on,
    has_traceback,
    limit,
    new_folder,
)
from benchmarks.killing.moments import Moment, Scene
from benchmarks.killing.processes import Ending, Running, Strike, in_session
from benchmarks.killing.states import differences, file_differences, names

_PAGE = 4096  # bytes
_SPARE = 1 << 23  # bytes of a small disk beside what the command needs

Part = Callable[[Scene, Moment, str], Trial]


def full_disk(scene: Scene, moment: Moment, key: str) -> Trial:
    """The disk is full at some moment: one line, status 2, nothing left but what the next one goes
    on from.
    """
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
    """Run with `space` bytes on the disk, then, after room was made, again."""
    filler = trial.room.disk / "filler"
    with open(filler, "wb") as stream:
        os.posix_fallocate(
            stream.fileno(), 0, max(_PAGE, shutil.disk_usage(trial.room.disk).free - space)
        )
    ending = scene.processes.run(scene.line(moment), trial.room, limit=limit(scene, moment))
    trial.endings.append(ending)
    trial.note = f"{space:,} bytes of room"
    if ending.status != 0:
        trial.faults += [f"on a full disk: {fault}" for fault in one_line(ending)]
        trial.faults += [
            f"left behind on a full disk: {name}"
            for name in sorted(names(trial.room.work))
            if any(piece.startswith(".") for piece in Path(name).parts)
        ]
    filler.unlink()
    go_on(scene, moment, trial)
    eval_fn(scene, moment, trial)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of that size in `folder`; raises `PermissionError` where mounting is not
    allowed.
    """
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _size(folder: Path) -> int:
    """Bytes that a folder takes, in whole pages."""
    return sum(
        -(-path.stat().st_size // _PAGE) * _PAGE for path in folder.rglob("*") if path.is_file()
    )


def one_line(ending: Ending) -> list[str]:
    """What is wrong with how a command refused to go on."""
    if ending.still:
        return [f"stands still: {ending.line}"]
    faults = [] if ending.status == 2 else [f"status {ending.status}, not 2: {ending.last}"]
    if has_traceback(ending.err) or not ending.last.startswith("error: "):
        faults.append(f"is not said in one line: {ending.last}")
    return faults


def worker_killed(scene: Scene, moment: Moment, key: str) -> Trial:
    """A worker process is killed, as by a machine that is out of memory."""
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
    """An exception is raised in a worker process, which has no memory left to decode an image."""
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
    eval_fn(scene, moment, trial)


def _workers(running: Running, seconds: float) -> list[int]:
    """The worker processes of a command, once there are any."""
    end = time.monotonic() + seconds
    running.until("pid", seconds)
    pid = int((running.first("pid") or (0, "0"))[1])
    while not (workers := [other for other in in_session(pid) if other != pid]):
        if running.shell.poll() is not None or time.monotonic() > end:
            return []
        time.sleep(0.005)
    return workers


def two_at_once(scene: Scene, moment: Moment, key: str) -> Trial:
    """Two processes at one cache: both end well, and what a lock guards is done once."""
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
    # Of what is renamed into the cache manifests are written by both: they say where the archive
    # is.
    places = Counter(
        change
        for ending in trial.endings
        for change in ending.traced
        if change.startswith("os.rename work/cache/") and not change.endswith(".json")
    )
    trial.faults += [f"done twice: {change}" for change, count in places.items() if count > 1]
    _judge_two(scene, moment, trial)
    return trial


def one_of_two_killed(scene: Scene, moment: Moment, key: str) -> Trial:
    """Of two processes at one cache the first is killed, for which the other may be waiting: that
    one ends well.
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
    _judge_two(scene, moment, trial)
    return trial


def _start_two(scene: Scene, moment: Moment, trial: Trial, apart: float) -> tuple[Running, Running]:
    """The moment's command and, so many seconds later, the same again, into another folder where it
    has one.
    """
    first = scene.processes.start(scene.line(moment), trial.room, FAULTS_TRACE="1")
    time.sleep(apart)
    line = first.line.replace("--out run ", "--out other ")
    return first, scene.processes.start(line, trial.room, FAULTS_TRACE="1")


def _judge_two(scene: Scene, moment: Moment, trial: Trial) -> None:
    """Both folders are compared with the one that there should be."""
    if (trial.room.work / "other").is_dir():
        for name in ("best.pt", "last.pt", "log.jsonl"):
            trial.faults += file_differences(
                f"run/base/{name}", f"other/base/{name}", scene.go(moment).room, trial.room
            )
        shutil.rmtree(trial.room.work / "other")
    eval_fn(scene, moment, trial)


def no_fork(scene: Scene, moment: Moment, key: str) -> Trial:
    """Undisturbed, as a process of its own: whether the forks of the harness do what `python -m`
    does.
    """
    trial = Trial(moment.name, "no fork", scene.room(moment, new_folder(scene, moment, "no fork")))
    trial.endings = [
        scene.processes.run(scene.line(moment), trial.room, limit=limit(scene, moment), real=True)
    ]
    if trial.endings[0].status != 0:
        trial.faults.append(f"status {trial.endings[0].status}: {trial.endings[0].last}")
    trial.faults += differences(scene.go(moment).room, trial.room)
    return trial


def _struck_by(kind: str) -> Part:
    def part(scene: Scene, moment: Moment, key: str) -> Trial:
        return chain(scene, moment, kind, draw_blows(scene, moment, kind, key, 2))

    return part


# What happens, at which moments.
PARTS: dict[str, tuple[Part, tuple[str, ...]]] = {
    "full disk": (
        full_disk,
        ("download", "pack", "features", "base", "finetune", "evaluate", "report", "imagefolder"),
    ),
    "worker killed": (worker_killed, ("pack", "imagefolder")),
    "worker fails": (worker_fails, ("pack", "imagefolder")),
    "two at once": (two_at_once, ("pack", "features", "evaluate")),
    "one of two killed": (one_of_two_killed, ("pack", "features", "evaluate")),
    "SIGTERM group": (_struck_by("SIGTERM group"), ("pack", "features", "base", "imagefolder")),
    "SIGINT group": (_struck_by("SIGINT group"), ("pack", "features", "base", "imagefolder")),
    "SIGINT twice": (_struck_by("SIGINT twice"), ("pack", "features", "finetune")),
    "SIGTERM KILL": (_struck_by("SIGTERM KILL"), ("pack", "features", "finetune")),
    "no fork": (no_fork, ("pack", "base", "evaluate")),
}
