"""The map of the commands."""

print("""tinynet: transfer learning on Tiny ImageNet

  python -m tinynet.demo        the whole chain on drawn pictures, without network or weights
  python -m tinynet.data        get, verify, pack, info, show, synthetic, cache: everything about the pictures
  python -m tinynet.train       the head on a frozen VGG16 (base), then all of it (finetune)
  python -m tinynet.evaluate    top-1 and top-5 with intervals, on the hold-out and the official val
  python -m tinynet.predict     predictions for pictures without labels, as a file

Each answers to --help.""")
