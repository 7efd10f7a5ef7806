"""The network of a new run: ImageNet weights and a new head."""

from tinynet.models.backbones import load_backbone
from tinynet.models.classifier import Classifier
from tinynet.training.config import RunConfig


def new_network(config: RunConfig, classes: int) -> Classifier:
    """Return the network that `base` of `config` starts from, for a number of classes.

    Raises `InputError` if the weights cannot be read or the network lacks a layer of the recipe.
    """
    network = config.recipe.network
    return Classifier(
        load_backbone(network.arch, config.weights),
        network.features,
        network.hidden,
        classes,
        config.recipe.base.dropout,
        network.standardise,
    )
