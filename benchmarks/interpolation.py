"""Compare ways to enlarge images for a pretrained network, image by image, on the hold-out.

    python -m benchmarks.interpolation OUT.json --weights lite0.pth

The network is used without training, by its own ImageNet head, at its published size. Each way is
compared with tinynet's own, which is bilinear (McNemar's exact paired test).
"""

import json
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from benchmarks.engine_accuracy import predictions, zero_shot_network
from benchmarks.machine import facts
from benchmarks.measure import LITE
from tinynet.compute import choose_compute
from tinynet.data.copies import open_packed
from tinynet.data.download import find_data
from tinynet.files import write_json
from tinynet.flags import Parser, add_common, run_command, user_path
from tinynet.score.compare import mcnemar
from tinynet.score.metrics import score
from tinynet.score.views import resize


def bicubic(images: Tensor, size: int) -> Tensor:
    """Enlarge images (N, 3, H, W) in [0, 1] bicubically."""
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def main() -> None:
    """Run the script."""
    parser = Parser("benchmarks.interpolation", __doc__)
    parser.add_argument("out", type=user_path, help="file to write")
    parser.add_argument("--arch", default=LITE)
    parser.add_argument("--weights", default="DEFAULT")
    add_common(parser, "data", "cache")
    options = parser.parse_args()
    packed = open_packed(find_data(options.data), options.cache)
    model, size = zero_shot_network(options.arch, options.weights, packed)
    compute = choose_compute("cpu", int8=False).for_network(runs_in_int8=False)
    network, rows, reference = model.on(compute), [], None
    for name, way in {"bilinear": resize, "bicubic": bicubic}.items():
        values, labels = predictions(network, packed, partial(way, size=size))
        hits = values.argmax(1) == labels
        reference = hits if reference is None else reference
        result = score(values, labels).to_json() | mcnemar(hits, reference).to_json()
        rows.append({"interpolation": name, **result})
        print(json.dumps(rows[-1]), flush=True)
    what = {"arch": options.arch, "weights": Path(options.weights).name, "size": size}
    write_json(options.out, {**what, "machine": facts(compute), "rows": rows})


if __name__ == "__main__":
    run_command(main)
