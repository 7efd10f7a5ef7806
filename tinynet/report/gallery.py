"""The pictures of a report: mistakes, hard classes, confused pairs, heat maps and twins with
another label.
"""

import base64
import io
from collections.abc import Callable, Iterator

import numpy as np
import torch

from tinynet.data.batches import to_float
from tinynet.data.packed import Packed, PackedPart
from tinynet.data.verify import same_pixels
from tinynet.errors import InputError
from tinynet.models.checkpoint import load_model
from tinynet.report.figures import accuracy_by_object_size, warmed
from tinynet.report.page import Row, RunReport
from tinynet.runs import StageFolder
from tinynet.score.confusions import box_areas, by_object_size, surest_mistakes
from tinynet.score.gradcam import heat, share_inside
from tinynet.score.views import resize

_MISTAKES, _HARDEST, _EACH, _HEATED = 96, 8, 8, 12
_DEPTH = "relu4_3"  # 8 x 8 places at 64 px, where relu5_3 has 4 x 4
_INSIDE = 256  # pictures whose heat is measured against their boxes


def add_images(shown: RunReport, packed: Packed, folder: StageFolder) -> None:
    """Put everything that needs the pictures themselves into `shown`, of which `plain` is known."""
    plain, part = shown.plain, packed.train if shown.split == "holdout" else packed.val
    said, labels, rows = plain.log_probabilities[0], plain.labels, plain.rows
    called, right = said.argmax(1), said.argmax(1) == labels

    def card(at: int) -> Row:
        return {
            "picture": _uri(part.images[rows[at]]),
            "file": part.files[rows[at]],
            "name": shown.names[labels[at]],
            "called": shown.names[called[at]],
            "sure": float(np.exp(said[at].max())),
            "right": bool(right[at]),
        }

    shown.mistakes = [card(at) for at in surest_mistakes(said, labels, _MISTAKES)]
    shown.hardest = [
        {**row, "cards": [card(at) for at in np.flatnonzero(labels == row["label"])[:_EACH]]}
        for row in shown.classes[:_HARDEST]
    ]
    for row in shown.pairs:
        row["cards"] = [card(at) for at in _examples(row, said, labels)]
    shown.sizes = by_object_size(right, part.boxes[rows], packed.side)
    if shown.sizes:
        least, most = shown.sizes[0], shown.sizes[-1]
        shown.figures["object-size"] = (
            accuracy_by_object_size(shown.sizes),
            (
                f"Top-1 by size of the object: {least['top1']:.1%} of the smallest, "
                f"{most['top1']:.1%} of the largest"
            ),
        )
    _heats(shown, packed, folder, part, card)
    shown.duplicates = list(_conflicts(packed, shown))


def _examples(pair: Row, said: np.ndarray, labels: np.ndarray) -> Iterator[int]:
    """A picture of each class that is called by the other's name, the surest, or else any of the
    class.
    """
    called = said.argmax(1)
    for label, other in ((pair["first"], pair["second"]), (pair["second"], pair["first"])):
        mine = np.flatnonzero(labels == label)
        wrong = mine[called[mine] == other]
        if len(mine):
            yield int(
                (wrong if len(wrong) else mine)[
                    np.argmax(said[wrong if len(wrong) else mine, other])
                ]
            )


def _heats(
    shown: RunReport,
    packed: Packed,
    folder: StageFolder,
    part: PackedPart,
    card: Callable[[int], Row],
) -> None:
    """Grad-CAM of the class that is said, for pictures spread over the split, and how much of it
    lies in the boxes.
    """
    plain = shown.plain
    network, size = load_model(folder.best, packed.wnids, folder.origin)
    at = np.linspace(0, len(plain.rows) - 1, min(_INSIDE, len(plain.rows))).astype(int)
    heats = []
    for some in np.array_split(at, max(1, len(at) // 16)):
        images = to_float(torch.from_numpy(part.images[plain.rows[some]]))
        classes = torch.from_numpy(plain.log_probabilities[0, some].argmax(1))
        try:
            found = heat(network, resize(images, size), classes, _DEPTH)
        except InputError as error:
            shown.missing.append(f"No heat maps: {error}")
            return
        heats.append(resize(found[:, None], packed.side)[:, 0].numpy())
    maps = np.concatenate(heats)
    boxes = part.boxes[plain.rows[at]]
    inside = share_inside(maps, boxes)
    known = ~np.isnan(inside)
    if known.any():
        shown.inside = {
            "n": int(known.sum()),
            "inside": float(inside[known].mean()),
            "area": float(box_areas(boxes[known]).mean() / packed.side**2),
            "depth": _DEPTH,
        }
    for place in np.linspace(0, len(at) - 1, min(_HEATED, len(at))).astype(int):
        row = plain.rows[at[place]]
        shown.heats.append(
            {
                **card(at[place]),
                "heat": _uri(warmed(part.images[row], maps[place])),
                "side": packed.side,
                "box": boxes[place].tolist() if boxes[place, 0] >= 0 else None,
                "inside": None if np.isnan(inside[place]) else float(inside[place]),
            }
        )


def _conflicts(packed: Packed, shown: RunReport) -> Iterator[Row]:
    """Pictures of the split that stand in train too, under another label: a network can only get
    one of them right.
    """
    name = "train" if shown.split == "holdout" else "val"
    place = {int(row): at for at, row in enumerate(shown.plain.rows)}
    called = shown.plain.log_probabilities[0].argmax(1)
    for first, second in same_pixels(packed):
        for (part, row), (other, twin) in ((first, second), (second, first)):
            if part != name or row not in place or other != "train":
                continue
            mine, theirs = packed.part(part), packed.part(other)
            if mine.labels[row] != theirs.labels[twin]:
                yield {
                    "picture": _uri(mine.images[row]),
                    "file": mine.files[row],
                    "name": shown.names[mine.labels[row]],
                    "other_name": shown.names[theirs.labels[twin]],
                    "called": shown.names[called[place[row]]],
                }


def _uri(pixels: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
