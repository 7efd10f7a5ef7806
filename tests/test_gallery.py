"""Images of a page."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinynet.report.collect import gather
from tinynet.report.gallery import find_twins

pytestmark = pytest.mark.usefixtures("thin")


def test_twins_under_two_names_are_shown_with_both(scored_folder, packed):
    """A image of val stands in train under another name: said once, with what the network calls
    it.
    """
    shown = gather(Path("runs/one"), *scored_folder.flags[1::2])
    row = next(row for row in range(72) if packed.train.labels[row] != packed.val.labels[3])
    images = {name: np.array(packed.part(name).images) for name in ("train", "val")}
    images["val"][3] = images["train"][row]
    parts = {name: replace(packed.part(name), images=images[name]) for name in images}
    archive = SimpleNamespace(part=parts.__getitem__)
    found = list(find_twins(archive, shown.split, shown.plain, shown.names))
    names = [name.split(",")[0] for name in packed.names]
    (one,) = (card for card in found if card.file == packed.val.files[3])
    assert (one.name, one.train_name) == (
        names[packed.val.labels[3]],
        names[packed.train.labels[row]],
    )
    assert one.prediction == names[shown.plain.log_probabilities[0, 3].argmax()]
