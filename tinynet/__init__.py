"""Transfer learning on Tiny ImageNet, from the official archive to an honest score.

The way of the data, and the order in which the rooms may import one another:

    data    archive -> labels, boxes, bytes -> packed uint8 arrays -> splits -> batches in [0, 1]
    models  backbone with named depths, which normalises its input, and a head
    fit     recipes, cached features, the training loop, checkpoints
    score   views, merges, metrics: only probabilities leave a model here
    report  figures and tables of what the others wrote down
    jobs    whole jobs, from a question to rows: they tie the rooms together

The commands are flags in front of the jobs: `python -m tinynet` lists them.
"""

__version__ = "0.1.0"
__all__ = ["TinyImageNet"]


def __getattr__(name: str):
    if name == "TinyImageNet":  # found lazily: importing torch takes seconds
        from tinynet.data.dataset import TinyImageNet

        return TinyImageNet
    raise AttributeError(f"module 'tinynet' has no attribute {name!r}")
