"""Ten-crop with tinynet and with ttach, on the same network and the same pictures, in turn.

    python -m benchmarks.views --run runs/a --pictures 1000

Both average probabilities over the ten crops of pictures resized to 8/7 of the size; that they say the same is
checked. ttach has float32; the third line is tinynet as it runs by itself on this processor.
"""

from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from benchmarks.machine import facts
from benchmarks.measure import in_turn, timed
from tinynet import cli
from tinynet.data.batches import batches
from tinynet.device import Device, choose_device
from tinynet.files import write_json
from tinynet.fit.checkpoint import load_model
from tinynet.fit.features import frozen_backbone
from tinynet.jobs.plan import Plan, open_data
from tinynet.models.vgg import Classifier
from tinynet.runs import finished_stage
from tinynet.score.merges import mean
from tinynet.score.probabilities import view_probabilities
from tinynet.score.views import resize, view_set


def main() -> None:
    """The command."""
    parser = cli.Parser("benchmarks.views", __doc__)
    parser.add_argument("--pictures", type=int, default=1000, metavar="N", help="pictures of val (default: 1000)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns (default: 3)")
    cli.add_common(parser, "data", "cache", "run", "out", "device")
    asked = parser.parse_args()
    import ttach

    folder = finished_stage(asked.run, "base")
    packed = open_data(asked.data, asked.cache, Plan.read(folder.read_recipe()))
    model, size = load_model(folder.best, packed.wnids)
    fast = choose_device(asked.device)
    exact = Device(fast.device, torch.float32)
    rows, views = np.arange(asked.pictures), view_set("ten", size).views
    said: dict[str, torch.Tensor] = {}

    def running(device: Device) -> Classifier:
        made = model.for_inference(device.device, device.dtype)
        made.backbone = frozen_backbone(model, packed, size, device)
        return made

    def ours(name: str, network: Classifier):
        def work() -> None:
            each = [view_probabilities(network, batches(packed.val, rows, device=exact.device), view)
                    for view in views.values()]
            said[name] = mean(torch.from_numpy(np.stack(each))).exp()
        return lambda: timed(asked.pictures, exact, work)

    def theirs(network: Classifier):
        wrapped = ttach.ClassificationTTAWrapper(nn.Sequential(network, nn.Softmax(1)),
                                                 ttach.aliases.ten_crop_transform(size, size), merge_mode="mean")

        def work() -> None:
            with torch.inference_mode():
                said["ttach"] = torch.cat([wrapped(resize(batch.pictures, round(size * 8 / 7))).cpu() for batch in
                                           batches(packed.val, rows, device=exact.device)])
        return lambda: timed(asked.pictures, exact, work)

    floats = running(exact)
    rates = in_turn({"ttach": theirs(floats), "tinynet, float32": ours("tinynet", floats),
                     f"tinynet, {fast.precision}": ours("fast", running(fast))}, asked.repeats)
    apart = {name: (said[name] - said["ttach"]).abs().max().item() for name in ("tinynet", "fast")}
    for name, rate in rates.items():
        cli.say(f"{name:20}{rate['median']:8.1f} pictures/s, {rate['ratio']:.2f} times ttach")
    cli.say(f"greatest difference of a probability: {apart}")
    out = asked.out or "benchmarks/results/views.json"
    write_json(out, {"what": f"ten-crop of {asked.pictures} pictures of val at {size} px: pictures/s, in turn",
                     "machine": facts(fast), "ttach": version("ttach"), "rates": rates,
                     "greatest difference of a probability to ttach's": apart})
    print(out)


if __name__ == "__main__":
    cli.run(main)
