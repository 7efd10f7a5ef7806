"""How the tests run: signals, processes, and the fixtures of `shared_fixtures.py`."""

import signal

import pytest


def pytest_configure(config):
    """Hear the signals that are ignored under nohup, or where a script starts the tests in the
    background. Load the fixtures, except where pytest-xdist only starts processes and hears from
    them: torch takes seconds to import.
    """
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared_fixtures")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Under `-n`, all tests of a file go to one process, so that the runs they share are trained
    once.
    """
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None
