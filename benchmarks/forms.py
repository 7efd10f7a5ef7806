"""Check that Tiny ImageNet is the same data in every form: pixels, labels, split and a short run.

    python -m benchmarks.forms tiny-imagenet-200.zip DIR OUT.json
    python -m benchmarks.forms small.zip DIR OUT.json --train VGG16.pth     also trains base

The forms: the zip, its folder, parquet files as on the Hub (rows in another order), and plain class
folders without any list. The digests of pixels do not depend on the order of the images.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tinynet.data.copies import open_packed
from tinynet.data.packed import Packed
from tinynet.data.splits import split_train
from tinynet.data.tiny_imagenet import Archive
from tinynet.files import write_json
from tinynet.flags import Parser, run_command, user_path


def as_folder(archive: Path, folder: Path) -> None:
    """Extract the zip."""
    with zipfile.ZipFile(archive) as stream:
        stream.extractall(folder)


def as_class_folders(archive: Archive, folder: Path) -> None:
    """Write train and val as class folders, without lists of classes or labels."""
    for name in ("train", "val"):
        part = archive.part(name)
        assert part.labels is not None
        for file, label in zip(part.files, part.labels, strict=True):
            path = folder / name / archive.wnids[label] / file.split("/")[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(file))


def as_parquet(archive: Archive, folder: Path) -> None:
    """Write train and val as a mirror on the Hub does, the rows of train in random order."""
    import pyarrow
    from pyarrow import parquet

    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(archive.wnids), "_type": "ClassLabel"},
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    folder.mkdir(parents=True)
    for name, split in (("train", "train"), ("val", "valid")):
        part = archive.part(name)
        assert part.labels is not None
        order = np.random.RandomState(0).permutation(len(part.files))
        images = [
            {"bytes": archive.read(part.files[row]), "path": part.files[row].split("/")[-1]}
            for row in order
        ]
        table = pyarrow.table({"image": images, "label": part.labels[order]})
        table = table.replace_schema_metadata(about)
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=1000)


def facts(packed: Packed) -> dict[str, str | int]:
    """Digests of the packed copy: its own, those of pixels with labels, and that of the split."""
    rows: dict[str, str | int] = {"contents": packed.contents}
    for name in ("train", "val"):
        part = packed.part(name)
        lines = sorted(
            f"{hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()} {packed.wnids[label]}"
            for pixels, label in zip(part.images, part.required_labels, strict=True)
        )
        rows[f"{name} images"] = len(part)
        rows[f"pixels of {name}"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    split = split_train(packed.train.required_labels)
    pixels_held_out = hashlib.sha256(packed.train.images[split.holdout].tobytes()).hexdigest()[:16]
    return {**rows, "split": split.digest, "pixels of the hold-out, in order": pixels_held_out}


def train(data: Path, weights: str, out: Path) -> list[dict[str, Any]]:
    """Train base for two epochs; return its log."""
    words = [sys.executable, "-m", "tinynet.train", "--stage", "base", "--epochs", "2"]
    words += ["--data", str(data), "--weights", weights, "--out", str(out), "--quiet"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (out / "base/log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "loss")} for row in rows if "loss" in row]


def main() -> None:
    """Run the check; status 1 if the forms differ."""
    parser = Parser("benchmarks.forms", __doc__)
    parser.add_argument("archive", type=user_path)
    parser.add_argument("folder", type=user_path, help="an empty folder for the other forms")
    parser.add_argument("out", type=user_path)
    parser.add_argument("--train", type=user_path, metavar="FILE", help="weights of VGG16")
    options = parser.parse_args()
    folder = Path(options.folder)
    folder.mkdir(parents=True)
    places = {name: folder / name for name in ("zip", "folder", "parquet", "class folders")}
    places["zip"].mkdir()
    zipped = Path(shutil.copy(options.archive, places["zip"] / "tiny-imagenet-200.zip"))
    archive = Archive(zipped)
    as_folder(zipped, places["folder"])
    as_parquet(archive, places["parquet"])
    as_class_folders(archive, places["class folders"])
    results: dict[str, Any] = {}
    for name, place in places.items():
        results[name] = facts(open_packed(place, str(folder / f"{name} cache")))
        print(name, json.dumps(results[name]), flush=True)
    logs = {}
    if options.train:
        logs = {
            name: train(place, options.train, folder / f"{name} run")
            for name, place in places.items()
        }
        results["losses"] = logs["zip"]
    same = {
        key: len({row[key] for row in (results[name] for name in places)}) == 1
        for key in results["zip"]
    }
    if logs:
        same["losses"] = all(log == logs["zip"] for log in logs.values())
    write_json(options.out, {"forms": results, "same": same})
    print(json.dumps(same, indent=2))
    # The names of files differ between class folders and the archive, and are part of `contents`.
    if not all(value for key, value in same.items() if key != "contents"):
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
