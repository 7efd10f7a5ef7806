"""Moments: command lines to kill, the files they start from, and their undisturbed results."""

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from benchmarks.killing.download import Site
from benchmarks.killing.processes import Ending, Processes, Room
from tinynet.data.image_folder import imagenet_wnids
from tinynet.data.synthetic import synthetic
from tinynet.errors import InputError

_DATA = "--data data.zip --cache cache"
_PLAIN = "--device cpu --precision float32"
_SMALL = "--hidden 16 --holdout 0.25 --size 32 --batch 16"
_BASE = f"--stage base --weights none {_SMALL} --out run {_PLAIN}"
_ARCH = "shufflenet_v2_x0_5"


@dataclass(frozen=True)
class Moment:
    """A command line, and its initial files: the result of the moment `after`, `without` some."""

    name: str
    line: str
    after: str | None = None
    without: tuple[str, ...] = ()


MOMENTS = {
    moment.name: moment
    for moment in (
        Moment("download", "python -m benchmarks.killing.download data.zip {url} {size} {md5}"),
        Moment("pack", f"python -m tinynet.data pack {_DATA}", "download"),
        Moment("features", f"python -m tinynet.train {_BASE} {_DATA} --epochs 1", "pack"),
        Moment("base", f"python -m tinynet.train {_BASE} {_DATA} --epochs 6", "features", ("run",)),
        Moment(
            "finetune",
            f"python -m tinynet.train --stage finetune --run run {_DATA} --epochs 2 --batch 32 "
            f"--size 32 --crop-side 28 32 {_PLAIN}",
            "base",
        ),
        Moment(
            "fixres",
            f"python -m tinynet.train --stage fixres --run run {_DATA} --epochs 4 --batch 32 "
            f"--size 48 {_PLAIN}",
            "base",
        ),
        Moment(
            "evaluate",
            f"python -m tinynet.evaluate --run run {_DATA} --tta flip five --merge mean gmean "
            f"--size 32 48 {_PLAIN}",
            "base",
        ),
        Moment("report", f"python -m tinynet.report run {_DATA}", "evaluate"),
        Moment(
            "predict",
            f"python -m tinynet.predict --run run {_DATA} --tta ten --size 48 --out "
            f"predictions.txt {_PLAIN}",
            "base",
        ),
        Moment(
            "imagefolder",
            f"python -m tinynet.folder --data {{images}} --arch {_ARCH} "
            f"--weights {{weights}} --resize 40 --size 32 --tta flip --workers 2 "
            f"--save-probabilities saved/probabilities.npz {_PLAIN}",
        ),
    )
}


@dataclass(frozen=True)
class Undisturbed:
    """A moment without kills: its folder, its duration and its changes to files."""

    room: Room
    ending: Ending


class Scene:
    """The processes, and the undisturbed result of every moment, below the folder `root`."""

    def __init__(self, root: Path, processes: Processes):
        self.root, self.processes = root, processes
        self._locks = {name: threading.RLock() for name in ("images", *MOMENTS)}
        synthetic(root / "data.zip", classes=8, train=100, val=24, test=24, side=32)
        self._site = Site(root / "data.zip")
        self._images, self._weights = root / "images", root / "weights.pth"
        self.undisturbed: dict[str, Undisturbed] = {}

    def close(self) -> None:
        """Stop the web server."""
        self._site.close()

    def line(self, moment: Moment) -> str:
        """The command line; writes the files that it names, if needed."""
        with self._locks["images"]:
            if "{images}" in moment.line and not self._images.is_dir():
                _draw_images(self._images)
                torch.manual_seed(0)
                torch.save(torchvision.models.get_model(_ARCH).state_dict(), self._weights)
        return moment.line.format(
            url=self._site.url,
            size=self._site.size,
            md5=self._site.md5,
            images=self._images,
            weights=self._weights,
        )

    def room(self, moment: Moment, path: Path, disk: Path | None = None) -> Room:
        """A room in `path`, or on a disk of its own, with the files that the moment starts from."""
        start = self.go(MOMENTS[moment.after]).room.work if moment.after else None
        room = Room(path, disk).make(start)
        for name in moment.without:
            shutil.rmtree(room.work / name)
        return room

    def go(self, moment: Moment) -> Undisturbed:
        """The undisturbed result of the moment, which runs once."""
        with self._locks[moment.name]:
            if moment.name not in self.undisturbed:
                room = self.room(moment, self.root / "undisturbed" / moment.name)
                ending = self.processes.run(self.line(moment), room, FAULTS_TRACE="1")
                if ending.status != 0:
                    raise InputError(
                        f"{moment.name}: failed without a kill, with status {ending.status}: "
                        f"{ending.last}; see {room.logs}"
                    )
                self.undisturbed[moment.name] = Undisturbed(room, ending)
        return self.undisturbed[moment.name]


def _draw_images(folder: Path) -> None:
    """Write images of noise in folders of ImageNet's classes, for an ImageNet network."""
    noise = np.random.RandomState(0)
    for wnid in imagenet_wnids()[:2]:
        (folder / wnid).mkdir(parents=True)
        for number in range(150):
            pixels = noise.randint(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).resize((90, 70)).save(folder / wnid / f"{number:03}.png")
