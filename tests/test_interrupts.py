"""Signals."""

import os
import signal
import sys
import time

import pytest
import torch
from support import SMALL, call, succeed, thin_network

from tinynet import console, train
from tinynet import interrupts as ending
from tinynet.flags import run_command


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
        succeed(train, *flags, "--out", "whole")
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
        succeed(train, "--resume", "run")
        ours, theirs = (
            torch.load(f"{run}/base/best.pt", weights_only=True)["weights"]
            for run in ("run", "whole")
        )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def train_step():
    from tinynet.training.loop import Training

    return Training.train_batch
