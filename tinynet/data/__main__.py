"""`python -m tinynet.data`: fetch, check, pack, look at and draw the pictures."""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinynet.console import log
from tinynet.errors import InputError
from tinynet.files import read_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.report.tables import columns, show_paths
from tinynet.runs import STAGES


def _get(arguments: argparse.Namespace) -> None:
    from tinynet.data.download import get
    from tinynet.data.places import DEFAULT_PATH

    show_paths([get(Path(arguments.data or DEFAULT_PATH), arguments.force)], arguments.format)


def _verify(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from tinynet.data.download import find_data
    from tinynet.data.tiny_imagenet import Archive
    from tinynet.data.verify import verify

    place = find_data(arguments.data)
    report = verify(Archive(place))
    said = {True: "ok", False: "WRONG", None: ""}
    rows = [asdict(row) for row in report.rows]
    _show_rows(
        rows if arguments.format == "json" else [row | {"ok": said[row["ok"]]} for row in rows],
        arguments.format,
    )
    for fault in report.faults:
        log(fault)
    scope = {
        "complete": "all pictures of the official archive are here",
        "other": "not the official set of pictures",
        "part": "a part of the official archive, judged by its own consistency",
    }[report.scope]
    verdict = "nothing is wrong" if report.ok else "something is wrong, see the rows above"
    modes = f"; converted to 8-bit RGB: {report.other_modes}" if report.other_modes else ""
    log(f"{place}: {scope}: {verdict}{modes}")
    if not report.ok:
        raise SystemExit(1)


def _pack(arguments: argparse.Namespace) -> None:
    from tinynet.data.download import find_data
    from tinynet.data.packed import open_packed

    show_paths([open_packed(find_data(arguments.data), arguments.cache).folder], arguments.format)


def _info(arguments: argparse.Namespace) -> None:
    from tinynet.data.download import find_data
    from tinynet.data.packed import decode
    from tinynet.data.splits import split_train
    from tinynet.data.tiny_imagenet import SPLITS, Archive

    place = find_data(arguments.data)
    archive = Archive(place)
    split, first = split_train(archive.train.labels), archive.train.files[0]
    facts = {
        "path": str(place),
        "digest": archive.digest(),
        "classes": len(archive.wnids),
        "side": len(decode(archive.read(first), first)),
    }
    facts |= {f"{name} pictures": len(archive.part(name).files) for name in SPLITS}
    facts |= {
        "of train, without hold-out": len(split.train),
        "of train, hold-out": len(split.holdout),
        "split digest": split.digest,
    }
    _show_rows([{"what": what, "value": value} for what, value in facts.items()], arguments.format)


def _show(arguments: argparse.Namespace) -> None:
    import numpy as np

    from tinynet.data.download import find_data
    from tinynet.data.packed import decode
    from tinynet.data.splits import split_train
    from tinynet.data.tiny_imagenet import Archive, classes_called
    from tinynet.plotting import save_figure
    from tinynet.report.figures import contact_sheet

    if arguments.stage and not arguments.recipe:
        raise InputError("--stage is of a recipe; name one with --recipe")
    archive = Archive(find_data(arguments.data))
    part = archive.part("train" if arguments.split == "holdout" else arguments.split)
    rows = np.arange(len(part.files))
    if arguments.split in ("train", "holdout"):
        rows = getattr(split_train(part.labels), arguments.split)
    if arguments.named:
        if part.labels is None:
            raise InputError("--class: pictures of test have no class; choose another --split")
        rows = rows[
            np.isin(
                part.labels[rows], classes_called(arguments.named, archive.wnids, archive.names)
            )
        ]
    count = min(40, len(rows)) if arguments.count is None else arguments.count
    if not 1 <= count <= len(rows):
        raise InputError(
            f"--count {count}: {arguments.split} has {len(rows):,} pictures; "
            "show any number from 1 to that"
        )
    rows = np.random.RandomState(arguments.seed).choice(rows, count, replace=False)
    images = [decode(archive.read(part.files[row]), part.files[row]) for row in rows]
    titles = [
        archive.names[part.labels[row]].split(",")[0] if part.labels is not None else ""
        for row in rows
    ]
    boxes = part.boxes[rows]
    if arguments.recipe:
        images, boxes = _as_learnt(images, rows, arguments), np.full_like(boxes, -1)
    save_figure(contact_sheet(images, titles, boxes), Path(arguments.out))
    show_paths([arguments.out], arguments.format)


def _as_learnt(images: list, rows: Any, arguments: argparse.Namespace) -> list:
    """The pictures as a stage of a recipe shows them to the network in its first epoch."""
    import numpy as np
    import torch

    from tinynet.data.batches import to_float
    from tinynet.training.inputs import augment_images
    from tinynet.training.recipes import RECIPES

    stage = RECIPES[arguments.recipe].stage(arguments.stage or "finetune")
    changed = augment_images(
        to_float(torch.from_numpy(np.stack(images))),
        torch.from_numpy(rows),
        stage,
        seed=arguments.seed,
    )
    return list(changed.permute(0, 2, 3, 1).clamp(0, 1).numpy())


def _synthetic(arguments: argparse.Namespace) -> None:
    from tinynet.data.synthetic import synthetic

    show_paths(
        [
            synthetic(
                arguments.out,
                arguments.classes,
                arguments.train,
                arguments.val,
                arguments.test,
                arguments.side,
                arguments.seed,
            )
        ],
        arguments.format,
    )


def _cache(arguments: argparse.Namespace) -> None:
    from tinynet.data.packed import cache_folder
    from tinynet.data.places import DEFAULT_PATH, locate

    folder = cache_folder(
        locate(arguments.data) if arguments.data else DEFAULT_PATH, arguments.cache
    )
    rows = list(_cached(folder))
    _show_rows(rows, arguments.format)
    for row in rows if arguments.clear else ():
        shutil.rmtree(folder / row["name"])
    count, size = (
        f"{len(rows)} folder{'s' * (len(rows) != 1)}",
        f"{sum(row['MB'] for row in rows):,.1f} MB",
    )
    log(
        f"{folder}: {count} removed, {size} freed"
        if arguments.clear
        else f"{folder}: {count}, {size}"
    )


def _cached(folder: Path) -> Iterator[dict[str, Any]]:
    """Name, kind, size and date of every folder in the cache that tinynet made."""
    for place in sorted(folder.glob("*/manifest.json")):
        if place.parent.is_symlink():  # what it leads to is somebody else's
            continue
        try:
            manifest = read_json(place)
        except (OSError, ValueError):
            continue
        # Programs of all kinds write a manifest.json; `format` is ours, and what is not ours is not
        # removed.
        if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
            continue
        size = sum(file.stat().st_size for file in place.parent.rglob("*") if file.is_file())
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(place.stat().st_mtime))
        kind = manifest.get("kind", "packed")
        yield {"name": place.parent.name, "kind": kind, "MB": round(size / 1e6, 1), "date": date}


def _show_rows(rows: list[dict[str, Any]], form: str) -> None:
    """Print rows as one JSON array or as columns."""
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        table = [list(rows[0])] + [
            [f"{v:,}" if isinstance(v, (int, float)) else str(v) for v in row.values()]
            for row in rows
        ]
        print(columns(table))


def main(argv: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = Parser("tinynet.data", __doc__)
    commands = parser.add_subparsers(
        title="commands",
        required=True,
        metavar="COMMAND",
        parser_class=lambda prog, description, **more: Parser(
            prog.removeprefix("python -m "), description, **more
        ),
    )

    def add(
        name: str, do: Callable[[argparse.Namespace], None], text: str, *common: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(do=do)
        add_common(command, *common, "json")
        return command

    command = add("get", _get, "fetch the official archive to --data, if it is not there", "data")
    command.add_argument(
        "--force", action="store_true", help="replace another archive that is there"
    )
    add(
        "verify",
        _verify,
        "decode every picture and compare with the official figures; status 1 if something is "
        "wrong",
        "data",
    )
    add(
        "pack",
        _pack,
        "decode every picture once into arrays in the cache and name their folder",
        "data",
        "cache",
    )
    add("info", _info, "path, digest, counts, and the digest of the default split", "data")

    command = add(
        "show", _show, "write a PNG of random pictures with their names and boxes", "data"
    )
    command.add_argument(
        "--out",
        type=user_path,
        default="pictures.png",
        metavar="FILE",
        help="default: pictures.png",
    )
    command.add_argument(
        "--split",
        default="train",
        choices=("train", "holdout", "val", "test"),
        help="default: train",
    )
    command.add_argument(
        "--class",
        dest="named",
        metavar="NAME",
        help="only of classes called so: a name, part of one (coral), or a wnid",
    )
    command.add_argument(
        "--recipe", choices=("tuned", "reference"), help="as a recipe changes them for training"
    )
    command.add_argument("--stage", choices=STAGES, help="of the recipe (default: finetune)")
    command.add_argument(
        "--count", type=int, metavar="N", help="how many (default: 40, or all there are)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="which (default: 0)")

    command = add("synthetic", _synthetic, "draw a small archive in the official layout")
    command.add_argument(
        "out", type=user_path, metavar="OUT", help="a name ending in .zip, or else a folder"
    )
    for name, value, text in (
        ("classes", 10, "number of classes"),
        ("train", 50, "train pictures a class"),
        ("val", 10, "val pictures a class"),
        ("test", 10, "test pictures a class"),
        ("side", 64, "side of a picture in pixels"),
        ("seed", 0, "which pictures"),
    ):
        command.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{text} (default: {value})"
        )

    command = add("cache", _cache, "list what is kept in the cache", "data", "cache")
    command.add_argument(
        "--clear", action="store_true", help="remove it and say how much was freed"
    )
    arguments = parser.parse_args(argv)
    arguments.do(arguments)


if __name__ == "__main__":
    run_command(main)
