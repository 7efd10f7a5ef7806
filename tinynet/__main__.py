"""The map of the commands."""

from tinynet import __version__
from tinynet.flags import run_command

MAP = f"""tinynet {__version__}: transfer learning on Tiny ImageNet

  python -m tinynet.demo        the whole chain on drawn pictures; nothing is downloaded
  python -m tinynet.data        get, verify, pack, info, show, synthetic, cache
  python -m tinynet.train       the head on a frozen VGG16 (base), then all of it (finetune)
  python -m tinynet.evaluate    accuracies with intervals, over views, merges, sizes, networks
  python -m tinynet.fixres      the gap between training and test sizes, measured and closed
  python -m tinynet.report      one HTML file a run: scores, curves, classes, mistakes
  python -m tinynet.predict     what is in pictures, and predictions for those without labels

Each answers to --help."""

run_command(lambda: print(MAP))
