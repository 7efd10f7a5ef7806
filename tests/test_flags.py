"""Flags and errors: one line for what is wrong, a help text for every flag."""

import argparse
import errno
import importlib
import os

import pytest
from support import PROGRAMS, call, refused

from tinynet import compare, evaluate, fixres, predict, train, zero_shot
from tinynet import folder as folder_command
from tinynet import select_views as select_command
from tinynet import soup as soup_command
from tinynet.data import __main__ as data_command
from tinynet.errors import InputError
from tinynet.flags import run_command
from tinynet.training.plan import recipe_fields

pytestmark = pytest.mark.usefixtures("thin")


# --- misspelt flags ---


def test_a_flag_that_is_nearly_right_is_named(run_folder):
    refused(train, ["--epoch", "1"], "did you mean --epochs?", "--help")
    refused(train, ["--nonsense"], "unrecognized arguments: --nonsense; see --help")
    refused(train, [""], "an argument is empty; write a value, or leave it out; see --help")
    # a flag that was right
    refused(soup_command, ["runs/done"], "takes two runs or more, not 1; see --help")


# --- exceptions ---


def test_unexpected_exceptions_keep_their_traceback():
    for error in (ValueError("strange"), KeyError("strange"), RuntimeError("strange")):

        def main(error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            run_command(main)
        assert caught.value is error


def test_expected_exceptions_take_one_line(capsys):
    for error, status, line in (
        (InputError("what\n and how"), 2, "error: what and how"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ):

        def main(error=error):
            raise error

        with pytest.raises(SystemExit) as ended:
            run_command(main)
        assert ended.value.code == status and capsys.readouterr().err == line + "\n"


# --- help ---


def test_every_flag_has_a_help_text():
    commands = (train, evaluate, predict, fixres, compare, select_command, soup_command, zero_shot)
    first_edition = {"--taps", "--learn", "--views", "--sizes"}
    recipe = {f"--{name.replace('_', '-')}" for name in recipe_fields()}
    for module in (*commands, folder_command):
        flags = module.parser()._actions
        assert len(flags) > 8 and all(flag.help for flag in flags), module
        hidden = {flag.option_strings[0] for flag in flags if flag.help == argparse.SUPPRESS}
        assert hidden <= first_edition | (recipe if module is train else set())


@pytest.mark.parametrize(
    "words",
    [
        *([name] for name in PROGRAMS if name not in ("tinynet.data.__main__", "tinynet.__main__")),
        *(
            ["tinynet.data.__main__", part]
            for part in ("get", "verify", "pack", "info", "show", "synthetic", "cache")
        ),
    ],
)
def test_every_command_takes_quiet_and_json(words, capsys):
    name, *part = words
    with pytest.raises(SystemExit):
        importlib.import_module(name).main([*part, "--help"])
    assert {"--quiet", "--json"} <= set(
        capsys.readouterr().out.replace("]", " ").replace("[", " ").split()
    )


# --- libraries that cannot be loaded ---


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


# --- errors of disks and memory ---


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
