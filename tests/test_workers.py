"""Worker processes that die, cannot start, or outlive their parent."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import ROOT, argv, call, thin_network

from tinynet import folder as folder_command
from tinynet.data import copies, packing, workers
from tinynet.data.copies import open_packed
from tinynet.data.packing import pack
from tinynet.data.tiny_imagenet import Archive


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(workers, "SERIAL_LIMIT", 0)
    monkeypatch.setattr(workers, "CHUNK", 7)
    monkeypatch.setattr(packing, "CHUNK", 7)
    monkeypatch.setattr(workers, "worker_count", lambda: 2)


def test_packing_goes_on_in_one_process_where_workers_die(
    archive, packed, tmp_path, monkeypatch, capsys, two_workers
):
    parent, decode = os.getpid(), packing.decode

    def deadly_in_a_worker(data, name):
        if os.getpid() != parent and name == archive.train.files[14]:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, name)

    monkeypatch.setattr(packing, "decode", deadly_in_a_worker)
    assert pack(archive, tmp_path / "packed").train.images.tolist() == packed.train.images.tolist()
    assert capsys.readouterr().err.count("continuing in one process") == 1


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
    parent, decode = os.getpid(), packing.decode

    def no_room_in_a_worker(data, name):
        if os.getpid() != parent:
            raise OSError(errno.ENOSPC, "No space left on device")
        return decode(data, name)

    monkeypatch.setattr(packing, "decode", no_room_in_a_worker)
    with pytest.raises(OSError, match="No space") as caught:
        pack(archive, tmp_path / "packed")
    assert caught.value.errno == errno.ENOSPC and "one process" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_workers_end_with_a_parent_that_is_killed(archive_path):
    code = (
        "import multiprocessing, os, sys, time\n"
        "from tinynet.data import workers\n"
        "from tinynet.data.tiny_imagenet import Archive\n"
        "def work(read_file, job):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    workers.SERIAL_LIMIT, workers.worker_count = 0, lambda: 2\n"
        "    results = workers.in_workers(work, list(range(20)), Archive(sys.argv[1]))\n"
        "    children = multiprocessing.active_children() if next(results) != os.getpid() else []\n"
        "    print(*(child.pid for child in children), flush=True)\n"
        "    time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(archive_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    children = set(map(int, parent.stdout.readline().split()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(state(child) != "Z" for child in children):
        assert time.monotonic() < deadline, "a worker has outlived its parent"
        time.sleep(0.05)
    assert children


def state(process):
    """The letter of a process's state; Z, as of one that has ended, for one that is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("call_of", ["open_packed(sys.argv[2])", "[1 for _ in run_in_thread()]"])
def test_a_script_without_a_main_guard_does_not_wait_for_itself(
    archive_path, tmp_path, method, call_of
):
    shutil.copy(archive_path, tmp_path / "unpacked.zip")
    (tmp_path / "script.py").write_text(
        "import multiprocessing, sys, threading\n"
        "multiprocessing.set_start_method(sys.argv[1], force=True)\n"
        "from tinynet.data import workers\n"
        "from tinynet.data.copies import open_packed\n"
        "workers.SERIAL_LIMIT = 0\n"
        "def run_in_thread():\n"
        "    thread = threading.Thread(target=open_packed, args=(sys.argv[2],))\n"
        "    thread.start(); thread.join(); return [1]\n"
        f"{call_of}\n"
        "print('packed')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TINYNET_PROGRESS": "0"}
    ran = subprocess.run(
        [sys.executable, "script.py", method, "unpacked.zip"],
        cwd=tmp_path,
        env=environment,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "packed", ran.stderr
    lines = [
        line
        for line in ran.stderr.splitlines()
        if "resource_tracker" not in line and "warnings.warn" not in line
    ]
    assert "thread" in call_of or (len(lines) == 1 and "__main__" in lines[0]), lines
    assert "Traceback" not in ran.stderr


def test_a_guarded_script_and_a_notebook_may_start_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "start_method", lambda: "spawn")
    path = tmp_path / "script.py"

    def asked(code):
        path.write_text(code)
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
            *argv("--data images --arch resnet18 --weights none"),
            *argv("--workers 1 --save-probabilities kept.npz"),
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
    source = Archive(tmp_path / "a.tar.gz").container
    assert workers.can_start(source) is (workers.start_method() == "fork")
    monkeypatch.setattr(workers, "start_method", lambda: "spawn")
    assert workers.can_start(source) is False


def test_a_child_that_runs_the_main_script_again_ends_at_once(archive_path, monkeypatch):
    monkeypatch.setattr(copies, "in_child", lambda: True)
    with pytest.raises(SystemExit):
        open_packed(archive_path)
