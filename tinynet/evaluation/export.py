"""Export a run: a file that other programs run, checked on real images, and its model card."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tinynet import __version__, console
from tinynet.data.batches import batches
from tinynet.data.packed import Packed
from tinynet.errors import InputError
from tinynet.evaluation.model import RunModel
from tinynet.files import check_writable, temporary_folder
from tinynet.models import export as files
from tinynet.models.export import About, Deployed
from tinynet.records import Json
from tinynet.runs import StageFolder
from tinynet.training.config import RunConfig

TOLERANCE = 1e-4  # greatest difference of a probability
_BATCH = 32


@dataclass(frozen=True)
class Export:
    """A file, and how its probabilities differ from those of the run in float32.

    `checked`: how many images were compared. `difference`: the greatest of a probability. `same`:
    for how many images the most probable class is the same.
    """

    file: str
    megabytes: float
    checked: int
    difference: float
    same: int

    def to_json(self) -> Json:
        """Return the values by name."""
        return asdict(self)


def export(folder: StageFolder, path: Path, packed: Packed, images: int) -> tuple[Export, About]:
    """Write the network of a finished stage to `path`, whose ending names the format.

    The file gets its name only after its probabilities of `images` images of val (at most all) are
    those of the run in float32, to within `TOLERANCE`. Raises `InputError` otherwise, and if a
    package is missing.
    """
    files.check_kind(path)
    check_writable(path)
    run, config = RunModel.load(folder), RunConfig.of(folder)
    about = About(
        run.class_ids,
        run.class_names,
        run.image_size,
        config.recipe.network.arch,
        folder.read_recipe()["data_digest"],
        __version__,
    )
    model = Deployed(run.network, run.image_size)
    with temporary_folder(path) as partial:
        file = partial / path.name
        console.log(f"writing {path}")
        files.write(model, file, about)
        megabytes = file.stat().st_size / 1e6
        result = Export(str(path), megabytes, *compare(model, file, packed, images))
        if not result.difference <= TOLERANCE:
            raise InputError(
                f"{path}: its probabilities differ from those of the run by up to "
                f"{result.difference:.2g}; it is not kept; use another format"
            )
        os.replace(file, path)
    return result, about


def compare(model: Deployed, file: Path, packed: Packed, count: int) -> tuple[int, float, int]:
    """Compare a file with the network that it was written from: images, difference, same."""
    run, _ = files.read(file)
    rows = np.linspace(0, len(packed.val) - 1, min(count, len(packed.val))).astype(np.int64)
    difference, same = 0.0, 0
    with (
        console.progress(total=len(rows), label="checking", unit="images") as bar,
        torch.inference_mode(),
    ):
        for batch in batches(packed.val, rows, batch_size=_BATCH, device="cpu"):
            images = batch.images.contiguous()
            if not bar.n:  # photographs are larger and oblong
                large = F.interpolate(images[:4], (model.size * 3 // 2, model.size * 2))
                gap = np.abs(run(large.numpy()) - model(large).numpy())
                difference = float(gap.max())
            expected, values = model(images).numpy(), run(images.numpy())
            difference = max(difference, float(np.abs(values - expected).max()))
            same += int((values.argmax(1) == expected.argmax(1)).sum())
            bar.update(len(images))
    return len(rows), difference, same
