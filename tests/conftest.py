"""One small drawn archive for all tests, made once a session."""

import signal
import zipfile

import pytest

from tinynet import console
from tinynet.data.packed import open_packed
from tinynet.data.synthetic import synthetic
from tinynet.data.tiny_imagenet import Archive


def pytest_configure(config):
    """Hear the signals that are ignored under nohup, or where a script starts the tests in the
    background.
    """
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_command():
    """No test leaves the parser of its command, whose flags advice would name, to the next."""
    yield
    console.set_flags(None)


@pytest.fixture(scope="session")
def archive_path(tmp_path_factory):
    """A zip in the official layout: 6 classes with 12 train, 4 val and 3 test pictures each,
    64x64.
    """
    return synthetic(
        tmp_path_factory.mktemp("data") / "drawn.zip", classes=6, train=12, val=4, test=3
    )


@pytest.fixture(scope="session")
def archive(archive_path):
    return Archive(archive_path)


@pytest.fixture(scope="session")
def packed(archive_path):
    return open_packed(archive_path)


@pytest.fixture
def folder(archive_path, tmp_path):
    """The extracted archive, to be changed at will."""
    with zipfile.ZipFile(archive_path) as source:
        source.extractall(tmp_path)
    return tmp_path / "tiny-imagenet-200"


@pytest.fixture
def contents(archive_path):
    """File name -> bytes of everything in the archive, as zipfile sees it."""
    with zipfile.ZipFile(archive_path) as source:
        return {
            name.removeprefix("tiny-imagenet-200/"): source.read(name) for name in source.namelist()
        }
