"""A trained network with the names of its classes."""

from torch import Tensor, nn

from tinynet.models.checkpoint import class_order, load_model
from tinynet.models.classifier import Classifier
from tinynet.runs import StageFolder


class RunModel(nn.Module):
    """The network of a finished stage, in eval mode on the CPU.

    `class_ids`, `class_names`: of the C outputs, in order. `image_size`: the training size in
    pixels. `network`: the classifier, with its `backbone` and `head`.
    """

    def __init__(
        self,
        network: Classifier,
        class_ids: tuple[str, ...],
        class_names: tuple[str, ...],
        image_size: int,
    ):
        super().__init__()
        self.network = network
        self.class_ids, self.class_names, self.image_size = class_ids, class_names, image_size
        self.eval()

    @classmethod
    def load(cls, folder: StageFolder) -> "RunModel":
        """The network of a stage; raises `InputError` where its checkpoint cannot be read."""
        class_ids = class_order(folder.best)
        network, size = load_model(folder.best, class_ids, folder.origin)
        names = folder.read_recipe().get("classes", {})
        return cls(
            network, class_ids, tuple(str(names.get(each, each)) for each in class_ids), size
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, C) logits of images (N, 3, H, W) in [0, 1]."""
        return self.network(images)
