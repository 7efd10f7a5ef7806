"""Download, verify, decode and show the images; write synthetic ones."""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tinynet.console import log
from tinynet.errors import InputError
from tinynet.files import read_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.records import Json
from tinynet.report.tables import columns, show_paths
from tinynet.runs import STAGES

if TYPE_CHECKING:
    import numpy as np

    from tinynet.data.tiny_imagenet import Archive, Part

# --- commands ---


def _get(arguments: argparse.Namespace) -> None:
    from tinynet.data.download import get
    from tinynet.data.places import DEFAULT_PATH

    show_paths([get(Path(arguments.data or DEFAULT_PATH), arguments.force)], arguments.format)


def _verify(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from tinynet.data.download import find_data
    from tinynet.data.tiny_imagenet import Archive
    from tinynet.data.verify import verify

    path = find_data(arguments.data)
    report = verify(Archive(path))
    marks = {True: "ok", False: "WRONG", None: ""}
    rows = [asdict(row) for row in report.rows]
    _show_rows(
        rows if arguments.format == "json" else [row | {"ok": marks[row["ok"]]} for row in rows],
        arguments.format,
    )
    for fault in report.faults:
        log(fault)
    scope = {
        "complete": "the complete official archive",
        "other": "not the official set of images",
        "part": "a part of the official archive, checked for consistency only",
    }[report.scope]
    verdict = "no errors" if report.ok else "errors in the rows marked WRONG"
    modes = f"; converted to 8-bit RGB: {report.other_modes}" if report.other_modes else ""
    log(f"{path}: {scope}: {verdict}{modes}")
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

    path = find_data(arguments.data)
    archive = Archive(path)
    assert archive.train.labels is not None  # only test has no labels
    split, first = split_train(archive.train.labels), archive.train.files[0]
    facts = {
        "path": str(path),
        "digest": archive.digest(),
        "classes": len(archive.wnids),
        "side": len(decode(archive.read(first), first)),
    }
    facts |= {f"{name} images": len(archive.part(name).files) for name in SPLITS}
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
    from tinynet.data.tiny_imagenet import Archive
    from tinynet.plotting import figure_path, save_figure
    from tinynet.report.figures import contact_sheet

    if arguments.stage and not arguments.recipe:
        raise InputError(
            f"--stage {arguments.stage}: needs a recipe; name one with --recipe, such as tuned"
        )
    out = figure_path(arguments.out)
    archive = Archive(find_data(arguments.data))
    part = archive.part("train" if arguments.split == "holdout" else arguments.split)
    rows = _sample(_candidate_rows(archive, part, arguments), arguments)
    images = [decode(archive.read(part.files[row]), part.files[row]) for row in rows]
    titles = [
        archive.names[part.labels[row]].split(",")[0] if part.labels is not None else ""
        for row in rows
    ]
    boxes = part.boxes[rows]
    if arguments.recipe:
        images, boxes = _training_inputs(images, rows, arguments), np.full_like(boxes, -1)
    save_figure(contact_sheet(images, titles, list(boxes)), out)
    show_paths([arguments.out], arguments.format)


def _candidate_rows(
    archive: "Archive", part: "Part", arguments: argparse.Namespace
) -> "np.ndarray":
    """Rows of `part` that are in --split and --class."""
    import numpy as np

    from tinynet.data.splits import split_train
    from tinynet.data.tiny_imagenet import find_classes

    rows = np.arange(len(part.files))
    if arguments.split in ("train", "holdout"):
        assert part.labels is not None  # only test has no labels
        rows = getattr(split_train(part.labels), arguments.split)
    if arguments.class_name:
        if part.labels is None:
            raise InputError(
                f"--class {arguments.class_name}: images of test have no class; choose another "
                "--split"
            )
        classes = find_classes(arguments.class_name, archive.wnids, archive.names)
        rows = rows[np.isin(part.labels[rows], classes)]
    return rows


def _sample(rows: "np.ndarray", arguments: argparse.Namespace) -> "np.ndarray":
    """--count of `rows`, sampled with --seed."""
    import numpy as np

    count = min(40, len(rows)) if arguments.count is None else arguments.count
    if not 1 <= count <= len(rows):
        raise InputError(
            f"--count {count}: {arguments.split} has {len(rows):,} images; choose a number from 1 "
            f"to {len(rows):,}"
            if len(rows)
            else f"--count {count}: {arguments.split} has no images; choose another --split"
        )
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed {arguments.seed}: out of range; use 0 to {2**32 - 1}")
    return np.random.RandomState(arguments.seed).choice(rows, count, replace=False)


def _training_inputs(
    images: "list[np.ndarray]", rows: "np.ndarray", arguments: argparse.Namespace
) -> "list[np.ndarray]":
    """The images as the network gets them in the first epoch of a stage, with augmentation."""
    import numpy as np
    import torch

    from tinynet.data.batches import to_float
    from tinynet.training.inputs import Draws, augment_images
    from tinynet.training.recipes import RECIPES

    stage = RECIPES[arguments.recipe].stage(arguments.stage or "finetune")
    inputs = augment_images(
        to_float(torch.from_numpy(np.stack(images))),
        torch.from_numpy(rows),
        stage,
        Draws(seed=arguments.seed),
    )
    return list(inputs.permute(0, 2, 3, 1).clamp(0, 1).numpy())


def _synthetic(arguments: argparse.Namespace) -> None:
    from tinynet.data.synthetic import synthetic

    path = synthetic(
        arguments.out,
        classes=arguments.classes,
        train=arguments.train,
        val=arguments.val,
        test=arguments.test,
        side=arguments.side,
        seed=arguments.seed,
    )
    show_paths([path], arguments.format)


def _cache(arguments: argparse.Namespace) -> None:
    from tinynet.data.packed import cache_folder
    from tinynet.data.places import DEFAULT_PATH, locate

    folder = cache_folder(
        locate(arguments.data) if arguments.data else DEFAULT_PATH, arguments.cache
    )
    rows = list(_cache_rows(folder))
    _show_rows(rows, arguments.format)
    for row in rows if arguments.clear else ():
        shutil.rmtree(folder / row["name"])
    count = f"{len(rows)} folder{'s' * (len(rows) != 1)}"
    size = f"{sum(row['MB'] for row in rows):,.1f} MB"
    log(
        f"{folder}: {count} removed, {size} freed"
        if arguments.clear
        else f"{folder}: {count}, {size}"
    )


def _cache_rows(folder: Path) -> Iterator[Json]:
    """Name, kind, size in MB and date of every folder in the cache that tinynet wrote."""
    for path in sorted(folder.glob("*/manifest.json")):
        if path.parent.is_symlink():  # --clear must not remove what a link leads to
            continue
        try:
            manifest = read_json(path)
        except (OSError, ValueError):
            continue
        # Other programs write a manifest.json too. The number `format` is tinynet's; without it
        # the folder is not tinynet's, and --clear must not remove it.
        if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
            continue
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        kind = manifest.get("kind", "packed")
        yield {"name": path.parent.name, "kind": kind, "MB": round(size / 1e6, 1), "date": date}


def _show_rows(rows: list[Json], form: str) -> None:
    """Print rows as one JSON array or as columns."""
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        table = [list(rows[0])] + [
            [f"{v:,}" if isinstance(v, (int, float)) else str(v) for v in row.values()]
            for row in rows
        ]
        print(columns(table))


# --- flags ---


def parser() -> Parser:
    """Build the parser of `python -m tinynet.data`."""
    result = Parser("tinynet.data", __doc__)
    commands = result.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=Parser
    )

    def add(
        name: str, run: Callable[[argparse.Namespace], None], text: str, *common: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        target = "file or folder for the archive (default: data/tiny-imagenet-200.zip)"
        add_common(command, *common, "json", **({"data": target} if name == "get" else {}))
        return command

    add("get", _get, "download the official archive, if it is missing", "data").add_argument(
        "--force", action="store_true", help="replace an archive that is not the official one"
    )
    text = "decode every image and compare with the official figures; status 1 if there are errors"
    add("verify", _verify, text, "data")
    text = "decode every image once into arrays in the cache; print their folder"
    add("pack", _pack, text, "data", "cache")
    add("info", _info, "print path, digest, counts, and the digest of the default split", "data")
    text = "write a PNG of random images with their class names and boxes"
    _add_show_flags(add("show", _show, text, "data"))
    text = "write a small synthetic archive in the official layout"
    _add_synthetic_flags(add("synthetic", _synthetic, text))
    add("cache", _cache, "list the folders in the cache", "data", "cache").add_argument(
        "--clear", action="store_true", help="delete these folders and print their size"
    )
    return result


def _add_show_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out",
        type=user_path,
        default="pictures.png",
        metavar="FILE",
        help="file to write (default: pictures.png)",
    )
    command.add_argument(
        "--split",
        default="train",
        choices=("train", "holdout", "val", "test"),
        help="images to draw from (default: train)",
    )
    command.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="only classes whose name contains NAME, for instance coral; or a WordNet id",
    )
    command.add_argument(
        "--recipe",
        choices=("tuned", "reference"),
        help="show the images with the augmentation of this recipe",
    )
    command.add_argument("--stage", choices=STAGES, help="stage of the recipe (default: finetune)")
    command.add_argument(
        "--count", type=int, metavar="N", help="number of images (default: at most 40)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the sample (default: 0)"
    )


def _add_synthetic_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "out", type=user_path, metavar="OUT", help="a file name that ends in .zip, or a folder"
    )
    for name, value, text in (
        ("classes", 10, "number of classes"),
        ("train", 50, "train images per class"),
        ("val", 10, "val images per class"),
        ("test", 10, "test images per class"),
        ("side", 64, "side of an image in pixels"),
        ("seed", 0, "seed of the images"),
    ):
        command.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{text} (default: {value})"
        )


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (default: that of this process)."""
    arguments = parser().parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    run_command(main)
