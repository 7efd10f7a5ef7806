"""Photographs of any size: how fast they are packed, and how large data is trained on.

    python -m benchmarks.photos draw DIR --images 50000    photographs of 500 x 375, ten classes
    python -m benchmarks.photos packing DIR OUT.json       packing against decoding, A B A B
    python -m benchmarks.photos start DIR OUT.json         seconds to the first batch
    python -m benchmarks.photos million DIR OUT.json       a million small images: time, memory

`draw` enlarges images of Tiny ImageNet and adds a grain, so that a JPEG has as many bytes as one of
a camera at that size. `million` writes the packed copy itself: images that are never decoded.
"""

import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts
from tinynet.compute import choose_compute
from tinynet.console import progress
from tinynet.data.copies import PackRequest, open_packed
from tinynet.data.decode import decode
from tinynet.data.packing import pack
from tinynet.data.sources import open_source
from tinynet.data.workers import ReadFile, in_workers
from tinynet.files import write_json
from tinynet.flags import Parser, positive_int, run_command, user_path

CLASSES, SIDES = 10, (500, 375)
CHUNK = 32


def draw(options: Any) -> None:
    """Write photographs into class folders."""
    from PIL import Image

    packed = open_packed(options.data)
    rows = np.flatnonzero(packed.train.required_labels < CLASSES)
    random = np.random.RandomState(0)
    grain = random.normal(0, 9, (2 * SIDES[1], 2 * SIDES[0], 3)).astype(np.float32)
    for number in progress(range(options.images), label="drawing", unit="images"):
        row = rows[number % len(rows)]
        image = Image.fromarray(packed.train.images[row]).resize(SIDES, Image.Resampling.BICUBIC)
        top, left = random.randint(0, SIDES[1]), random.randint(0, SIDES[0])
        pixels = np.asarray(image) + grain[top : top + SIDES[1], left : left + SIDES[0]]
        folder = Path(options.folder) / packed.wnids[packed.train.required_labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:06}.jpg", quality=90
        )


def _decode_only(read_file: ReadFile, files: tuple[str, ...]) -> int:
    for file in files:
        decode(read_file(file), file)
    return len(files)


def packing(options: Any) -> dict[str, Any]:
    """Time decoding alone and packing at 258 px, in turn."""
    source = open_source(Path(options.folder))
    files = [*source.train.files, *source.val.files]
    size = sum(len(source.read(file)) for file in files[:500]) // min(500, len(files))
    jobs = [tuple(files[first : first + CHUNK]) for first in range(0, len(files), CHUNK)]
    place = Path(options.folder).with_suffix(".packed")

    def decoding() -> None:
        assert sum(in_workers(_decode_only, jobs, source)) == len(files)

    def packing() -> None:
        pack(source, place, 258)
        shutil.rmtree(place)

    seconds: dict[str, list[float]] = {"decoding": [], "packing": []}
    for _ in range(options.turns):
        for name, work in (("decoding", decoding), ("packing", packing)):
            seconds[name].append(_time(work))
    rates = {name: len(files) / statistics.median(values) for name, values in seconds.items()}
    return {
        "images": len(files),
        "bytes of an image": size,
        "seconds": seconds,
        "images per second": rates,
        "packing over decoding": rates["packing"] / rates["decoding"],
    }


def _time(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def start(options: Any) -> dict[str, Any]:
    """Time from opening packed data to the first training batch of 64, in new processes."""
    open_packed(options.folder, request=PackRequest(258))
    code = (
        "import time, torch; from tinynet.data.copies import PackRequest, open_packed; "
        "from tinynet.training.inputs import TrainingImages; "
        "from tinynet.training.recipes import GENERAL; import numpy as np; "
        "start = time.perf_counter(); "
        f"packed = open_packed({options.folder!r}, request=PackRequest(258)); "
        "opened = time.perf_counter(); rows = np.arange(len(packed.train)); "
        "images = TrainingImages(packed.train, rows, GENERAL.finetune, 0); "
        "next(images.epoch(0, torch.device('cpu'))); "
        "print(opened - start, time.perf_counter() - start)"
    )
    turns = []
    for _ in range(options.turns):
        words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        turns.append([float(word) for word in words.stdout.split()])
    return {"seconds to open": [turn[0] for turn in turns], "to a batch": [t[1] for t in turns]}


def million(options: Any) -> dict[str, Any]:
    """A zip of a million tiny images in a thousand classes: list, pack, open, order, read."""
    import zipfile

    import torch
    from PIL import Image

    from tinynet.training.order import Shuffle

    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "million.zip"
    seconds: dict[str, float] = {}

    def measure(name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - begin
        print(f"{name}: {seconds[name]:.1f} s, {_peak():.2f} GB", file=sys.stderr, flush=True)
        return result

    def write() -> None:
        random = np.random.RandomState(0)
        images = []
        for _ in range(256):
            stream = io.BytesIO()
            pixels = random.randint(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).resize((options.side, options.side)).save(stream, "JPEG")
            images.append(stream.getvalue())
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(options.images):
                name = f"train/c{number % 1000:03}/{number:07}.jpg"
                archive.writestr(name, images[number % 256])

    if not path.exists():
        measure("write", write)
    source = measure("list", lambda: open_source(path))
    packed = measure("pack", lambda: open_packed(path))
    del source
    measure("open", lambda: open_packed(path))
    labels = packed.train.required_labels
    plain = measure("order", lambda: Shuffle().order(labels, 0, 0))
    measure("balanced order", lambda: Shuffle(True).order(labels, 0, 0))
    blocks = measure("order in blocks", lambda: Shuffle(block=64).order(labels, 0, 0))
    for name, order in (("plain", plain), ("blocks", blocks)):
        measure(
            f"read 20,000 images, {name} order",
            lambda order=order: [
                torch.from_numpy(packed.train.images[order[first : first + 64]]).sum()
                for first in range(0, 20_000, 64)
            ],
        )
    return {
        "images": options.images,
        "seconds": seconds,
        "peak resident GB": _peak(),
        "GB on disk": packed.train.images.nbytes / 1e9,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Run the script."""
    parser = Parser("benchmarks.photos", __doc__)
    parser.add_argument("what", choices=("draw", "packing", "start", "million"))
    parser.add_argument("folder", type=user_path)
    parser.add_argument("out", type=user_path, nargs="?", help="JSON file to write")
    parser.add_argument("--data", type=user_path, default="data/tiny-imagenet-200.zip")
    parser.add_argument("--images", type=positive_int, default=50_000)
    parser.add_argument("--side", type=positive_int, default=32, help="of the million images")
    parser.add_argument("--turns", type=positive_int, default=2)
    options = parser.parse_args()
    if options.what == "draw":
        draw(options)
        return
    results = {"packing": packing, "start": start, "million": million}[options.what](options)
    report = {"machine": facts(choose_compute("cpu")), options.what: results}
    if options.out:
        earlier = json.loads(Path(options.out).read_text()) if os.path.exists(options.out) else {}
        write_json(options.out, {**earlier, **report})
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_command(main)
