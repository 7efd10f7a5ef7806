"""Break a copy of tinynet, one way at a time, and see whether the tests in `tests/gpu` fail:
else they would prove nothing.

    python -m tests.planted_faults    all: fault, outcome, seconds, first line of the failure
    python -m tests.planted_faults scaler average    those whose names hold one of these words
    python -m tests.planted_faults --check    only whether each text to replace is there

Most of them are faults that no CPU notices. Ends with status 1 where one of them passes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("tinynet", "tests", "notebooks", "pyproject.toml")


class Fault(NamedTuple):
    """`old` occurs exactly once in `file`, a path below tinynet/, and becomes `new`."""

    what: str
    file: str
    old: str
    new: str


FAULTS = [
    # --- something is on the other device ---
    Fault(
        "places of crops stay on the CPU",
        "training/inputs.py",
        "return send(values[draws.share or slice(None)].numpy(), images.device)",
        "return values[draws.share or slice(None)]",
    ),
    Fault(
        "arange without a device in the crop",
        "data/augment.py",
        "torch.arange(side, device=start.device)",
        "torch.arange(side)",
    ),
    Fault(
        "arange without a device in the hue",
        "data/augment.py",
        "torch.arange(5, 0, -2, device=sector.device)",
        "torch.arange(5, 0, -2)",
    ),
    Fault(
        "labels stay on the CPU",
        "data/batches.py",
        "else send(part.labels[rows], device)",
        "else torch.from_numpy(part.labels[rows])",
    ),
    Fault(
        "labels of kept features stay on the CPU",
        "training/features.py",
        "send(self.labels[positions], device)",
        "torch.from_numpy(self.labels[positions])",
    ),
    Fault(
        "what is sent once is put together on the CPU",
        "data/batches.py",
        "dtype=getattr(torch, str(array.dtype)), device=device)",
        "dtype=getattr(torch, str(array.dtype)))",
    ),
    Fault(
        "the normalisation stays on the CPU",
        "models/backbone.py",
        "((images - self.mean) / self.std)",
        "((images - self.mean.cpu()) / self.std.cpu())",
    ),
    Fault(
        "the average is on the CPU",
        "training/loop.py",
        "AveragedModel(module, multi_avg_fn",
        'AveragedModel(module, torch.device("cpu"), multi_avg_fn',
    ),
    Fault(
        "the hold-out is judged by a network on the CPU",
        "training/single_stage.py",
        "network.for_inference(compute.device, compute.for_frozen().dtype)",
        'network.for_inference(torch.device("cpu"), compute.for_frozen().dtype)',
    ),
    Fault(
        "the scorer's head stays on the CPU",
        "evaluation/predictor.py",
        "copy.deepcopy(self.model.head).to(self.compute.device)",
        "copy.deepcopy(self.model.head)",
    ),
    Fault(
        "the head of other sizes stays on the CPU",
        "resolution/study.py",
        "copy.deepcopy(model.head).to(device)",
        "copy.deepcopy(model.head)",
    ),
    Fault(
        "a quantile mapping comes back on the CPU",
        "resolution/corrections.py",
        ".astype(np.float32)).to(features.device)",
        ".astype(np.float32))",
    ),
    Fault(
        "a quantile mapping gives NumPy what is on the GPU",
        "resolution/corrections.py",
        "features.detach().cpu().numpy()",
        "features.detach().numpy()",
    ),
    Fault(
        "the matrix that turns an image is on the CPU",
        "score/views.py",
        "dtype=images.dtype,\n        device=images.device,",
        "dtype=images.dtype,",
    ),
    Fault(
        "lanczos comes back on the CPU",
        "resolution/resize.py",
        ".to(images.device).permute",
        ".permute",
    ),
    Fault(
        "lanczos gives NumPy what is on the GPU",
        "resolution/resize.py",
        ".permute(0, 2, 3, 1).cpu().numpy()",
        ".permute(0, 2, 3, 1).numpy()",
    ),
    Fault(
        "images that are timed stay on the CPU",
        "resolution/costs.py",
        "batch_size=default_batch_size(side, compute),\n            device=compute.device,",
        "batch_size=default_batch_size(side, compute),",
    ),
    Fault(
        "the classes of a heat map are on the CPU",
        "score/gradcam.py",
        "classes[:, None]",
        "classes[:, None].cpu()",
    ),
    Fault(
        "a report's heat maps are on the GPU",
        "score/gradcam.py",
        "gradcam(network, pixels, torch.from_numpy(classes[batch]), node)",
        'gradcam(*(x.to("cuda" if torch.cuda.is_available() else "cpu") for x in '
        "(network, pixels, torch.from_numpy(classes[batch]))), node)",
    ),
    Fault(
        "images of files stay on the CPU",
        "evaluation/folder.py",
        ".float().div_(255)[None]).to(compute.device)",
        ".float().div_(255)[None])",
    ),
    Fault(
        "large images are shrunk on the GPU",
        "evaluation/folder.py",
        'place = "cpu" if views.resizes else compute.device',
        "place = compute.device",
    ),
    Fault(
        "an explained image is on the GPU",
        "evaluation/predict.py",
        "view(image[None].float() / 255)[0]",
        "view(image[None].to(self.compute.device).float() / 255)[0]",
    ),
    Fault(
        "the probe of a pretrained network is on the CPU",
        "evaluation/zero_shot.py",
        "torch.zeros(1, 3, side, side, device=self.compute.device)",
        "torch.zeros(1, 3, side, side)",
    ),
    Fault(
        "images that a soup is measured on stay on the CPU",
        "training/averages.py",
        "batch_size=64, device=compute.device)",
        "batch_size=64)",
    ),
    Fault(
        "TensorBoard is given images of the GPU",
        "training/single_stage.py",
        'job.images.epoch(0, torch.device("cpu"))).images',
        "job.images.epoch(0, job.compute.device)).images.numpy()",
    ),
    # --- copies between devices ---
    Fault(
        "late copies are read too early",
        "data/batches.py",
        "            event.synchronize()",
        "            pass",
    ),
    Fault(
        "late copies are waited for before they begin",
        "data/batches.py",
        "        event.record()",
        "        pass",
    ),
    Fault(
        "probabilities are not fetched",
        "score/probabilities.py",
        "log_softmax(network(images)).cpu(), network)",
        "log_softmax(network(images)), network)",
    ),
    Fault(
        "probabilities are fetched late, and read at once",
        "score/probabilities.py",
        "log_softmax(network(images)).cpu(), network)",
        'log_softmax(network(images)).to("cpu", non_blocking=True), network)',
    ),
    Fault(
        "copies from memory that is not pinned",
        "data/batches.py",
        "tensor.pin_memory().to(device, non_blocking=True)",
        "tensor.to(device, non_blocking=True)",
    ),
    Fault(
        "copies that are waited for",
        "data/batches.py",
        "tensor.pin_memory().to(device, non_blocking=True)",
        "tensor.pin_memory().to(device)",
    ),
    Fault(
        "checkpoints are read to where they were written",
        "models/state_dicts.py",
        'torch.load(path, map_location="cpu", weights_only=True)',
        "torch.load(path, weights_only=True)",
    ),
    # --- a step waits ---
    Fault(
        "the loss is read at every step",
        "training/loop.py",
        "        return loss.detach()",
        "        loss.item()\n        return loss.detach()",
    ),
    Fault(
        "the norm of gradients is looked at",
        "training/loop.py",
        "clip_grad_norm_(weights, self.stage.max_grad_norm)",
        "clip_grad_norm_(weights, self.stage.max_grad_norm, error_if_nonfinite=True)",
    ),
    Fault(
        "the average is moved by torch's own method",
        "training/loop.py",
        "            self._move_average()",
        "            self.average.update_parameters(self.module)",
    ),
    Fault(
        "buffers of the average go by the CPU",
        "training/loop.py",
        "            buffer.copy_(live_buffer)",
        "            buffer.copy_(live_buffer.cpu())",
    ),
    Fault(
        "places in kept features are the CPU's",
        "training/features.py",
        "indices = send(positions, device)",
        "indices = torch.from_numpy(positions)",
    ),
    # --- arithmetic ---
    Fault(
        "a T4 gets bfloat16",
        "compute.py",
        '"bfloat16" if capability >= 8',
        '"bfloat16" if capability >= 7',
    ),
    Fault(
        "a P100 gets float16",
        "compute.py",
        "torch.cuda.get_device_capability()[0] >= 7",
        "torch.cuda.get_device_capability()[0] >= 6",
    ),
    Fault(
        "what is frozen loses three bits",
        "compute.py",
        "return replace(self, dtype=self.frozen or self.dtype, frozen=None)",
        "return self",
    ),
    Fault(
        "float32 has ten bits in convolutions",
        "compute.py",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.cudnn.allow_tf32 = True",
    ),
    Fault(
        "scoring is in float32 whatever was asked for",
        "training/extraction.py",
        "network = model.for_inference(compute.device, compute.dtype)",
        "network = model.for_inference(compute.device, torch.float32)",
    ),
    Fault(
        "a pretrained network runs without autocast",
        "models/pretrained.py",
        "self._autocast = compute.autocast",
        "self._autocast = nullcontext",
    ),
    Fault(
        "gradients of float16 are not scaled",
        "compute.py",
        "enabled=self.dtype == torch.float16",
        "enabled=False",
    ),
    Fault(
        "gradients are clipped before they are unscaled",
        "training/loop.py",
        "            self.scaler.unscale_(self.optimizer)\n",
        "",
    ),
    Fault(
        "the rate of the first view includes the start of the GPU",
        "evaluation/predictor.py",
        'if device.type != "cpu" and (view.side, view.dense) not in self._warm:',
        "if False:",
    ),
    # --- chance, and what is kept ---
    Fault(
        "a generator of the CPU draws on the GPU",
        "training/inputs.py",
        "to_device(augment.draw_flags(count, generator)))\n",
        "torch.rand(count, generator=generator, device=images.device) < 0.5)\n",
    ),
    Fault(
        "the GPU draws what is mirrored",
        "training/inputs.py",
        "to_device(augment.draw_flags(count, generator)))\n",
        "torch.rand(count, device=images.device) < 0.5)\n",
    ),
    Fault(
        "the truth of a random state is asked",
        "training/loop.py",
        "        if random is not None:",
        "        if random:",
    ),
    Fault(
        "the random state of the GPU is forgotten",
        "training/loop.py",
        '{"cuda": torch.cuda, "mps": torch.mps}',
        '{"mps": torch.mps}',
    ),
    Fault(
        "the random state of the CPU is kept for the GPU's",
        "training/loop.py",
        "{self.compute.device.type: source.get_rng_state()}",
        "{self.compute.device.type: torch.get_rng_state()}",
    ),
    Fault(
        "the scaler is forgotten on resuming",
        "training/loop.py",
        '"schedule", "optimizer", "scaler", "average"):',
        '"schedule", "optimizer", "average"):',
    ),
    Fault(
        "the average is forgotten on resuming",
        "training/loop.py",
        '"schedule", "optimizer", "scaler", "average"):',
        '"schedule", "optimizer", "scaler"):',
    ),
    Fault(
        "kept features are those of any device",
        "training/features.py",
        '"device": self.compute.device.type, "precision"',
        '"device": "any", "precision"',
    ),
    Fault(
        "kept probabilities are those of any device",
        "evaluation/predictor.py",
        'keys = ("data", "weights", "precision", "device")',
        'keys = ("data", "weights", "precision")',
    ),
    # --- memory ---
    Fault(
        "a text of cuBLAS is not known",
        "compute.py",
        '"out of memory", "alloc_failed",',
        '"out of memory",',
    ),
    Fault(
        "a text of cuDNN is not known",
        "compute.py",
        '"unable to find an engine",',
        '"unable to find a motor",',
    ),
    Fault(
        "files are seen all at once",
        "evaluation/folder.py",
        "AutoBatch(lambda batch: log_softmax(model(batch)).cpu(), model)",
        "lambda batch: log_softmax(model(batch)).cpu()",
    ),
    Fault(
        "a soup is measured all at once",
        "training/averages.py",
        "map(AutoBatch(network.eval().features),",
        "map(network.eval().features,",
    ),
    Fault(
        "features are extracted all at once",
        "training/extraction.py",
        "AutoBatch(partial(pooled_features, backbone, output.feature_names))",
        "partial(pooled_features, backbone, output.feature_names)",
    ),
    Fault(
        "views are seen all at once",
        "score/probabilities.py",
        "predict = AutoBatch(lambda images: log_softmax(network(images)).cpu(), network)",
        "predict = lambda images: log_softmax(network(images)).cpu()",
    ),
    Fault(
        "a step that does not fit does not say how to go on",
        "training/stages.py",
        "            if not out_of_memory(error):\n",
        "            if True:\n",
    ),
]


def planted(text, fault):
    """`text` with the fault, and how often its place was there; line breaks do not matter."""
    if count := text.count(fault.old):
        return text.replace(fault.old, fault.new), count
    tokens = map(re.escape, re.findall(r"\w+|[^\w\s]", fault.old))
    pattern = "".join(
        rf",?\s*{token}" if token in (r"\)", r"\]") else rf"\s*{token}" for token in tokens
    )
    return re.subn(pattern.removeprefix(r"\s*"), lambda _: fault.new.strip(), text)


def texts_that_moved(faults):
    """Faults whose text does not occur exactly once, with how often it does."""
    counts = [
        (fault, planted((ROOT / "tinynet" / fault.file).read_text(encoding="utf-8"), fault)[1])
        for fault in faults
    ]
    return [
        f"{fault.what}: {fault.file} has this text {count} times: {fault.old!r}"
        for fault, count in counts
        if count != 1
    ]


def run_tests(fault):
    """Whether the tests fail with `fault` (None: without any), and the first line of the
    failure.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder, name))
        if fault:
            path = Path(folder, "tinynet", fault.file)
            text, count = planted(path.read_text(encoding="utf-8"), fault)
            assert count == 1, fault
            path.write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-x",
                "--tb=short",
                "tests/gpu",
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr  # neither is pytest's own trouble
    lines = [line for line in ran.stdout.splitlines() if line.startswith("E  ")]
    return bool(ran.returncode), lines[0].removeprefix("E").strip() if lines else ""


def main():
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="parts of the names of faults (default: all)")
    parser.add_argument(
        "--check", action="store_true", help="run nothing, say which texts are not there any more"
    )
    flags = parser.parse_args()
    faults = [
        fault
        for fault in FAULTS
        if not flags.words or any(word in fault.what for word in flags.words)
    ]
    if moved := texts_that_moved(faults):
        sys.exit("\n".join(moved))
    if flags.check:
        print(f"{len(faults)} faults, and the text of each is there")
        return
    passed = []
    for fault in (None, *faults):
        started = time.monotonic()
        caught, line = run_tests(fault)
        outcome = (
            ("CAUGHT" if caught else "passed") if fault else ("BROKEN" if caught else "passes")
        )
        name = fault.what if fault else "without a fault"
        print(f"{outcome}  {name:55} {time.monotonic() - started:4.0f} s  {line[:120]}", flush=True)
        if caught and not fault:
            sys.exit("the tests fail without any fault, so nothing can be said of faults")
        if fault and not caught:
            passed.append(name)
    print(f"{len(faults) - len(passed)} of {len(faults)} are caught")
    sys.exit(bool(passed))


if __name__ == "__main__":
    main()
