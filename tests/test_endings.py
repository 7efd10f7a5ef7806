"""How commands end: asked from outside, on strange disks, with workers that die, on terminals
without letters.
"""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import ROOT, SMALL, call, thin_network

from tinynet import console, files, predict, train
from tinynet import folder as folder_command
from tinynet import interrupts as ending
from tinynet.data import __main__ as data_command
from tinynet.data import packed as packed_module
from tinynet.data import workers
from tinynet.data.packed import open_packed, pack
from tinynet.data.tiny_imagenet import Archive
from tinynet.files import atomic_file, atomic_folder, clear_leftovers, locked, temporary_folder
from tinynet.flags import run_command

needs_flock = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
NOBODY = 2**22 + 7  # no process has this number


# --- signals ---


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_sigterm_prints_one_line(name, status, capsys):
    def main():
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(5)

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == status
    assert (
        capsys.readouterr().err == {"SIGINT": "interrupted"}.get(name, f"stopped by {name}") + "\n"
    )


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_waits_for_the_end_of_an_import(name, status, tmp_path, monkeypatch, capsys):
    """An import may swallow what a signal raises, as those of C extensions do."""
    (tmp_path / "swallows.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal."
        + name
        + ")\n    time.sleep(0.1)\n"
        "except BaseException:\n    pass\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def main():
        import swallows

        assert swallows.whole
        time.sleep(5)

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    sys.modules.pop("swallows", None)
    assert ended.value.code == status and len(capsys.readouterr().err.splitlines()) == 1


def test_a_library_that_cannot_be_loaded_takes_one_line(capsys):
    def main():
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object", name="torch")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    said = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and len(said.splitlines()) == 1
        and "libtorch_cpu.so" in said
        and "memory" in said
    )


def test_signal_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, *ending.ENDING)]
    with pytest.raises(SystemExit):
        run_command(lambda: None)
    with console.stop_on_interrupt() as stop:
        assert not stop() and signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, *ending.ENDING)] == before


def test_nohup_ignores_sighup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with console.stop_on_interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ignored_signals_stay_ignored(name):
    """The shell starts what a script puts in the background with SIGINT ignored."""
    number, heard = getattr(signal, name), []
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with ending.interrupted_by((number,), lambda *given: heard.append(given)):
            os.kill(os.getpid(), number)
        assert not heard and signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_second_sigterm_does_not_end_what_the_first_began(capsys):
    with pytest.raises(ending.Interrupted) as caught, console.stop_on_interrupt() as stop:
        for _ in range(2):  # batch systems send more than one
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        raise KeyboardInterrupt  # what the loop does when everything is saved
    assert (
        caught.value.number == signal.SIGTERM
        and capsys.readouterr().err.count("stopping after this step") == 1
    )


@pytest.mark.parametrize(
    "within, status, line",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ending.Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (ending.Interrupted(signal.SIGHUP), 129, "stopped by SIGHUP"),
    ],
)
def test_a_signal_within_a_librarys_own_error_is_that_signal(within, status, line, capsys):
    def main():
        try:
            raise within
        finally:
            # torch's, whose file was not finished
            raise RuntimeError("unexpected pos 56960 vs 56856")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == status and capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGHUP", 129)])
def test_training_saves_on_sigterm_and_goes_on_to_the_same_bits(
    archive_path, tmp_path, monkeypatch, name, status
):
    monkeypatch.chdir(tmp_path)
    flags = ("--stage", "base", "--data", archive_path, *SMALL, "--epochs", "3")
    with thin_network() as patch:
        assert call(train, *flags, "--out", "whole").status == 0
        steps = [0]
        learn = train_step()

        def send_and_learn(self, *given):
            steps[0] += 1
            if steps[0] == 5:
                os.kill(os.getpid(), getattr(signal, name))
            return learn(self, *given)

        patch.setattr("tinynet.training.loop.Training.train_batch", send_and_learn)
        ran = call(train, *flags, "--out", "run")
        assert ran.status == status and ran.err.splitlines()[-1] == f"stopped by {name}"
        assert "continue with: python -m tinynet.train --resume run" in ran.err
        assert call(train, "--resume", "run").status == 0
        ours, theirs = (
            torch.load(f"{run}/base/best.pt", weights_only=True)["weights"]
            for run in ("run", "whole")
        )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def train_step():
    from tinynet.training.loop import Training

    return Training.train_batch


# --- what killed processes leave ---


def leftovers(folder, *owners):
    made = [folder / f".best.pt.{owner}.partial" for owner in owners]
    for path in made:
        path.write_bytes(b"70 MB")
    (folder / ".packed.tinynet-elsewhere-12.partial").mkdir()
    (folder / ".packed.tinynet-elsewhere-12.partial/a.npy").write_bytes(b"1.5 GB")
    return made


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path, monkeypatch):
    mine, dead, foreign = leftovers(
        tmp_path,
        f"tinynet-{files._HOST}-{os.getpid()}",
        f"tinynet-{files._HOST}-{NOBODY}",
        f"tinynet-elsewhere-{NOBODY}",
    )
    monkeypatch.setattr(files, "_own_partials", {(os.getpid(), mine)})
    # of a process with this one's number
    earlier = tmp_path / f".last.pt.tinynet-{files._HOST}-{os.getpid()}.partial"
    earlier.write_bytes(b"70 MB")
    others = [
        tmp_path / ".movie.mp4.partial",
        tmp_path / f".movie.{NOBODY}.partial",
        tmp_path / "best.pt",
    ]
    for path in others:
        path.write_bytes(b"of another program")
    with atomic_file(tmp_path / "scores.jsonl") as stream:
        stream.write(b"rows")
    assert not dead.exists() and not earlier.exists()
    # One of another machine may be at work, until it has not written for an hour.
    assert mine.exists() and foreign.exists() and all(path.exists() for path in others)
    old = time.time() - 4000
    for path in (
        foreign,
        tmp_path / ".packed.tinynet-elsewhere-12.partial/a.npy",
        tmp_path / ".packed.tinynet-elsewhere-12.partial",
    ):
        os.utime(path, (old, old))
    clear_leftovers(tmp_path)  # each process looks once
    assert foreign.exists()
    monkeypatch.setattr(files, "_cleared_folders", set())
    clear_leftovers(tmp_path)
    assert not foreign.exists() and not list(tmp_path.glob(".packed*"))
    assert mine.exists() and all(path.exists() for path in others)


def test_what_the_first_edition_left_is_cleared_where_its_file_is_written_again(tmp_path):
    first, alive = (tmp_path / f".best.pt.{process}.partial" for process in (NOBODY, os.getpid()))
    folder = tmp_path / ".a.packed.partial"
    first.write_bytes(b"70 MB")
    alive.write_bytes(b"70 MB")
    folder.mkdir()
    with atomic_file(tmp_path / "best.pt"), atomic_folder(tmp_path / "a.packed"):
        pass
    assert not first.exists() and alive.exists() and not folder.exists()


def test_a_partial_folder_of_an_earlier_process_with_this_number_is_replaced(
    archive, packed, tmp_path
):
    left = tmp_path / f".a.packed.tinynet-{files._HOST}-{os.getpid()}.partial"
    left.mkdir()
    (left / "train.pictures.npy").write_bytes(b"1.5 GB")
    assert pack(archive, tmp_path / "a.packed").val.images.tolist() == packed.val.images.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["a.packed"]


def test_locks_of_other_programs_are_left_alone(tmp_path):
    others = [
        tmp_path / name
        for name in (".base.lock", ".a.packed.lock", ".scores.jsonl.lock", "poetry.lock")
    ]
    for path in (*others, tmp_path / ".base.tinynet.lock"):
        path.touch()
    clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_unfinished_folders_are_gone_after_their_block(tmp_path):
    with pytest.raises(KeyError), temporary_folder(tmp_path / "a") as room:
        (room / "b").write_text("c")
        raise KeyError
    assert not list(tmp_path.iterdir())


# --- file systems ---


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    file, folder = tmp_path / "best.pt", tmp_path / "a.packed"
    for link in (file, folder):
        link.symlink_to(tmp_path / "disk" / link.name)
    for _ in range(2):
        with atomic_file(file) as stream, atomic_folder(folder) as partial:
            stream.write(b"weights")
            (partial / "a").touch()
        assert file.is_symlink() and (tmp_path / "disk/best.pt").read_bytes() == b"weights"
        assert folder.is_symlink() and (tmp_path / "disk/a.packed/a").exists()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs the devices of Unix")
def test_devices_are_written_to_and_not_replaced(monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("replaces a device"))
    reader, writer = os.pipe()
    try:
        for path in ("/dev/null", f"/dev/fd/{writer}"):
            with atomic_file(path) as stream:
                stream.write(b"rows")
        assert os.read(reader, 9) == b"rows" and Path("/dev/null").is_char_device()
    finally:
        os.close(reader)
        os.close(writer)


def test_a_system_without_locks_gets_no_files_of_locks(tmp_path, monkeypatch, capsys):
    files._note_no_locks.cache_clear()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for _ in range(2):
        with locked(tmp_path / "base", lambda: pytest.fail("nobody holds it")):
            assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("has no file locks") == 1


@needs_flock
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_another_lock_is_taken_and_without_any_work_goes_on(
    tmp_path, monkeypatch, capsys, number
):
    import fcntl

    def missing(*_):
        raise OSError(number, os.strerror(number))

    files._note_no_locks.cache_clear()
    monkeypatch.setattr(fcntl, "flock", missing)
    code = (
        "import fcntl, sys\n"
        f"fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError({number}, 'no flock'))\n"
        "from tinynet.files import locked\n"
        "def busy(): raise SystemExit(7)\n"
        "with locked(sys.argv[1], busy): pass"
    )
    with locked(tmp_path / "lock", lambda: None):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], cwd=ROOT)
    assert other.returncode == 7 and capsys.readouterr().err == ""
    monkeypatch.setattr(fcntl, "lockf", missing)
    for _ in range(2):
        with locked(tmp_path / "lock", lambda: pytest.fail("nobody holds it")):
            assert [path.name for path in tmp_path.iterdir()] == [".lock.tinynet.lock"]
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("has no file locks") == 1


@needs_flock
def test_other_lock_errors_are_raised(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(
        fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken"))
    )
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "lock", lambda: None):
        pass


ERRORS = [
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOMEM,
    errno.ETIMEDOUT,
    errno.EPERM,
]


@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("command", [train, data_command, predict])
def test_disk_errors_print_no_traceback(tmp_path, monkeypatch, command, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), str(tmp_path / "a file"))

    monkeypatch.chdir(tmp_path)
    for place in (
        "tinynet.data.download.find_data",
        "tinynet.data.image_folder.expand",
        "tinynet.training.config.open_data",
    ):
        monkeypatch.setattr(place, fail)
    ran = call(
        command,
        *{
            train: ["--stage", "base"],
            data_command: ["verify"],
            predict: ["a.jpg", "--arch", "resnet18"],
        }[command],
    )
    (line,) = ran.err.splitlines()
    assert (
        ran.status == 2
        and line.startswith("error: ")
        and "a file" in line
        and os.strerror(number) in line
    )
    assert ("--cache" in line) == (
        command is not data_command
        and number
        in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
    )


@pytest.mark.parametrize(
    "error, word",
    [
        (OSError("no number at all"), "no number at all"),
        (OSError(errno.EIO, "broken", 7), "broken"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you "
                "tried"
            ),
            "out of memory",
        ),
    ],
)
def test_errors_without_a_name_or_a_number_take_a_line_too(error, word, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and word in line


# --- outputs without letters ---


def test_unencodable_characters_do_not_lose_output(tmp_path, monkeypatch):
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)
    )
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main():
        console.log("note: größer")
        print("naïve", "caf\udce9.jpg", "終")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 0
    assert (
        out.buffer.getvalue() == b"na?ve caf?.jpg ?\n"
        and err.buffer.getvalue() == b"note: gr??er\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_do_not_end_the_work(archive_path, tmp_path, closed):
    line = f"{sys.executable} -m tinynet.data verify --data {archive_path} --json {closed}"
    ran = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    assert (not ran.stdout) == (">&-" in closed.split()) and (not ran.stderr) == (
        "2>&-" in closed.split()
    )
    assert not ran.stdout or json.loads(ran.stdout)


def test_only_the_reader_of_the_output_may_leave(capfd):
    def main():
        # of a worker, or of a file that is a pipe
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2 and capfd.readouterr().err == "error: disk: Broken pipe\n"


def test_files_whose_names_are_no_text_are_predicted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Image.new("RGB", (70, 70)).save("a.png")
    os.rename("a.png", os.path.join(b"images", b"caf\xe9.png"))
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000)
    )
    with thin_network() as patch:
        patch.setattr("torchvision.models.get_model", lambda *_, **__: network)
        ran = call(predict, "images", "--arch", "resnet18", "--weights", "none", "--json")
    assert ran.status == 0 and json.loads(ran.out)[0]["file"] == "images/caf\udce9.png"


def test_a_recipe_keeps_a_path_whose_bytes_are_no_text(tmp_path):
    files.write_json(tmp_path / "a.json", {"data": "caf\udce9", "name": "naïve"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "data": "caf\udce9",
        "name": "naïve",
    }


def test_messages_that_nobody_reads_do_not_end_the_work(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text=""):
            raise OSError(errno.EIO, "the terminal is gone")

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    work = []

    def main():
        console.log("note")
        with console.progress(total=2) as bar:
            bar.update()
            work.append("went on")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 0 and work == ["went on"]


# --- workers ---


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(workers, "_FEW", 0)
    monkeypatch.setattr(workers, "CHUNK", 7)
    monkeypatch.setattr(packed_module, "CHUNK", 7)
    monkeypatch.setattr(workers, "_worker_count", lambda: 2)


def test_packing_goes_on_in_one_process_where_workers_die(
    archive, packed, tmp_path, monkeypatch, capsys, two_workers
):
    monkeypatch.setattr(packed_module, "_decode_into", deadly_in_a_worker)
    assert pack(archive, tmp_path / "packed").train.images.tolist() == packed.train.images.tolist()
    assert capsys.readouterr().err.count("continuing in one process") == 1


DECODE_INTO, PARENT = packed_module._decode_into, os.getpid()


def deadly_in_a_worker(read, job):
    if os.getpid() != PARENT and job[1] == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return DECODE_INTO(read, job)


@pytest.mark.parametrize(
    "error", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), MemoryError("fork")]
)
def test_packing_goes_on_in_one_process_where_none_can_be_started(
    archive, packed, tmp_path, monkeypatch, capsys, two_workers, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(workers.ProcessPoolExecutor, "map", fail)
    again = pack(archive, tmp_path / "packed")
    assert again.val.images.tolist() == packed.val.images.tolist()
    assert "continuing in one process" in capsys.readouterr().err


def test_an_error_within_a_worker_is_that_of_one_process(
    archive, tmp_path, monkeypatch, capsys, two_workers
):
    monkeypatch.setattr(packed_module, "_decode_into", no_room)
    with pytest.raises(OSError, match="No space") as caught:
        pack(archive, tmp_path / "packed")
    assert caught.value.errno == errno.ENOSPC and "one process" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def no_room(read, job):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from tinynet.data.workers import _start_process\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(2, initializer=_start_process, initargs=(None, None, ''))\n"
        "    jobs = [pool.submit(os.getpid) for _ in range(20)]\n"
        "    print(*{job.result() for job in jobs}, *pool._processes, flush=True)\n"
        "    time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    children = set(map(int, parent.stdout.readline().split()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(files._is_running(child) and "Z" not in state(child) for child in children):
        assert time.monotonic() < deadline, "a worker has outlived its parent"
        time.sleep(0.05)
    assert children


def state(process):
    """Z for one that has ended and that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError:
        return "Z"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An archive of more images than one process packs alone."""
    from tinynet.data.synthetic import synthetic

    return synthetic(
        tmp_path_factory.mktemp("many") / "many.zip", classes=6, train=180, val=1, test=1
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("call_of", ["open_packed(sys.argv[2])", "[1 for _ in run_in_thread()]"])
def test_a_script_without_a_main_guard_does_not_wait_for_itself(many, tmp_path, method, call_of):
    (tmp_path / "script.py").write_text(
        "import multiprocessing, sys, threading\n"
        "multiprocessing.set_start_method(sys.argv[1], force=True)\n"
        "from tinynet.data.packed import open_packed\n"
        "def run_in_thread():\n"
        "    thread = threading.Thread(target=open_packed, args=(sys.argv[2],))\n"
        "    thread.start(); thread.join(); return [1]\n"
        f"{call_of}\n"
        "print('packed')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TINYNET_PROGRESS": "0"}
    ran = subprocess.run(
        [sys.executable, "script.py", method, str(many)],
        cwd=tmp_path,
        env=environment,
        timeout=120,
        capture_output=True,
        text=True,
    )
    for folder in many.parent.glob("cache/*"):
        __import__("shutil").rmtree(folder)
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "packed", ran.stderr
    lines = [
        line
        for line in ran.stderr.splitlines()
        if "resource_tracker" not in line and "warnings.warn" not in line
    ]
    assert "thread" in call_of or (len(lines) == 1 and "__main__" in lines[0]), lines
    assert "Traceback" not in ran.stderr


def test_a_guarded_script_and_a_notebook_may_start_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_start_method", lambda: "spawn")
    path = tmp_path / "script.py"

    def asked(code):
        path.write_text(code)
        workers._log_missing_guard.cache_clear()
        main = type(sys)("__main__")
        main.__file__ = str(path)
        monkeypatch.setitem(sys.modules, "__main__", main)
        space = {"__name__": "__main__", "can_start": workers.can_start}
        exec(compile(code, str(path), "exec"), space)
        return space["answer"]

    assert asked("answer = can_start()\n") is False
    assert asked("if __name__ == '__main__':\n    answer = can_start()\n") is True
    assert asked("import os\n\ndef f():\n    return can_start()\n\nanswer = f()\n") is False
    assert (
        asked("def f():\n    return can_start()\n\nif '__main__' == __name__:\n    answer = f()\n")
        is True
    )
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert workers.can_start() is True


@pytest.mark.parametrize("fault", ["killed", "no memory"])
def test_dead_worker_prints_one_line(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    Path("images/n01440764").mkdir(parents=True)
    for k in range(8):
        Image.new("RGB", (70, 70)).save(f"images/n01440764/{k}.png")
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000)
    )

    def die(*_):
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("cannot allocate 1 GB")

    with thin_network() as patch:
        patch.setattr("torchvision.models.get_model", lambda *_, **__: network)
        patch.setattr("tinynet.evaluation.folder.open_image", die)
        ran = call(
            folder_command,
            "--data",
            "images",
            "--arch",
            "resnet18",
            "--weights",
            "none",
            "--workers",
            "1",
            "--save-probabilities",
            "kept.npz",
        )
    line = ran.err.splitlines()[-1]
    assert (
        ran.status == 2
        and "--workers 1" in line
        and "--workers 0" in line
        and "Traceback" not in ran.err
    )
    assert not list(tmp_path.glob(".kept*")) and not Path("kept.npz").exists()


def test_a_tar_is_read_by_processes_that_share_it_alone(archive_path, tmp_path, monkeypatch):
    import tarfile
    import zipfile

    with zipfile.ZipFile(archive_path) as source:
        source.extractall(tmp_path)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as target:
        target.add(tmp_path / "tiny-imagenet-200", "tiny-imagenet-200")
    source = Archive(tmp_path / "a.tar.gz").source
    assert workers.can_start(source) is (workers._start_method() == "fork")
    monkeypatch.setattr(workers, "_start_method", lambda: "spawn")
    assert workers.can_start(source) is False


def test_a_child_that_runs_the_main_script_again_ends_at_once(archive_path, monkeypatch):
    monkeypatch.setattr(packed_module, "in_child", lambda: True)
    with pytest.raises(SystemExit):
        open_packed(archive_path)
