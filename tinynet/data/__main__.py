"""Download, verify, decode and show the images; write synthetic ones."""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
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

    from tinynet.data.source import Source, Subset

_CELL = 256  # pixels: a cell of the sheet that `show` writes has fewer

# --- commands ---


def _get(arguments: argparse.Namespace) -> None:
    from tinynet.data.download import get
    from tinynet.data.places import DEFAULT_PATH

    show_paths([get(Path(arguments.data or DEFAULT_PATH), arguments.force)], arguments.format)


def _verify(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from tinynet.data.download import find_data
    from tinynet.data.sources import open_source
    from tinynet.data.verify import verify

    path = find_data(arguments.data, arguments.labels)
    report = verify(open_source(path, arguments.labels))
    marks = {True: "ok", False: "WRONG", None: ""}
    rows = [asdict(row) for row in report.rows]
    if arguments.format != "json":
        texts = [{"official": "" if row["official"] is None else row["official"]} for row in rows]
        rows = [
            row | text | {"ok": marks[row["ok"]]} for row, text in zip(rows, texts, strict=True)
        ]
    _show_rows(rows, arguments.format)
    for line in (*report.faults, *report.pair_lines):
        log(line)
    scope = {
        "complete": "the complete official archive",
        "other": "not the official set of images",
        "part": "a part of the official archive, checked for consistency only",
        "any": "checked for damaged images and for duplicates",
    }[report.scope]
    verdict = "no errors" if report.ok else "errors in the rows marked WRONG"
    modes = f"; converted to 8-bit RGB: {report.other_modes}" if report.other_modes else ""
    log(f"{path}: {scope}: {verdict}{modes}")
    if not report.ok:
        raise SystemExit(1)


def _pack(arguments: argparse.Namespace) -> None:
    from tinynet.data.copies import PackRequest, open_packed
    from tinynet.data.download import find_data

    request = PackRequest(arguments.pack_size, arguments.labels)
    packed = open_packed(find_data(arguments.data, arguments.labels), arguments.cache, request)
    show_paths([packed.folder], arguments.format)


def _info(arguments: argparse.Namespace) -> None:
    from tinynet.data.download import find_data
    from tinynet.data.source import SPLITS
    from tinynet.data.sources import open_source
    from tinynet.data.splits import split_train

    path = find_data(arguments.data, arguments.labels)
    source = open_source(path, arguments.labels)
    assert source.train.labels is not None  # only test may have no labels
    split = split_train(source.train.labels)
    facts: Json = {
        "path": str(path),
        "digest": source.digest(),
        "classes": len(source.wnids),
        **_size_facts(source),
    }
    facts |= {f"{name} images": len(source.part(name).files) for name in SPLITS}
    facts |= {
        "of train, without hold-out": len(split.train),
        "of train, hold-out": len(split.holdout),
        "split digest": split.digest,
    }
    _show_rows([{"what": what, "value": value} for what, value in facts.items()], arguments.format)


def _size_facts(source: "Source") -> Json:
    """The side of images of one size; else the smallest and the largest size in a sample."""
    from tinynet.data.copies import sample_sizes
    from tinynet.data.packing import decode

    if source.one_size:
        first = source.train.files[0]
        return {"side": len(decode(source.read(first), first))}
    sizes = sorted(sample_sizes(source), key=lambda size: (size[0] * size[1], size))
    ends = " to ".join(
        dict.fromkeys(f"{width}x{height}" for width, height in sizes[:: max(1, len(sizes) - 1)])
    )
    return {f"sizes of {len(sizes):,} train images": ends or "none can be read"}


def _show(arguments: argparse.Namespace) -> None:
    from tinynet.data.download import find_data
    from tinynet.data.sources import open_source
    from tinynet.plotting import figure_path, save_figure
    from tinynet.report.figures import contact_sheet

    if arguments.stage and not arguments.recipe:
        raise InputError(
            f"--stage {arguments.stage}: needs a recipe; name one with --recipe, such as tuned"
        )
    out = figure_path(arguments.out)
    source = open_source(find_data(arguments.data, arguments.labels), arguments.labels)
    if not source.one_size and source.path.resolve() in out.resolve().parents:
        raise InputError(
            f"--out {out}: is inside the data, where it would count as an image; name a place "
            "outside"
        )
    part = source.part("train" if arguments.split == "holdout" else arguments.split)
    rows = _sample(_candidate_rows(source, part, arguments), arguments)
    files = [part.files[row] for row in rows]
    if arguments.recipe:
        images, boxes = _training_inputs(source, files, rows, arguments), None
    else:
        images = [_picture(source, file) for file in files]
        boxes = list(part.boxes[rows]) if source.one_size else None
    titles = [_title(source, part.labels[row]) if part.labels is not None else "" for row in rows]
    save_figure(contact_sheet(images, titles, boxes), out)
    show_paths([arguments.out], arguments.format)


def _title(source: "Source", label: int) -> str:
    """The name of a class; the first of several that WordNet has."""
    name = source.names[label]
    # matplotlib would set what is between two dollars as a formula.
    return name.split(",")[0] if source.one_size else name.replace("$", r"\$")


def _picture(source: "Source", file: str) -> "np.ndarray":
    """The pixels of an image; one that may have any size is reduced to that of a cell."""
    import numpy as np

    from tinynet.data import packing
    from tinynet.data.decode import decode

    data = source.read(file)
    if source.one_size:
        return packing.decode(data, file)
    try:
        image = decode(data, file, upright=True, least_side=_CELL).image
    except InputError as error:
        raise InputError(
            f"{error}; replace or remove this image (`python -m tinynet.data verify` lists all of "
            "them)"
        ) from None
    image.thumbnail((_CELL, _CELL))
    return np.asarray(image)


def _candidate_rows(
    source: "Source", part: "Subset", arguments: argparse.Namespace
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
        classes = find_classes(arguments.class_name, source.wnids, source.names)
        rows = rows[np.isin(part.labels[rows], classes)]
    return rows


def _sample(rows: "np.ndarray", arguments: argparse.Namespace) -> "np.ndarray":
    """--count of `rows`, sampled with --seed."""
    import numpy as np

    count = min(40, len(rows)) if arguments.count is None else arguments.count
    of_class = f" of --class {arguments.class_name}" if arguments.class_name else ""
    if not len(rows):
        flags = "--class or --split" if of_class else "--split or --data"
        raise InputError(
            f"--split {arguments.split}: has no images{of_class}; choose another {flags}"
        )
    if not 1 <= count <= len(rows):
        raise InputError(
            f"--count {count}: {arguments.split} has {len(rows):,} images{of_class}; choose a "
            f"number from 1 to {len(rows):,}"
        )
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed {arguments.seed}: out of range; use 0 to {2**32 - 1}")
    return np.random.RandomState(arguments.seed).choice(rows, count, replace=False)


def _training_inputs(
    source: "Source", files: Sequence[str], rows: "np.ndarray", arguments: argparse.Namespace
) -> "list[np.ndarray]":
    """The images as the network gets them in the first epoch of a stage, with augmentation.

    Of images that may have any size, the centre squares, at the size that the recipe is for.
    """
    import numpy as np
    import torch

    from tinynet.data.batches import to_float
    from tinynet.data.packing import decode
    from tinynet.data.squares import centre_square
    from tinynet.training.inputs import Draws, augment_images
    from tinynet.training.recipes import RECIPES

    stage = RECIPES[arguments.recipe].stage(arguments.stage or "finetune")
    side = max(stage.size, *(stage.crop_side or ()))
    images = [
        decode(source.read(file), file)
        if source.one_size
        else centre_square(source.read(file), file, side)
        for file in files
    ]
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
    from tinynet.data.copies import cache_folder
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
    text = "decode every image, count errors and duplicates, and compare Tiny ImageNet with the "
    text += "official figures; status 1 if there are errors"
    add("verify", _verify, text, "data", "labels")
    text = "decode every image once into arrays in the cache; print their folder"
    pack = add("pack", _pack, text, "data", "labels", "cache")
    size = "store images as squares of N pixels (default: 258, for training at 224)"
    add_common(pack, "pack-size", **{"pack-size": size})
    text = "print path, digest, sizes, counts, and the digest of the default split"
    add("info", _info, text, "data", "labels")
    text = "write a PNG of random images with their class names and boxes"
    _add_show_flags(add("show", _show, text, "data", "labels"))
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
