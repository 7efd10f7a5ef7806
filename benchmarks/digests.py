"""Run every command on a small archive with fixed seeds and write digests of all results.

    python -m benchmarks.digests before.json --weights data/vgg16-features.pth
    python -m benchmarks.digests after.json --weights data/vgg16-features.pth
    python -m benchmarks.digests --compare before.json after.json

Run the first command at the old commit and the second at the new one, on the same machine. The
third exits with status 1 if the results differ. The files contain the rows that the commands print
and log, and digests of weights, cached features, stored probabilities, predictions and reports, but
no times and paths.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

UNSTABLE = {
    "pictures_per_second",
    "seconds",
    "command",
    "path",
    "versions",
    "threads",
    "pid",
    "stamp",
    "mark",
}
# Fields of recipe.json that have other names in format 1.
RENAMED = {"taps": "features", "learn": "trainable", "views": "cached_epochs"}

_ON = "--data data.zip --cache cache --json"
_RUN = f"--run run {_ON}"
_VIEWS = "none flip five ten shift rotate zoom scales:48,64 resize:72 dense:96 flip+scales:48,64"
# One command per line, after its name in the results.
STEPS = f"""
demo            demo --out demo --json
synthetic       data synthetic data.zip --classes 6 --train 40 --val 20 --test 5
info            data info --data data.zip --json
verify          data verify --data data.zip
base            train --stage base --weights WEIGHTS --out run --epochs 3 --seed 3 --batch 32 {_ON}
finetune        train --stage finetune --run run --epochs 1 --batch 32 {_ON}
reference       train --recipe reference --stage base --weights WEIGHTS --out ref --epochs 1 {_ON}
second          train --stage base --weights WEIGHTS --out second --epochs 2 --seed 4 {_ON}
evaluate        evaluate {_RUN} --stage base --tta {_VIEWS} --merge mean gmean max vote sharpen
calibrate       evaluate {_RUN} --stage finetune --tta flip --calibrate
sizes           evaluate {_RUN} --stage base --size 48 64 --tta flip
classes         evaluate {_RUN} --stage base --per-class --split val
save_a          evaluate {_RUN} --stage base --split val --tta flip --save-probabilities a.npz
save_b          evaluate {_RUN} --stage finetune --split val --save-probabilities b.npz
stored          compare a.npz b.npz --merge mean gmean --format json
choose          select_views {_RUN} --stage base --tta flip+shift scales:48,64 --most 4
soup            soup run second --stage base --out soup {_ON}
fixres          fixres {_RUN} --stage base --sizes 64 80 --fit 80 --methods antialias lanczos \
                --beside second --keep kept
policy          fixres --policy --json
predict         predict --run run --data data.zip --cache cache --tta flip --out predictions.txt
predict_files   predict pictures --run run --stage base --top 3 --json
stop            train --stage finetune --run second --epochs 2 --batch 32 {_ON}
resume          train --resume second --json
report          report run second --out pages {_ON}
"""


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", nargs="?", type=Path, help="file to write")
    parser.add_argument("--weights", type=Path, help="weights of VGG16, as for tinynet train")
    parser.add_argument(
        "--folder",
        type=Path,
        help="a new folder for the work, which is not deleted (default: a temporary one)",
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar="FILE", help="two files to compare"
    )
    options = parser.parse_args()
    if options.compare:
        before, after = (json.loads(file.read_text()) for file in options.compare)
        raise SystemExit(compare(current(before), current(after)))
    if not options.out or not options.weights:
        parser.error("needs a file to write, and --weights")
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps(collect(folder.resolve(), options.weights.resolve()), indent=1, sort_keys=True)
    )
    if not options.folder:
        shutil.rmtree(folder)


def collect(folder: Path, weights: Path) -> dict[str, Any]:
    """Run all steps in `folder`; return their output and the contents of all files."""
    results: dict[str, Any] = {}
    for line in STEPS.replace("\\\n", "").strip().splitlines():
        name, *words = line.split()
        if name == "predict_files":
            unpack(folder / "data.zip", folder / "pictures")
        output = tinynet(folder, [str(weights) if word == "WEIGHTS" else word for word in words])
        try:
            results[f"printed: {name}"] = stable(json.loads(output))
        except ValueError:
            results[f"printed: {name}"] = stable_text(output.replace(str(folder), ""))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (value := content(path)) is not None:
            results[re.sub(r"\d{8}-\d{6}", "TIME", str(path.relative_to(folder)))] = value
    return results


def tinynet(folder: Path, words: list[str]) -> str:
    """Return the standard output of a command; a finetune of two epochs is stopped after one."""
    print(*words, file=sys.stderr, flush=True)
    stopped = "--stage finetune --run second" in " ".join(words)
    messages = []
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tinynet.{words[0]}", *words[1:]],
            cwd=folder,
            env=environment(),
            # A background job of a shell ignores SIGINT, and so would its children.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        for line in process.stderr:
            messages.append(line)
            if stopped and line.startswith("epoch 1/"):
                process.send_signal(signal.SIGINT)
        if process.wait() != (130 if stopped else 0):
            status = f"status {process.returncode}"
            raise SystemExit(f"{' '.join(words)}: {status}\n{''.join(messages)}")
        output.seek(0)
        return output.read()


def environment() -> dict[str, str]:
    """An environment in which Python imports this checkout, not an installed tinynet."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "TINYNET_PROGRESS": "0",
    }


def unpack(archive: Path, folder: Path) -> None:
    """Write five test images of the archive as files."""
    import zipfile

    with zipfile.ZipFile(archive) as source:
        for name in sorted(name for name in source.namelist() if "/test/images/" in name)[:5]:
            folder.mkdir(exist_ok=True)
            (folder / Path(name).name).write_bytes(source.read(name))


def content(path: Path) -> Any:
    """The part of a file that must not change, or None."""
    if path.suffix in (".pt", ".npz", ".npy"):
        return tensors(path)
    if path.suffix == ".jsonl":
        return [stable(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return stable(json.loads(path.read_text()))
    if path.suffix in (".txt", ".md", ".csv"):
        return path.read_text()
    if path.suffix == ".html":
        return re.sub(r"data:image/png;base64,[^\"']*|[\d.,]+", "#", path.read_text())
    return None


def tensors(path: Path) -> Any:
    """A digest of each array in a file."""
    import numpy as np
    import torch

    if path.suffix == ".pt":
        return digests(torch.load(path, weights_only=True, map_location="cpu"))
    loaded = np.load(path)
    if path.suffix == ".npy":
        return digests(loaded)
    return {
        name: digests(loaded[name]) for name in loaded.files if name not in ("seconds", "about")
    }


def digests(value: Any) -> Any:
    """`value`, with each array replaced by its digest."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.contiguous().view(torch.uint8).numpy() if value.dim() else value.numpy()
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.shape} {digest[:16]}"
    if isinstance(value, dict):
        return {str(key): digests(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [digests(inner) for inner in value]
    return value


def stable(value: Any) -> Any:
    """`value` without times, paths and other parts that differ between two runs."""
    if isinstance(value, dict):
        return {key: stable(inner) for key, inner in value.items() if key not in UNSTABLE}
    if isinstance(value, list):
        return [stable(inner) for inner in value]
    return stable_text(value) if isinstance(value, str) else value


def stable_text(text: str) -> str:
    """`text` without times and temporary folders."""
    text = re.sub(
        r"/[\w./-]*?/(?=(run|second|ref|demo|data\.zip|cache|kept|soup|pages|pictures|data)\b)",
        "",
        text,
    )
    return re.sub(
        r"\d{8}-\d{6}|\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?|[\d,.]+ "
        r"(?=pictures/s|images/s|ms\b|min\b)",
        "TIME",
        text,
    )


def current(results: dict[str, Any]) -> dict[str, Any]:
    """Results with the names of format 2, without the parts that differ between two runs."""
    return {
        name: stable(renamed(value | {"format": 2}) if name.endswith("recipe.json") else value)
        for name, value in results.items()
    }


def renamed(value: Any) -> Any:
    """A recipe with the field names of format 2."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): renamed(inner) for key, inner in value.items()}
    return value


def compare(before: Any, after: Any, place: str = "") -> int:
    """Print the differences; return 1 if there are any."""
    if isinstance(before, dict) and isinstance(after, dict):
        only = sorted(before.keys() ^ after.keys())
        for key in only:
            print(f"{place}/{key}: only {'before' if key in before else 'after'}")
        return max(
            [
                compare(before[key], after[key], f"{place}/{key}")
                for key in before.keys() & after.keys()
            ]
            + [int(bool(only))]
        )
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return max(
            [
                compare(one, other, f"{place}[{n}]")
                for n, (one, other) in enumerate(zip(before, after, strict=True))
            ]
            + [0]
        )
    if before != after:
        print(f"{place}: {str(before)[:300]!r} -> {str(after)[:300]!r}")
    return int(before != after)


if __name__ == "__main__":
    main()
