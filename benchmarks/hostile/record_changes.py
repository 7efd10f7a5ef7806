"""Changes of the text files of a run: tables of cases, and the functions for the changes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], Any]


def _halve(path: Path) -> None:
    """Keep the first half of a file, which ends within a line."""
    data = path.read_bytes()
    end = len(data) // 2
    if b"\n" in data[end - 1 : end + 1]:  # half of the lines would be right
        end -= 3
    path.write_bytes(data[:end] + b"\n")


def _puts(content: bytes | str) -> Change:
    return lambda path: path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def _instead(put: Change) -> Change:
    return lambda path: (path.unlink(), put(path))


def _set(*keys: Any, to: Any) -> Change:
    """Replace a value somewhere in a JSON file."""

    def change(path: Path) -> None:
        value = json.loads(path.read_text())
        holder = value
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = to
        path.write_text(json.dumps(value))

    return change


def _without(*keys: Any) -> Change:
    def change(path: Path) -> None:
        value = json.loads(path.read_text())
        holder = value
        for key in keys[:-1]:
            holder = holder[key]
        del holder[keys[-1]]
        path.write_text(json.dumps(value))

    return change


def _row(change: Callable[[dict[str, Any]], Any], kind: str | None = None) -> Change:
    """Change the last row of that kind."""

    def changed(path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        at = max(
            (number for number, row in enumerate(rows) if kind in (None, row.get("kind"))),
            default=0,
        )
        rows[at : at + 1] = [change(row) for row in rows[at : at + 1]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return changed


def _more(line: bytes | str) -> Change:
    """Add a line at the end."""
    encoded = line if isinstance(line, bytes) else line.encode()
    return lambda path: path.write_bytes(path.read_bytes() + encoded + b"\n")


ANY_FILE: dict[str, Change] = {
    "empty": _puts(""),
    "blank": _puts(" \n\n"),
    "text": _puts("no json\n"),
    "list": _puts("[1, 2]\n"),
    "string": _puts('"recipe"\n'),
    "number": _puts("3\n"),
    "null": _puts("null\n"),
    "binary": _puts(bytes(range(256)) * 9),
    "nuls": _puts(bytes(1000)),
    "latin-1": _puts(b'{"a": "\xe9"}\n'),
    "deep": _puts("[" * 100_000 + "\n"),
    "deep-whole": _puts("[" * 100_000 + "]" * 100_000 + "\n"),
    "5000-digits": _puts('{"seed": ' + "9" * 5000 + "}\n"),
    "folder": _instead(Path.mkdir),
    "pipe": _instead(os.mkfifo),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "zeros": _instead(lambda path: path.symlink_to("/dev/zero")),
    "half": _halve,
    "sparse-5-gb": lambda path: os.truncate(path, 5 << 30),
}

INSTEAD = ("folder", "pipe", "loop", "zeros")
_KEYS = ("recipe", "data", "stages", "weights", "seed", "cache", "start_run", "start_stage")
_FACTS = (
    "pictures",
    "device",
    "versions",
    "command",
    "classes",
    "data_digest",
    "split_digest",
    "start_digest",
    "stage",
)
_TYPES = {"null": None, "text": "x", "number": 3, "list": [1], "dict": {"a": 1}}
RECIPES: dict[str, Change] = {
    **{f"without-{name}": _without(name) for name in _KEYS},
    **{f"without-{name}": _without("recipe", name) for name in ("data", "network", "base", "name")},
    **{f"recipe-{title}": _set("recipe", to=value) for title, value in _TYPES.items()},
    **{f"base-{title}": _set("recipe", "base", to=value) for title, value in _TYPES.items()},
    **{f"network-{title}": _set("recipe", "network", to=value) for title, value in _TYPES.items()},
    "unknown-field": _set("recipe", "base", "more", to=1),
    **{
        f"epochs-{title}": _set("recipe", "base", "epochs", to=value)
        for title, value in {"text": "1", "null": None, "0": 0, "negative": -1, "list": [1]}.items()
    },
    **{
        f"size-{title}": _set("recipe", "base", "size", to=value)
        for title, value in {
            "text": "32",
            "null": None,
            "0": 0,
            "negative": -32,
            "nan": float("nan"),
        }.items()
    },
    **{
        f"batch-{title}": _set("recipe", "base", "batch", to=value)
        for title, value in {"text": "6", "1": 1, "null": None}.items()
    },
    "stages-null": _set("stages", to=None),
    "stages-number": _set("stages", to=3),
    "hidden-words": _set("recipe", "network", "hidden", to=["x"]),
    "trainable-unknown": _set("recipe", "base", "trainable", to=["conv9"]),
    "data-number": _set("recipe", "data", to=3),
}
# Values that only some commands read, or that may differ.
RECIPES_DOUBTFUL: dict[str, Change] = {
    **{f"without-{name}": _without(name) for name in _FACTS},
    **{
        f"{name}-{title}": _set(name, to=value)
        for name in ("pictures", "device", "versions", "command", "data_digest")
        for title, value in _TYPES.items()
    },
    "bom": lambda path: path.write_text(path.read_text(), encoding="utf-8-sig"),
    "utf-16": lambda path: path.write_text(path.read_text(), encoding="utf-16"),
    "keys-twice": lambda path: path.write_text(
        path.read_text().replace('"seed": 0', '"seed": 0, "seed": "x"')
    ),
    "seed-text": _set("seed", to="x"),
    "seed-huge": _set("seed", to=10**400),
    "seed-nan": _set("seed", to=float("nan")),
    "seed-negative": _set("seed", to=-1),
    "weights-number": _set("weights", to=3),
    "weights-nul": _set("weights", to="\0"),
    "data-nul": _set("data", to="\0"),
    "data-above": _set("data", to="../../../../etc"),
    "data-text": _set("data", to="nowhere.zip"),
    "data-is-null": _set("data", to=None),
    "data-list": _set("data", to=[1]),
    "cache-number": _set("cache", to=3),
    "cache-nul": _set("cache", to="\0"),
    "start-run-number": _set("start_run", to=3),
    "stage-other": _set("stage", to="finetune"),
    "stages-unknown": _set("stages", to=["x"]),
    "stages-empty": _set("stages", to=[]),
    "stages-above": _set("stages", to=["../../above"]),
    "holdout-2": _set("recipe", "data", "holdout", to=2),
    "holdout-text": _set("recipe", "data", "holdout", to="x"),
    "holdout-nan": _set("recipe", "data", "holdout", to=float("nan")),
    "split-unknown": _set("recipe", "data", "split_kind", to="x"),
    "split-seed-text": _set("recipe", "data", "split_seed", to="x"),
    "split-seed-huge": _set("recipe", "data", "split_seed", to=2**64),
    "per-class-huge": _set("recipe", "data", "per_class", to=10**9),
    "name-script": _set("recipe", "name", to="<script>alert(1)</script>"),
    "name-number": _set("recipe", "name", to=3),
    "name-surrogate": _set("recipe", "name", to="\ud800"),
    "epochs-huge": _set("recipe", "base", "epochs", to=1),
    "batch-huge": _set("recipe", "base", "batch", to=10**9),
    "batch-half": _set("recipe", "base", "batch", to=6.5),
    "size-huge": _set("recipe", "base", "size", to=10**9),
    "size-half": _set("recipe", "base", "size", to=32.5),
    "cached-epochs-huge": _set("recipe", "base", "cached_epochs", to=10**12),
    "cached-epochs-text": _set("recipe", "base", "cached_epochs", to="2"),
    "format-of-the-future": _set("format", to=3),
    "format-text": _set("format", to="x"),
    "format-list": _set("format", to=[2]),
    "format-1": _set("format", to=1),
    "old-and-new-name": _set("recipe", "base", "learn", to=["head"]),
    "hidden-huge": _set("recipe", "network", "hidden", to=[10**9]),
    "features-unknown": _set("recipe", "network", "features", to=["relu9:mean"]),
    "features-numbers": _set("recipe", "network", "features", to=[1]),
    "lr-infinite": _set("recipe", "base", "lr", to=float("inf")),
    "lr-text": _set("recipe", "base", "lr", to="x"),
    "optimizer-unknown": _set("recipe", "base", "optimizer", to="x"),
    "schedule-unknown": _set("recipe", "base", "schedule", to="x"),
    "feature-type-unknown": _set("recipe", "base", "feature_dtype", to="x"),
    "feature-type-module": _set("recipe", "base", "feature_dtype", to="nn"),
    "flip-unknown": _set("recipe", "base", "flip", to="x"),
    "device-type-unknown": _set("device", "type", to="x"),
    "device-precision-unknown": _set("device", "precision", to="x"),
    "trainable-text": _set("recipe", "base", "trainable", to="head"),
    "pictures-text": _set("pictures", "train", to="x"),
    "versions-script": _set("versions", to={"torch": "<script>alert(1)</script>"}),
    "command-script": _set("command", to=["<script>alert(1)</script>"]),
    "digest-list": _set("split_digest", to=[1]),
}
CLASSES: dict[str, Change] = {
    **{
        f"classes-{title}": _set("classes", to=value)
        for title, value in {
            **_TYPES,
            "names-null": {"n1": None},
            "names-numbers": {"n1": 3},
            "names-lists": {"n1": ["a"]},
            "escape": {"n1": "\x1b[31m"},
        }.items()
    },
}

_EPOCH, _STEP = "epoch", "step"
LOGS: dict[str, Change] = {
    "a-line-more-text": _more("no json"),
    "a-line-more-list": _more("[1]"),
    "a-line-more-null": _more("null"),
    "a-line-more-empty": _more("{}"),
    "a-line-more-binary": _more(b"\xff\xfe"),
    "a-line-more-blank": _more(""),
    "a-line-more-kind": _more('{"kind": "other", "step": 1}'),
    "a-line-more-half": lambda path: path.write_text(path.read_text() + '{"kind": "ep'),
    "a-line-more-10-mb": lambda path: _more("x" * 10_000_000)(path),
    "crlf": lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
    "bom": lambda path: path.write_text(path.read_text(), encoding="utf-8-sig"),
    "utf-16": lambda path: path.write_text(path.read_text(), encoding="utf-16"),
    **{
        f"epoch-without-{name}": _row(
            lambda row, name=name: {k: v for k, v in row.items() if k != name}, _EPOCH
        )
        for name in ("kind", "epoch", "step", "loss", "seconds", "holdout")
    },
    **{
        f"epoch-{name}-{title}": _row(
            lambda row, name=name, value=value: {**row, name: value}, _EPOCH
        )
        for name in ("epoch", "step", "loss", "seconds", "holdout")
        for title, value in {
            "null": None,
            "text": "x",
            "list": [1],
            "nan": float("nan"),
            "huge": 10**400,
        }.items()
    },
    **{
        f"step-without-{name}": _row(
            lambda row, name=name: {k: v for k, v in row.items() if k != name}, _STEP
        )
        for name in ("step", "lr", "loss")
    },
    **{
        f"step-{name}-{title}": _row(
            lambda row, name=name, value=value: {**row, name: value}, _STEP
        )
        for name in ("lr", "loss", "step")
        for title, value in {
            "null": None,
            "text": "x",
            "infinite": float("inf"),
            "huge": 1e308,
        }.items()
    },
    "holdout-top1-2": _row(lambda row: {**row, "holdout": {**row["holdout"], "top1": 2}}, _EPOCH),
    "holdout-top1-text": _row(
        lambda row: {**row, "holdout": {**row["holdout"], "top1": "x"}}, _EPOCH
    ),
    "holdout-without-top1": _row(lambda row: {**row, "holdout": {}}, _EPOCH),
    "epochs-10,000": lambda path: path.write_text(
        path.read_text() + path.read_text().splitlines(True)[-1] * 10_000
    ),
}
SCORES: dict[str, Change] = {
    "a-line-more-text": _more("no json"),
    "a-line-more-list": _more("[1]"),
    "a-line-more-null": _more("null"),
    "a-line-more-empty": _more("{}"),
    "a-line-more-binary": _more(b"\xff\xfe"),
    "a-line-more-half": lambda path: path.write_text(path.read_text() + '{"split": "v'),
    **{
        f"without-{name}": _row(lambda row, name=name: {k: v for k, v in row.items() if k != name})
        for name in ("split", "views", "merge", "size", "n", "top1", "low")
    },
    **{
        f"{name}-{title}": _row(lambda row, name=name, value=value: {**row, name: value})
        for name in ("split", "size", "top1", "low", "n")
        for title, value in {
            "null": None,
            "text": "x",
            "list": [1],
            "dict": {"a": 1},
            "nan": float("nan"),
            "huge": 10**400,
        }.items()
    },
    "script": _row(lambda row: {**row, "views": "<script>alert(1)</script>"}),
    "rows-100,000": lambda path: path.write_text(path.read_text().splitlines(True)[0] * 100_000),
}
