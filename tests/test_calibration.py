"""Temperature scaling."""

import numpy as np
import pytest
from scipy.special import log_softmax

from tinynet.score.calibration import at_temperature, fit_temperature
from tinynet.score.metrics import score


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_made_labels_is_found(temperature):
    draw = np.random.RandomState(0)
    true = log_softmax(2 * draw.randn(20_000, 5), axis=1)
    labels = (np.exp(true).cumsum(1) > draw.rand(20_000, 1)).argmax(1)
    found = log_softmax(true * temperature, axis=1).astype(np.float32)
    assert fit_temperature(found, labels) == pytest.approx(temperature, rel=0.05)
    mended = at_temperature(found, fit_temperature(found, labels))
    assert np.array_equal(mended.argmax(1), found.argmax(1))
    assert score(mended, labels).loss <= score(found, labels).loss + 1e-9
