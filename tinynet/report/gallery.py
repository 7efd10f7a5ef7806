"""The images of a report: errors, hard classes, confused pairs, heat maps, and twins in train."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tinynet.data.packed import Packed, PackedPart
from tinynet.data.verify import same_pixels
from tinynet.errors import InputError
from tinynet.models.checkpoint import load_model
from tinynet.report.figures import accuracy_by_object_size, overlay_heat
from tinynet.report.page import Card, HardClass, HeatInside, HeatMap, Pair, RunReport, Twin
from tinynet.runs import StageFolder
from tinynet.score.confusions import (
    box_areas,
    by_object_size,
    most_confident_errors,
    share_inside,
)
from tinynet.score.gradcam import heat_layer, heat_maps
from tinynet.score.probabilities import Probabilities

_ERRORS, _HARD_CLASSES, _IMAGES_A_CLASS, _HEAT_MAPS = 96, 8, 8, 12
_INSIDE = 256  # images whose heat is compared with their boxes


@dataclass(frozen=True)
class _Gallery:
    """The images of a split, with their predictions in the order of `plain`."""

    plain: Probabilities
    part: PackedPart
    names: list[str]

    @property
    def log_probabilities(self) -> np.ndarray:
        return self.plain.log_probabilities[0]

    @property
    def labels(self) -> np.ndarray:
        return self.plain.required_labels

    @cached_property
    def predictions(self) -> np.ndarray:
        return self.log_probabilities.argmax(1)

    def card(self, position: int) -> Card:
        row, label = self.plain.rows[position], self.labels[position]
        prediction = self.log_probabilities[position].argmax()
        return Card(
            image=data_uri(self.part.images[row]),
            file=self.part.files[row],
            name=self.names[label],
            prediction=self.names[prediction],
            confidence=float(np.exp(self.log_probabilities[position].max())),
            right=bool(prediction == label),
        )

    def examples(self, pair: Pair) -> Iterator[int]:
        """An image of each class: the most confident error as the other class, if there is one."""
        predictions, labels = self.predictions, self.labels
        first, second = pair.classes.first, pair.classes.second
        for label, other in ((first, second), (second, first)):
            of_class = np.flatnonzero(labels == label)
            errors = of_class[predictions[of_class] == other]
            candidates = errors if len(errors) else of_class
            if len(candidates):
                yield int(candidates[np.argmax(self.log_probabilities[candidates, other])])


def add_images(
    report: RunReport, plain: Probabilities, packed: Packed, folder: StageFolder
) -> None:
    """Add everything that needs the images themselves to a report.

    `plain`: the probabilities of the plain images of the report's split.
    """
    part = packed.part(part_name(report.split))
    gallery = _Gallery(plain, part, report.names)
    errors = most_confident_errors(gallery.log_probabilities, gallery.labels, _ERRORS)
    report.mistakes = [gallery.card(position) for position in errors]
    report.hardest = [
        HardClass(
            row.name,
            row.accuracy.top1,
            [
                gallery.card(position)
                for position in np.flatnonzero(gallery.labels == row.accuracy.label)[
                    :_IMAGES_A_CLASS
                ]
            ],
        )
        for row in report.classes[:_HARD_CLASSES]
    ]
    report.pairs = [
        replace(pair, cards=[gallery.card(position) for position in gallery.examples(pair)])
        for pair in report.pairs
    ]
    right = gallery.predictions == gallery.labels
    report.sizes = by_object_size(right, part.boxes[plain.rows], packed.side)
    if report.sizes:
        smallest, largest = report.sizes[0], report.sizes[-1]
        caption = (
            f"Top-1 by size of the object: {smallest.top1:.1%} of the smallest, "
            f"{largest.top1:.1%} of the largest"
        )
        report.figures["object-size"] = accuracy_by_object_size(report.sizes), caption
    _add_heat_maps(report, gallery, packed, folder)
    report.twins = list(find_twins(packed, report.split, plain, report.names))


def _add_heat_maps(
    report: RunReport, gallery: _Gallery, packed: Packed, folder: StageFolder
) -> None:
    """Add Grad-CAM of the predictions of images at equal steps, and the share inside the boxes."""
    plain, part = gallery.plain, gallery.part
    count = len(plain.rows)
    positions = np.linspace(0, count - 1, min(_INSIDE, count)).astype(int)
    try:
        layer, heats = _heats(gallery, positions, packed, folder)
    except InputError as error:
        report.missing.append(f"No heat maps: {error}")
        return
    boxes = part.boxes[plain.rows[positions]]
    inside = share_inside(heats, boxes)
    boxed = ~np.isnan(inside)
    if boxed.any():
        report.inside = HeatInside(
            n=int(boxed.sum()),
            inside=float(inside[boxed].mean()),
            area=float(box_areas(boxes[boxed]).mean() / packed.side**2),
            layer=layer,
        )
    for index in np.linspace(0, len(positions) - 1, min(_HEAT_MAPS, len(positions))).astype(int):
        pixels = part.images[plain.rows[positions[index]]]
        report.heats.append(
            HeatMap(
                card=gallery.card(positions[index]),
                heat=data_uri(overlay_heat(pixels, heats[index])),
                side=packed.side,
                box=boxes[index].tolist() if boxes[index, 0] >= 0 else None,
                inside=None if np.isnan(inside[index]) else float(inside[index]),
            )
        )


def _heats(
    gallery: _Gallery, positions: np.ndarray, packed: Packed, folder: StageFolder
) -> tuple[str, np.ndarray]:
    """The layer and its heat maps (n, side, side); raises `InputError` if it has no maps."""
    network, size = load_model(folder.best, packed.wnids, folder.origin)
    images = gallery.part.images[gallery.plain.rows[positions]]
    layer = heat_layer(network, size)
    return layer, heat_maps(network, images, gallery.predictions[positions], size, layer)


def find_twins(
    packed: Packed, split: str, plain: Probabilities, names: list[str]
) -> Iterator[Twin]:
    """Images of the split that are also in train with another label.

    A network can get only one of the two right.
    """
    positions = {int(row): position for position, row in enumerate(plain.rows)}
    predictions = plain.log_probabilities[0].argmax(1)
    for first, second in same_pixels(packed):
        for (name, row), (twin_name, twin_row) in ((first, second), (second, first)):
            if name != part_name(split) or row not in positions or twin_name != "train":
                continue
            part = packed.part(name)
            label = part.required_labels[row]
            twin_label = packed.part(twin_name).required_labels[twin_row]
            if label != twin_label:
                yield Twin(
                    image=data_uri(part.images[row]),
                    file=part.files[row],
                    name=names[label],
                    train_name=names[twin_label],
                    prediction=names[predictions[positions[row]]],
                )


def part_name(split: str) -> str:
    """Return the name of the part of the data that has the images of a split."""
    return "train" if split == "holdout" else "val"


def data_uri(pixels: np.ndarray) -> str:
    """Return an image (H, W, 3) uint8 as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
