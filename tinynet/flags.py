"""Flags that commands share, flags from a dataclass, and one-line errors. Imports no torch."""

import argparse
import dataclasses
import errno
import os
import select
import signal
import sys
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn

from tinynet.console import as_started, command_flags, printable, set_flags, set_quiet, set_silent
from tinynet.distributed import get_world, is_lost, launched_rank, launched_size, leave, part
from tinynet.errors import InputError
from tinynet.interrupts import ENDING, Interrupted, interrupt, interrupted_by, write_always
from tinynet.signs import STOPPED, LostRank

# What a user can do at once: a sentence, and the flags that name another place.
_PLACES = ("cache", "out")
_WAYS_OUT = {
    errno.ENOSPC: ("free some space", _PLACES),
    errno.EDQUOT: ("free some space", _PLACES),
    errno.EFBIG: ("the file is too large for this file system", _PLACES),
    errno.EACCES: ("check its permissions", _PLACES),
    errno.EPERM: ("check its permissions", _PLACES),
    errno.EROFS: ("the file system is read-only", _PLACES),
    errno.ENOTDIR: ("a file is where a folder is needed", _PLACES),
    errno.EEXIST: ("a file is where a folder is needed", _PLACES),
    errno.EISDIR: ("a folder is where a file is needed; use another path", ()),
    errno.ENAMETOOLONG: ("use a shorter path", ()),
    errno.ENOENT: ("check that it exists and its disk is mounted", ()),
    errno.EMFILE: ("raise the number of open files (ulimit -n)", ()),
    errno.ENFILE: ("raise the number of open files (ulimit -n)", ()),
    errno.ENOMEM: ("close other programs, or use a smaller batch", ()),
}


def user_path(text: str) -> str:
    """A path of the command line, for argparse; `~` is the user's home directory."""
    return os.path.expanduser(text)


_DATA = "a zip, a tar, a folder of class folders, or parquet files"
OF_RUN = f"{_DATA} (default: the data of the run)"  # the help of --data for a finished run
COMMON: dict[str, dict[str, Any]] = {
    "data": dict(
        type=user_path,
        metavar="PATH",
        help=f"{_DATA} (default: $TINYNET_DATA, else data/tiny-imagenet-200.zip, which is "
        "downloaded if absent)",
    ),
    "cache": dict(
        type=user_path,
        metavar="DIR",
        help="folder for decoded images and features (default: the folder cache next to the data)",
    ),
    "labels": dict(
        type=user_path,
        metavar="FILE",
        help="file of labels, for images without class folders",
    ),
    "pack-size": dict(
        type=int,
        metavar="N",
        help="store images as squares of N pixels (default: 1.15 times --size)",
    ),
    "weights": dict(
        type=user_path,
        metavar="NAME|FILE",
        help="torchvision's name of the weights, a state-dict file, or none (default: published "
        "weights)",
    ),
    "run": dict(
        type=user_path, metavar="DIR", help="the run to use (default: the newest finished one)"
    ),
    "out": dict(
        type=user_path, metavar="DIR", help="folder of the new run (default: one below runs/)"
    ),
    "seed": dict(
        type=int,
        metavar="N",
        help="seed of weights, order, augmentation and dropout (default: that of the run, else 0)",
    ),
    "split": dict(
        default="both",
        choices=("holdout", "val", "both", "test"),
        help="the images: the hold-out, val, both, or test if it has labels (default: both)",
    ),
    "device": dict(
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="default: cuda if available, else cpu",
    ),
    "precision": dict(
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
        help="int8: for VGG16 in evaluation and its frozen layers in training (default: the "
        "fastest that the device supports)",
    ),
    "tta": dict(
        nargs="+",
        default=[],
        metavar="VIEWS",
        help="sets of test-time views: none, flip, five, ten, shift, rotate, zoom, scales:64,80, "
        "resize:72, dense, and products of them, for instance flip+scales:64,80 (default: none; "
        "evaluate: those in the run's use.json, if it has one)",
    ),
    "format": dict(
        default="table",
        choices=("table", "markdown", "csv", "json"),
        help="format of the result (default: table)",
    ),
    "json": dict(
        action="store_const",
        dest="format",
        const="json",
        default="table",
        help="print the result as a JSON array",
    ),
}


# Seconds that a rank gives another to write the line: when one ends, torchrun ends all.
_GRACE = 3.0
_running = {"command": False}  # whether this process was started to run a command
# Commands that share their work among the processes that torchrun starts.
_PARALLEL = {
    f"tinynet.{name}" for name in ("train", "evaluate", "zero_shot", "folder", "predict", "pick")
}


class Parser(argparse.ArgumentParser):
    """An argument parser with the flag `--quiet`, whose errors take one line.

    `module`: the module that the command runs as; its name, and the commands in the `description`,
    are printed as the user started tinynet. `moved`: flags of earlier versions, and the command
    line that replaces each. `prog`: the name of a subcommand, from argparse.
    """

    def __init__(
        self,
        module: str = "",
        description: str | None = None,
        moved: Mapping[str, str] | None = None,
        prog: str | None = None,
        **kwargs: Any,
    ):
        self._moved, self._parallel = moved or {}, module in _PARALLEL
        super().__init__(
            prog=prog or as_started(f"python -m {module}"),
            description=description and as_started(description),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        self.add_argument(
            "--quiet",
            nargs=0,
            action=_Quiet,
            default=argparse.SUPPRESS,
            dest=argparse.SUPPRESS,
            help="print only results and errors, no progress",
        )

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line, as argparse does; `--quiet` starts unset."""
        set_quiet(False)  # one process may run several commands
        return super().parse_args(*args, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line and become the parser of the running command."""
        set_flags(self._option_string_actions)  # a subcommand's parser is the last to do so
        if _running["command"] and launched_size() > 1 and not self._parallel:
            self.error("runs in one process; start it without torchrun")
        words = list(map(str, args[0] if args and args[0] is not None else sys.argv[1:]))
        for flag in (word.partition("=")[0] for word in words):
            if flag in self._moved:
                self.error(f"{flag} has moved; use: {as_started(self._moved[flag])}")
        self._refuse_empty(words)
        self._refuse_repeated(words[: words.index("--")] if "--" in words else words)
        return super().parse_known_args(*args, **kwargs)

    def _refuse_empty(self, words: Sequence[str]) -> None:
        """Exit with status 2 for an empty value: an empty path would mean the current folder."""
        for before, word in zip(("", *words), words, strict=False):
            flag = word.removesuffix("=") or before
            if flag in self._option_string_actions and word in ("", f"{flag}="):
                self.error(f"{flag} is empty; write a value, or leave it out")
            if not word and not before.startswith("--"):
                self.error("an argument is empty; write a value, or leave it out")

    def _refuse_repeated(self, words: Sequence[str]) -> None:
        """Exit with status 2 where a flag silently replaces the values of an earlier one.

        These are two flags for one value, such as a flag and its old name, and a flag of several
        values that is given twice.
        """
        flags: dict[str, str] = {}  # destination -> the flag that sets it
        for flag in (word.partition("=")[0] for word in words):
            action = self._option_string_actions.get(flag)
            if action is None or action.dest == argparse.SUPPRESS:
                continue
            repeated = action.dest in flags
            before = flags.setdefault(action.dest, flag)
            if action is not self._option_string_actions[before]:
                self.error(
                    f"argument {flag}: not allowed with argument {before}, which sets the same "
                    "value; use one of them"
                )
            if repeated and action.nargs in ("+", "*"):
                self.error(f"{flag} is given twice; write all its values after one {flag}")

    def error(self, message: str) -> NoReturn:
        """Print one line, with the nearest flag for an unknown one, and exit with status 2."""
        unknown = message.split() if message.startswith("unrecognized arguments: ") else []
        near = [
            flag
            for word in unknown
            if word.startswith("--")
            for flag in get_close_matches(word, self._option_string_actions, 1, 0.75)
        ]
        hint = f"did you mean {near[0]}? " if near else ""
        if _running["command"] and launched_rank():
            time.sleep(_GRACE)
            raise SystemExit(2)  # rank 0 says the same
        self.exit(2, f"{self.prog}: {message}; {hint}see --help\n")


class _Quiet(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        set_quiet(True)


def _available(*names: str) -> list[str]:
    """Those of the flags for the fields `names` that the running command has."""
    return [flag for flag in map(flag_name, names) if flag in (command_flags() or ())]


def add_common(parser: argparse._ActionsContainer, *names: str, **texts: str) -> None:
    """Add the flags called `names`, the same on every command that has them.

    `texts`: a help text of the command's own, by the name of the flag.
    """
    for name in names:
        text = {"help": texts[name]} if name in texts else {}
        parser.add_argument(f"--{name}", **COMMON[name] | text)


def add_scoring(parser: Parser, size: str) -> None:
    """Add the flags of a grid of scores: views, merges, sizes, classes and stored probabilities.

    `size`: the default of `--size`, in words.
    """
    add_common(parser, "tta")
    add_merge(parser)
    parser.add_argument(
        "--size",
        type=positive_int,
        nargs="+",
        metavar="N",
        help=f"test sizes in pixels (default: {size})",
    )
    parser.add_argument(
        "--per-class", action="store_true", help="print a row for each class, not one for all"
    )
    parser.add_argument(
        "--save-probabilities",
        type=user_path,
        metavar="FILE",
        help="write the probabilities of every view; takes one split, size and set of views",
    )


def add_merge(parser: argparse._ActionsContainer) -> None:
    """Add `--merge`, which takes several."""
    parser.add_argument(
        "--merge",
        nargs="+",
        default=["mean"],
        metavar="MERGE",
        help="how the probabilities of views are merged: mean, gmean, max, vote, sharpen "
        "(default: mean)",
    )


def add_network(parser: argparse._ActionsContainer) -> None:
    """Add the flags that name a pretrained network."""
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help="a torchvision classifier, or timm/NAME or timm/NAME.TAG for one of timm",
    )
    parser.add_argument(
        "--weights",
        type=user_path,
        metavar="NAME|FILE",
        help="torchvision's name of the weights, a state-dict file, or none (default: the "
        "library's default weights, or timm's TAG)",
    )


def add_pretrained(parser: argparse._ActionsContainer) -> None:
    """Add the flags of a pretrained network and of its image preparation."""
    add_network(parser)
    parser.add_argument(
        "--resize",
        type=positive_int,
        metavar="N",
        help="side of the image before the crop (default: the published one)",
    )
    parser.add_argument(
        "--resize-mode",
        choices=("shorter", "squash"),
        help="shorter: resize the shorter side, keep the aspect ratio; squash: resize both sides "
        "(default: the published one)",
    )
    parser.add_argument(
        "--interpolation",
        choices=("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
        help="PIL's method for the resize (default: the published one)",
    )


def positive_int(text: str) -> int:
    """A whole number greater than 0, for argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return number


def refuse_others(parser: Parser, args: argparse.Namespace, use: str, allowed: set[str]) -> None:
    """Exit with status 2 if a flag was given that this `use` of the command does not take."""
    names = {name for name in vars(args) if getattr(args, name) != parser.get_default(name)}
    if wrong := sorted(names - allowed):
        parser.error(f"{use} takes no {', '.join(map(flag_name, wrong))}")


def refuse_twice(paths: Sequence[str]) -> None:
    """Raise `InputError` if two of the paths are one file or folder."""
    places = [os.path.realpath(path) for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            path, first = paths[number], paths[places.index(place)]
            names = f"{path} is named twice" if path == first else f"{path} is the same as {first}"
            raise InputError(f"{names}; name different ones")


def flag_name(field: str) -> str:
    """`max_lr` -> `--max-lr`."""
    return "--" + field.replace("_", "-")


def add_fields(
    parser: argparse._ActionsContainer,
    kind: type,
    recipe: str,
    values: Sequence[Any],
    hidden: bool = False,
) -> None:
    """Add a flag for every field of the dataclass `kind`; a flag that is not given has no value.

    The help of a flag is the field's metadata `help` and the values of the `recipe`; `hidden`: the
    flags are not in the help. The annotation of a field gives its type: int, float, str, bool, a
    Literal, an optional of these (`none`), or a tuple (several values; none at all is empty).
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        texts = [_text(getattr(value, field.name)) for value in values]
        text = texts[0] if len(set(texts)) == 1 else " / ".join(texts)
        how = dict(dest=field.name, default=argparse.SUPPRESS, **_flag_type(hints[field.name]))
        help_text = f"{field.metadata['help']} ({recipe}: {text})".replace("%", "%%")
        parser.add_argument(
            flag_name(field.name), help=argparse.SUPPRESS if hidden else help_text, **how
        )
        if old := field.metadata["was"]:
            parser.add_argument(flag_name(old), help=argparse.SUPPRESS, **how)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "no values"
    return "none" if value is None else str(value)


def _flag_type(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        plain = _flag_type(next(i for i in inner if i is not type(None)))
        convert = plain.get("type", str)

        def optional(text: str) -> Any:
            return None if text == "none" else convert(text)

        optional.__name__ = f"{convert.__name__} or none"  # what argparse calls it in its error
        return plain | {"type": optional}
    if origin is tuple:
        return {"nargs": "*", "action": _Tuple, "type": inner[0], "metavar": "X"}
    if origin is typing.Literal:
        return {"choices": inner}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": "X"}


class _Tuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command: mistakes in the input take one line and status 2, Ctrl-C one line and status
    130.

    SIGTERM and SIGHUP do what Ctrl-C does, with status 143 and 129.
    """
    write_always()
    _running["command"] = True
    if launched_rank():  # rank 0 speaks and prints the results
        set_silent(True)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    try:
        _run(main)
        part()
    except SystemExit as error:
        if error.code in (None, 0, 1):  # all ranks end so
            with suppress(LostRank):
                part()
        raise
    except (InputError, FloatingPointError, LostRank) as error:
        # FloatingPointError: a training that diverged says what to lower
        _end(f"error: {error}", 2)
    except Interrupted as error:
        _stopped(error)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError as error:
        if not _reader_has_left():
            _end(f"error: {_what_failed(error)}", 2)  # it was another pipe
        # else the flush at exit fails again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(LostRank):
            part()
        raise SystemExit(0) from None
    except OSError as error:
        _end(f"error: {_what_failed(error)}", 2)
    except ImportError as error:
        if (error.name or "").startswith("tinynet"):
            raise
        _end(
            f"error: a library cannot be loaded ({error}); allow more memory (ulimit -v), or "
            "install tinynet again",
            2,
        )
    except Exception as error:
        # libraries that were interrupted raise their own
        if isinstance(error.__context__, Interrupted):
            _stopped(error.__context__)
        if isinstance(error.__context__, KeyboardInterrupt):
            _end("interrupted", 130)
        if get_world().size > 1 and is_lost(error):
            _end(f"error: {get_world().lost(error)}", 2)
        if not _is_out_of_memory(error):
            raise
        flags = " or ".join(_available("batch", "size", "workers"))
        _end(
            "error: out of memory; close other "
            f"programs{f', or use a smaller {flags}' if flags else ''}",
            2,
        )
    finally:
        set_flags(None)
    raise SystemExit(0)


def _stopped(error: Interrupted) -> NoReturn:
    if reason := get_world().whom():  # then torchrun has asked this one to end
        _end(f"error: {reason}", 2)
    _end(f"stopped by {signal.Signals(error.number).name}", 128 + error.number)


def _reader_has_left() -> bool:
    """Whether nobody reads standard output any more, as after `| head`."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows cannot tell
        return True


def _run(main: Callable[[], None]) -> None:
    try:
        with interrupted_by((signal.SIGINT, *ENDING), interrupt):
            main()
    finally:
        sys.stdout.flush()  # at exit it would be too late to be silent about a reader who has left


def _what_failed(error: OSError) -> str:
    """What an `OSError` is about, and what to do, naming flags of this command alone."""
    names = [
        os.fsdecode(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, (str, bytes))
    ]
    what = f"{' -> '.join(names) or 'disk'}: {error.strerror or str(error) or type(error).__name__}"
    reason, places = _WAYS_OUT.get(error.errno or 0, ("", ()))
    flags = _available(*places)
    return "; ".join(
        filter(
            None, (what, reason, f"use another place with {' or '.join(flags)}" if flags else "")
        )
    )


def _is_out_of_memory(error: Exception) -> bool:
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    # where torch is not loaded, none of its errors can be meant
    device = sys.modules.get("tinynet.compute")
    return device is not None and device.out_of_memory(error)


def _end(line: str, status: int) -> NoReturn:
    fault = line.startswith("error: ")
    if leave(line.removeprefix("error: ") if fault else STOPPED):
        # over a progress bar; in a file it would be a line of its own
        start = "\r" if sys.stderr.isatty() else ""
        print(start + printable(" ".join(as_started(line).split())), file=sys.stderr)
    else:
        time.sleep(_GRACE)
    if get_world().size > 1:  # at exit, torch would wait for ranks that are lost
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)
