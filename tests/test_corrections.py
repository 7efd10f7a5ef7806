"""Corrections of features: Fréchet and quantile mappings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import genextreme
from support import complaint

from tinynet.resolution.activations import describe, distances
from tinynet.resolution.corrections import Frechet, frechet_mapping, quantile_mapping


@pytest.mark.parametrize(
    "shape, location, scale", [(0.3, 1, 0.5), (0.3, 0.05, 0.3), (0.6, -0.1, 0.3), (0.15, 40, 30)]
)
def test_a_frechet_distribution_is_recovered_from_what_relu_leaves_of_it(shape, location, scale):
    drawn = genextreme.rvs(-shape, location, scale, 100_000, random_state=np.random.RandomState(1))
    for given_shape in (None, shape):
        found = Frechet.fit(np.maximum(drawn, 0), given_shape)
        assert found.shape == pytest.approx(shape, abs=0.03)
        assert found.location == pytest.approx(location, abs=0.05 * scale)
        assert found.scale == pytest.approx(scale, rel=0.04)


def test_nothing_to_fit_is_refused():
    complaint(lambda: Frechet.fit(np.zeros((5, 5))), "0 different values")
    complaint(lambda: quantile_mapping(np.zeros((5, 5)), np.ones((5, 5))), "one value")


@pytest.fixture
def activations():
    random = np.random.RandomState(0)
    return np.maximum(random.gumbel(0.2, 0.7, (2000, 16)), 0).astype(np.float32)


@pytest.mark.parametrize("mapping", [quantile_mapping, frechet_mapping])
def test_a_distribution_is_mapped_onto_itself_by_the_identity(mapping, activations):
    features = torch.from_numpy(activations)
    assert torch.allclose(mapping(activations, activations)(features), features, atol=1e-5)


def test_both_mappings_undo_a_change_of_scale(activations):
    features = torch.from_numpy(activations)
    for mapping, apart in ((quantile_mapping, 1e-4), (frechet_mapping, 0.05)):
        back = mapping(activations * 3, activations)(features * 3)
        assert (back - features).abs().mean() < apart


def test_frechet_leaves_zeros_where_they_are_even_if_there_should_be_fewer(activations):
    random = np.random.RandomState(1)
    sparser = np.maximum(random.gumbel(-0.4, 0.7, activations.shape), 0).astype(np.float32)
    assert (sparser == 0).mean() > (activations == 0).mean() + 0.1
    mapped = frechet_mapping(sparser, activations)(torch.from_numpy(sparser))
    assert ((mapped == 0) == torch.from_numpy(sparser == 0)).all()
    positive = torch.from_numpy(sparser > 0)
    assert (mapped[positive] - torch.from_numpy(sparser)[positive]).mean() == pytest.approx(
        0.6, abs=0.05
    )


def test_quantiles_map_any_distribution_onto_any_other(activations):
    other = np.random.RandomState(5).exponential(4, activations.shape).astype(np.float32)
    mapped = quantile_mapping(other, activations)(torch.from_numpy(other)).numpy()
    assert distances(mapped, activations).ks < 0.01
    assert describe(mapped).zeros == pytest.approx(describe(activations).zeros, abs=0.01)


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=40).filter(
        lambda some: len(set(some)) > 1
    )
)
def test_a_mapping_keeps_the_order_and_never_gives_a_number_that_is_none(some):
    values = np.array(some, np.float32)
    reference = np.random.RandomState(0).exponential(1, 1000).astype(np.float32)
    mapped = quantile_mapping(values, reference)(torch.from_numpy(np.sort(values)))
    assert torch.isfinite(mapped).all() and (mapped.diff() >= -1e-6).all()
