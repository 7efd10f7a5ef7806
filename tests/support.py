"""What several test files need: a small VGG16, the reading of a refusal, what a processor must
have.
"""

import errno
import io
import os
import re
import shlex
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from tinynet import console
from tinynet.__main__ import COMMANDS
from tinynet.compute import Compute, has_vnni
from tinynet.errors import InputError
from tinynet.flags import Parser, run_command
from tinynet.models import vgg
from tinynet.report.curves import Curves

# VGG16's layers with a sixteenth of the channels: what is tested with it does not depend on their
# number.
THIN = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]


def argv(line):
    """The words of a command line, as a shell reads them."""
    return shlex.split(line)


ON_CPU = ("--device", "cpu", "--precision", "float32")
# Flags of a base that trains in a second, with that network, on the drawn archive.
SMALL = (
    *argv("--weights none --hidden 16 --holdout 0.25 --size 32 --batch 16 --epochs 1"),
    *ON_CPU,
)

ROOT = Path(__file__).parents[1]
# The modules of whatever is started with `python -m`.
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "tinynet").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)

needs_vnni = pytest.mark.skipif(
    not has_vnni(), reason="this processor overflows where it adds 8-bit products"
)


@contextmanager
def thin_network(curves=False):
    """VGG16 is thin; no progress bars and, without `curves`, no learning curves are drawn, which
    take longer than a small training. Yields a MonkeyPatch for more.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            patch.setattr(Curves, "finish", lambda self, folder, title: folder.curves.touch())
        patch.setitem(vgg.cfgs, "D", THIN)
        patch.setenv("TINYNET_PROGRESS", "0")
        yield patch


def complaint(action, *words):
    """The message of the InputError that `action` raises: one line that holds all `words`."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message


def in_floats(images):
    """(N, H, W, 3) uint8 as a network sees them, (N, 3, H, W) in [0, 1], without tinynet."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def call(command, *arguments):
    """Run a command as the shell would, here: its exit status and what it wrote. Its advice must be
    possible.
    """
    out, err, flags = io.StringIO(), io.StringIO(), []

    def main():
        try:
            command.main([str(word) for word in arguments])
        finally:
            flags.append(console.command_flags())

    with (
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
        pytest.raises(SystemExit) as ended,
    ):
        run_command(main)
    for line in err.getvalue().splitlines() if flags[0] else ():
        assert not (impossible := impossible_flags(line, flags[0])), (impossible, line)
    return SimpleNamespace(status=ended.value.code, out=out.getvalue(), err=err.getvalue())


def succeed(command, *arguments):
    """Run a command, which must end with status 0: what it wrote."""
    ran = call(command, *arguments)
    assert ran.status == 0, ran.err
    return ran


def impossible_flags(line, current):
    """The flags in a line of advice that the command which says it, or another that the line names,
    does not have.
    """
    if "unrecognized arguments" in line or " has moved; " in line:
        return []
    own, _, others = line.partition("python -m tinynet")
    wrong = [flag for flag in FLAG.findall(own) if flag not in current]
    for module, rest in re.findall(
        r"(tinynet(?:\.\w+| [a-z-]+)?)((?:(?!python -m).)*)", f"tinynet{others}" if others else ""
    ):
        # Behind a quoted command, or after a word of the sentence, stand flags of the command that
        # speaks.
        inside, mark, behind = rest.partition("`") if "`" in rest else rest.partition(", or ")
        wrong += [flag for flag in FLAG.findall(inside) if flag not in flags_of(module)]
        wrong += [flag for flag in FLAG.findall(behind) if flag not in current]
    return wrong


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@cache
def flags_of(module):
    """All flags of a command."""
    parsers: list[Parser] = []
    running = console.command_flags()
    keep = Parser.__init__

    def remember(self, *given, **kwargs):
        parsers.append(self)
        keep(self, *given, **kwargs)

    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()),
        suppress(SystemExit),
    ):
        patch.setattr(Parser, "__init__", remember)
        name = module.removeprefix("tinynet").strip(" .").replace("_", "-")
        import_module(COMMANDS[name][0]).main(["--help"])
    console.set_flags(running)
    return {flag for parser in parsers for flag in parser._option_string_actions}


def files():
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}


def refused(command, flags, *words):
    """The command ends with status 2 and one line that holds `words`, prints nothing and leaves
    nothing behind.
    """
    before = files()
    ran = call(command, *flags)
    *said, line = ran.err.splitlines()
    assert ran.status == 2 and ran.out == "", ran.err
    assert "error" in line or "--help" in line, ran.err
    assert not [more for more in said if "error" in more.lower() or "Traceback" in more], ran.err
    for word in words:
        assert str(word) in line, line
    assert files() == before
    return len(said) + 1


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


CPU = Compute(torch.device("cpu"), torch.float32)


def val_annotations(contents):
    """val's file name -> wnid, read here without tinynet."""
    rows = [line.split("\t") for line in contents["val/val_annotations.txt"].decode().splitlines()]
    return {f"val/images/{row[0]}": row[1] for row in rows}


def rgb_pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def same_data(archive, packed):
    assert archive.wnids == packed.wnids
    for name in ("train", "val"):
        ours, theirs = archive.part(name), packed.part(name)
        stems = [[Path(file).stem for file in files] for files in (ours.files, theirs.files)]
        assert stems[0] == stems[1] and np.array_equal(ours.labels, theirs.labels)


# Depth -> how many of torchvision's layers make it, and its channels: table 1 of Simonyan &
# Zisserman, column D.
DEPTHS = {
    "relu1_1": (2, 64),
    "relu1_2": (4, 64),
    "pool1": (5, 64),
    "relu2_1": (7, 128),
    "relu2_2": (9, 128),
    "pool2": (10, 128),
    "relu3_1": (12, 256),
    "relu3_2": (14, 256),
    "relu3_3": (16, 256),
    "pool3": (17, 256),
    "relu4_1": (19, 512),
    "relu4_2": (21, 512),
    "relu4_3": (23, 512),
    "pool4": (24, 512),
    "relu5_1": (26, 512),
    "relu5_2": (28, 512),
    "relu5_3": (30, 512),
    "pool5": (31, 512),
}


PLENTY = settings(max_examples=150, deadline=None)


plain_values = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["adam", "cyclic", "flip", "head"])
)
any_value = (
    plain_values
    | st.lists(plain_values, max_size=3)
    | st.dictionaries(st.text(max_size=3), plain_values, max_size=2)
)
