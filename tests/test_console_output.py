"""What commands print: quiet, without letters, to readers who leave."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest
from support import ROOT, call, refused

from tinynet import console, evaluate
from tinynet.flags import run_command

pytestmark = pytest.mark.usefixtures("thin")


# --- quiet ---


def test_quiet_says_results_and_errors_alone(run_folder):
    loud = call(evaluate, "--split", "val", "--device", "cpu", "--json")
    quiet = call(evaluate, "--split", "val", "--device", "cpu", "--json", "--quiet")
    assert (quiet.status, quiet.out, quiet.err) == (0, loud.out, "") and loud.err
    assert call(evaluate, "--split", "val", "--device", "cpu", "--json").err  # it does not last
    refused(evaluate, ["--quiet", "--run", "nowhere"], "nowhere")


# --- a reader who leaves ---


@pytest.mark.parametrize(
    "typed", [["tinynet"], ["tinynet.train", "--help"], ["tinynet.data", "cache", "--json"]]
)
def test_a_reader_who_has_left_is_no_error(typed):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", *typed], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


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
