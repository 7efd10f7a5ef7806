"""The right outcomes: a refusal in one line, or a result that is checked number by number."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile.case import Case, Ended, Right, Unlike
from benchmarks.hostile.sandbox import Limits
from benchmarks.hostile.watching import leftovers
from benchmarks.hostile.world import SHARPNESS, digest, quarters

RIGHT, REFUSED = "right result", "refused in one line"
WRONG = (
    "traceback",
    "not one line",
    "library's lines",
    "too long",
    "too much memory",
    "wrong status",
    "wrong result",
    "other cause named",
    "wrote outside",
    "executed",
    "left over",
    "not run",
)
NOT_RUN = WRONG[-1]  # the input could not be created, which is a fault of this package
_JUDGING = 20  # seconds
_LONGEST = 5000  # characters of a readable line
_NOTES = ("predicting with ", "evaluating ", "note: ")
Check = Callable[[Ended], None]


def judge(case: Case, ended: Ended, limits: Limits) -> tuple[str, str]:
    """The outcome, and the reason if it is one of `WRONG`."""
    usual = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_JUDGING)  # the result may be a pipe
    try:
        _behaved(ended, limits)
        return case.right(ended), ""
    except Unlike as unlike:
        return unlike.outcome, unlike.reason
    except Exception as error:  # results of another shape
        return "wrong result", f"the result cannot be checked: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


def _give_up(*_: Any) -> None:
    raise TimeoutError("it took too long")


def _behaved(ended: Ended, limits: Limits) -> None:
    """Raise `Unlike` for faults that are wrong for every input."""
    for kind, outcome in (("executed", "executed"), ("wrote", "wrote outside")):
        if events := [what for name, what in ended.events if name == kind]:
            raise Unlike(outcome, "; ".join(events[:3]))
    if ended.status is None:
        raise Unlike("too long", f"stopped after {ended.seconds:.1f} s")
    if ended.memory > limits.memory:
        raise Unlike("too much memory", f"{ended.memory / 1e6:,.0f} MB")
    if "Traceback (most recent call last)" in ended.err or "Fatal Python error" in ended.err:
        raise Unlike("traceback", _last_line(ended.err))
    if ended.status < 0:
        raise Unlike("traceback", f"ended by signal {-ended.status}")
    if names := leftovers(ended):
        raise Unlike("left over", ", ".join(names[:5]))


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:300]


# --- kinds of endings ---


def refused(*words: str) -> Right:
    """Status 2, one line of error that contains all `words`, and no standard output."""

    def right(ended: Ended) -> str:
        _need(
            ended.status == 2,
            "wrong status",
            f"{ended.status}, not 2: {_last_line(ended.err)}",
        )
        _need(len(_errors(ended)) == 1, "not one line", ended.err[:300])
        _need(not ended.out, "wrong result", f"printed in addition to the error: {ended.out[:100]}")
        line = _errors(ended)[0]
        for word in words:
            _need(
                word in line, "other cause named", f"the line does not name {word!r}: {line[:300]}"
            )
        unasked = [name for name in ended.fresh if not name.startswith("out/cache/")]
        _need(not unasked, "left over", f"files of a refused command: {', '.join(unasked[:5])}")
        return REFUSED

    return right


def gives(check: Check) -> Right:
    """Status 0, no error, and a result that passes `check`."""

    def right(ended: Ended) -> str:
        _need(
            ended.status == 0,
            "wrong status",
            f"{ended.status}, not 0: {_last_line(ended.err)}",
        )
        _need(not _errors(ended), "not one line", ended.err[:300])
        check(ended)
        return RIGHT

    return right


def either(check: Check, *words: str) -> Right:
    """A refusal, or a right result."""

    def right(ended: Ended) -> str:
        return (refused(*words) if ended.status == 2 else gives(check))(ended)

    return right


def names(check: Check, *unreadable: str) -> Right:
    """Status 1, an error for each file of `unreadable`, and right results for the other files."""

    def right(ended: Ended) -> str:
        _need(
            ended.status == 1,
            "wrong status",
            f"{ended.status}, not 1: {_last_line(ended.err)}",
        )
        lines = _errors(ended)
        _need(len(lines) == len(unreadable), "not one line", ended.err[:300])
        for name in unreadable:
            _need(
                sum(name in line for line in lines) == 1,
                "wrong result",
                f"no line names {name}: {lines[:3]}",
            )
        check(ended)
        return REFUSED

    return right


def any_of(*rights: Right) -> Right:
    """The first outcome that agrees; if none does, the error of the one with the same status."""

    def right(ended: Ended) -> str:
        complaints = []
        for option in rights:
            try:
                return option(ended)
            except Unlike as unlike:
                complaints.append(unlike)
        raise min(complaints, key=lambda unlike: unlike.outcome == "wrong status")

    return right


def _need(condition: Any, outcome: str, reason: str) -> None:
    if not condition:
        raise Unlike(outcome, reason)


def need(condition: Any, reason: str) -> None:
    """Raise `Unlike` if a result is wrong."""
    _need(condition, "wrong result", reason)


def _errors(ended: Ended) -> list[str]:
    """The lines of errors; all other lines must be notes of tinynet, not of a library."""
    errors = []
    for line in ended.err.removesuffix("\n").split("\n") if ended.err else ():
        _need(
            all(character.isprintable() for character in line),
            "not one line",
            f"control characters reach the terminal: {line[:200]!r}",
        )
        _need(
            len(line) <= _LONGEST,
            "not one line",
            f"a line of {len(line):,} characters: {line[:100]}",
        )
        if line.startswith("error: "):
            errors.append(line)
        elif not line.startswith(_NOTES):
            # the rest of a line that contained a newline
            broken = errors and "Warning" not in ended.err
            raise Unlike("not one line" if broken else "library's lines", line[:300])
    return errors


# --- results ---


def rows(ended: Ended) -> list[dict[str, Any]]:
    """The rows printed with `--json`; NaN is not JSON."""

    def refuse(text: str) -> None:
        raise Unlike("wrong result", f"the rows hold {text}")

    return json.loads(ended.out, parse_constant=refuse)


def colours(expected: dict[str, Sequence], tolerance: float = 1.5) -> Check:
    """Check `predict` with the probe: file name -> colours of its quarters, and no other files."""

    def check(ended: Ended) -> None:
        by_file: dict[str, dict[str, float]] = {}
        for row in rows(ended):
            by_file.setdefault(Path(row["file"]).name, {})[row["id"]] = row["probability"]
        need(set(by_file) == set(expected), f"read {sorted(by_file)}, not {sorted(expected)}")
        for name, right in expected.items():
            difference = np.abs(np.array(quarters(by_file[name])) - np.array(right)).max()
            need(
                difference <= tolerance,
                f"{name}: the quarters are {np.round(quarters(by_file[name])).tolist()}, "
                f"not {np.round(right).tolist()}",
            )

    return check


def packed(ended: Ended, part_of_it: bool = False, boxes: bool = True, classes: int = 0) -> None:
    """Check `data pack`: files, labels, boxes and pixels are those of `ended.truth`, or of the
    archive if that is None.

    `part_of_it`: files may be missing, because damage can hide them. `classes`: additional classes
    without images, after the others.
    """
    expected = ended.truth or json.loads((ended.place.world / "truth.json").read_text())
    folders = list((ended.place.out / "cache").glob("*.packed"))
    need(len(folders) == 1, f"{len(folders)} packed folders")
    need(
        ended.out.strip() and Path(ended.place.folder, ended.out.strip()).samefile(folders[0]),
        "another folder named",
    )
    wnids = json.loads((folders[0] / "manifest.json").read_text())["wnids"]
    need(
        part_of_it
        or wnids[: len(wnids) - classes]
        == sorted({name.split("/")[1] for name in expected["train"]}),
        f"{len(wnids)} classes: {wnids[:6]}",
    )
    for part, files in expected.items():
        listed = (
            (folders[0] / f"{part}.files.txt")
            .read_bytes()
            .decode(errors="surrogateescape")
            .split("\n")[:-1]
        )
        pixels = np.load(folders[0] / f"{part}.pictures.npy")
        need(len(listed) == len(pixels), f"{part}: {len(listed)} names for {len(pixels)} images")
        same = set(listed) <= set(files) if part_of_it else sorted(listed) == sorted(files)
        need(
            same and len(set(listed)) == len(listed),
            f"{part}: other files: {sorted(set(listed) ^ set(files))[:3]}, {len(listed)}",
        )
        labels = (
            [None] * len(listed)
            if part == "test"
            else np.load(folders[0] / f"{part}.labels.npy").tolist()
        )
        places = np.load(folders[0] / f"{part}.boxes.npy").tolist()
        for name, image, label, box in zip(listed, pixels, labels, places, strict=True):
            need(files[name][0] == label, f"{name}: label {label}, not {files[name][0]}")
            need(files[name][2] == digest(image), f"{name}: other pixels")
            need(
                not boxes or box == files[name][1],
                f"{name}: box {box}, not {files[name][1]}",
            )


def part_packed(ended: Ended) -> None:
    """Check `data pack`; files and boxes may be missing."""
    packed(ended, part_of_it=True, boxes=False)


def without_boxes(ended: Ended) -> None:
    """Check `data pack`; boxes may be missing."""
    packed(ended, boxes=False)


def verified(ended: Ended) -> None:
    """Check `data verify`: its rows are those of the undamaged archive."""
    clean = json.loads((ended.place.world / "verify.json").read_text())
    need(
        rows(ended) == clean, f"other rows: {[row for row in rows(ended) if row not in clean][:2]}"
    )


def counted(ended: Ended) -> None:
    """Check `data info`: it counts the images of the undamaged archive."""
    facts = {row["what"]: row["value"] for row in rows(ended)}
    clean = json.loads((ended.place.world / "truth.json").read_text())
    for part, files in clean.items():
        need(facts[f"{part} images"] == len(files), f"{part}: {facts[f'{part} images']} images")


def faults(ended: Ended) -> str:
    """Check `data verify` with errors: status 1, and a row that is not ok."""
    _need(ended.status == 1, "wrong status", f"{ended.status}, not 1: {_last_line(ended.err)}")
    _need(not ended.err, "not one line", ended.err[:300])
    need(any(row["ok"] is False for row in rows(ended)), "no row is wrong")
    return REFUSED


def scored(splits: Sequence[str]) -> Check:
    """Check `evaluate`: the scores of these splits are those of the undamaged run."""

    def check(ended: Ended) -> None:
        clean = json.loads((ended.place.world / "scores.json").read_text())
        expected = [row for row in clean if row["split"] in splits and row["views"] == "none"]
        result = rows(ended)
        need(
            [row["split"] for row in result] == list(splits),
            f"rows of {[row['split'] for row in result]}",
        )
        for row, right in zip(result, expected, strict=True):
            for key in ("n", "top1", "top5", "loss", "ece"):
                need(
                    abs(row[key] - right[key]) < 1e-3,
                    f"{key} is {row[key]}, not {right[key]}",
                )

    return check


def answered(
    labels: Sequence[int], hues: Sequence[Sequence[float]], tolerance: float = 1.5
) -> Check:
    """Check `tinynet folder` with SqueezeNet: the labels and colours of the images in the order of
    their files, from the file of `--save-probabilities`.
    """

    def check(ended: Ended) -> None:
        (row,) = rows(ended)
        need(row["n"] == len(labels), f"{row['n']} images, not {len(labels)}")
        with np.load(ended.place.out / "saved.npz") as saved:
            need(
                saved["labels"].tolist() == list(labels),
                f"labels {saved['labels'].tolist()[:12]}, not {list(labels)[:12]}",
            )
            logs = saved["log_probabilities"][0]
        colour = (logs[:, :3] - logs[:, 999:]) / SHARPNESS * 255
        need(
            np.abs(colour - np.array(hues)).max() <= tolerance,
            f"colours {np.round(colour).tolist()[:4]}, not {np.round(hues).tolist()[:4]}",
        )
        hits = float(np.mean(logs.argmax(1) == np.array(labels)))
        need(abs(row["top1"] - hits) < 1e-6, f"top-1 {row['top1']}, not {hits}")

    return check


def named(ended: Ended) -> None:
    """Check `predict` of the red image: the output is that of the undamaged run."""
    clean = json.loads((ended.place.world / "predicted.json").read_text())
    result = rows(ended)
    need(
        [row["id"] for row in result] == [row["id"] for row in clean],
        f"classes {[row['id'] for row in result]}",
    )
    for row, right in zip(result, clean, strict=True):
        need(
            abs(row["probability"] - right["probability"]) < 1e-4,
            f"{row['id']}: probability {row['probability']}, not {right['probability']}",
        )


def red(ended: Ended) -> None:
    """Check `predict` of the red image with SqueezeNet: the first class, and the colour from its
    logits.
    """
    result = sorted(rows(ended), key=lambda row: row["id"])
    need(len(result) == 1000, f"{len(result)} classes")
    logs = np.log([row["probability"] for row in result])
    colour = (logs[:3] - logs[999]) / SHARPNESS * 255
    need(
        np.abs(colour - np.array((240, 20, 10))).max() < 1.5, f"colour {np.round(colour).tolist()}"
    )


def trained(ended: Ended) -> None:
    """Check `train`: one row for the hold-out, with numbers in their ranges, and a checkpoint."""
    (row,) = rows(ended)
    need(row["n"] == 4 and row["split"] == "holdout", f"n {row['n']} of {row['split']}")
    need(
        0 <= row["top1"] <= row["top5"] <= 1 and 0 <= row["loss"] < 1e4,
        f"top-1 {row['top1']}, loss {row['loss']}",
    )
    need((ended.place.out / "run/base/best.pt").is_file(), "no best.pt")


def page(ended: Ended) -> None:
    """Check `report`: a complete page."""
    text = (ended.place.out / "pages/run.html").read_text(encoding="utf-8")
    need(text.rstrip().endswith("</html>") and len(text) > 5000, "the page is not whole")
    need("<script>alert" not in text, "the page holds a script of the input's")
